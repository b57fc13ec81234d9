"""`shard`: a tree on its devices, by filter."""

from collections.abc import Sequence
from typing import Any, TypeVar

from .._ground.errors import AliasedStateError
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._states.state import State
from .._trees.packed import Packed, pack
from .putting import put
from .shardings import Placed, placed
from .specs import spec_code


T = TypeVar("T")


@public
@short_tracebacks
def shard(tree: T, rules: Any, mesh: Any = None) -> T:
    """Put the arrays of a tree where they are to live, by filter.

    Only the location of the arrays changes: values, structure, kinds and tags stay the same. Inside
    a compiled function arrays are constrained (`jax.lax.with_sharding_constraint`, or `jax.reshard`
    on an explicit mesh). Typed keys are handled too, also across processes. A state at two places
    stays one state.

    **Arguments:**

    - `tree`: any pytree. If its states are live, the arrays are written into them. A
        `jax.ShapeDtypeStruct` gets the sharding.
    - `rules`: `{PartitionSpec: filter}` in priority order, as for `pstate.shardings`; or a spec alone,
        as for a batch.
    - `mesh`: a `jax.sharding.Mesh`; by default that of the context.

    **Returns:** the tree with its arrays there; the same tree if its states are live. NumPy arrays
    become JAX arrays.

    **Raises:** what `pstate.shardings` raises; `AliasedStateError` for one state at two places that get
    different specs.

    !!! example

        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> import pstate as ps
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> model = {"w": ps.ParamState(jnp.ones(4))}
        >>> model = ps.shard(model, {ps.largest("data"): ps.ParamState}, mesh)
        >>> model
        {'w': ParamState(f32[4])}
        >>> model["w"].value.sharding.spec == P("data")
        True
    """
    found, treedef = placed(tree, rules, mesh, "ps.shard")
    new = _put_items(found)
    live = [isinstance(i.item.leaf, State) and i.item.leaf._cell is not None for i in found]
    for item, state, is_live in zip(found, new, live, strict=True):
        if is_live and item.leaves:
            item.item.leaf.value = state._peek()
    states = [isinstance(item.item.leaf, State) for item in found]
    if any(live) and live == states and not any(i.leaves and i.treedef is None for i in found):
        return tree
    result = treedef.unflatten(
        [i.item.leaf if is_live else one for i, one, is_live in zip(found, new, live, strict=True)]
    )
    placed_tree: Any = pack(result) if isinstance(tree, Packed) else result
    return placed_tree


def _put_items(found: Sequence[Placed]) -> list[Any]:
    once, which = each_once(found)
    arrays = put(
        [leaf for item in once for leaf in item.leaves],
        [sharding for item in once for sharding in item.shardings],
    )
    supply = iter(arrays)
    made = [item.with_leaves([next(supply) for _ in item.leaves]) for item in once]
    return [made[i] for i in which]


def each_once(found: Sequence[Placed]) -> tuple[list[Placed], list[int]]:
    """The states and arrays, each state once; and for each item, the index of its entry there.

    **Raises:** `AliasedStateError` for one state at two places with different specs.
    """
    once: list[Placed] = []
    which: list[int] = []
    seen: dict[int, int] = {}
    for item in found:
        at = seen.get(id(item.item.leaf)) if item.treedef is not None else None
        if at is None:
            at = seen[id(item.item.leaf)] = len(once)
            once.append(item)
        elif item.shardings != once[at].shardings:
            raise AliasedStateError(
                f"`{once[at].item.place}` and `{item.item.place}` are one state object at two places, "
                f"but the rules give it two specs: {_specs(once[at])} and {_specs(item)}. Use one rule "
                "for both, or give each place its own state."
            )
        which.append(at)
    return once, which


def _specs(item: Placed) -> str:
    return ", ".join("-" if s is None else spec_code(s.spec) for s in item.shardings)
