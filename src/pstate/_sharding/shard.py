"""`shard`: a tree on its devices, by filter."""

from collections.abc import Sequence
from typing import Any

from .._ground.errors import AliasedStateError
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import PyTree
from .._states.state import State
from .._trees.packed import Packed, pack
from .putting import put
from .shardings import Placed, placed
from .specs import spec_code


@public
@short_tracebacks
def shard(tree: PyTree, rules: Any, mesh: Any = None) -> PyTree:
    """Put the arrays of a tree where they are to live, by filter.

    Only where they live changes: values, structure, kinds and tags stay. Inside a compiled function
    arrays are constrained to be there (`jax.lax.with_sharding_constraint`, or `jax.reshard` on an
    explicit mesh). Typed keys are put too, also across processes. A state that stands at two places
    stays one.

    **Arguments:**

    - `tree`: any pytree. Where its states are live the arrays are written into them. A
        `jax.ShapeDtypeStruct` gets the sharding.
    - `rules`: `{PartitionSpec: filter}` in priority order, as for `pstate.shardings`; or a spec alone,
        as for a batch.
    - `mesh`: a `jax.sharding.Mesh`; that of the context, unless given.

    **Returns:** the tree with its arrays there; the same tree where its states are live. NumPy arrays
    become JAX's.

    **Raises:** what `pstate.shardings` raises; `AliasedStateError` for one state at two places that
    rules put apart.

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
    return pack(result) if isinstance(tree, Packed) else result


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
    """The states and arrays with one state at two places once; and for each item which of them it is.

    **Raises:** `AliasedStateError` for one state at two places that rules put apart.
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
                f"and the rules put it apart: {_specs(once[at])} and {_specs(item)}. Have one rule for "
                "both, or give each place its own state."
            )
        which.append(at)
    return once, which


def _specs(item: Placed) -> str:
    return ", ".join("-" if s is None else spec_code(s.spec) for s in item.shardings)
