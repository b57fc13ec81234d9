"""`shardings`: where each array of a tree is to live, by filter."""

import dataclasses
from typing import Any

import jax.tree_util as jtu
from jax.sharding import NamedSharding, PartitionSpec

from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import PyTree
from .._states.state import State, make_frozen
from .._trees.bulk import ARRAYS, Leaf, leaves_of
from .meshes import mesh_or_current
from .rules import parse_rules


@dataclasses.dataclass(frozen=True)
class Placed:
    """A state or an array of a tree, its leaves, and the sharding of each; `None` for non-arrays.

    `treedef` is the structure of a state's value, `None` outside states.
    """

    item: Leaf
    leaves: list[Any]
    shardings: list[Any]
    treedef: Any

    def with_leaves(self, leaves: list[Any]) -> Any:
        """The same with other leaves; a state is frozen."""
        if self.treedef is None:
            return leaves[0]
        state = self.item.leaf
        return make_frozen(type(state), state.tag, self.treedef.unflatten(leaves))


def placed(tree: PyTree, rules: Any, mesh: Any, what: str) -> tuple[list[Placed], Any]:
    """The states and arrays of a tree with their shardings, and the structure down to these."""
    parsed = parse_rules(rules, what)
    mesh = mesh_or_current(mesh, what)
    used: list[Any] = []

    def place(item: Leaf) -> Placed:
        is_one = isinstance(item.leaf, State)
        leaves, treedef = jtu.tree_flatten(item.leaf) if is_one else ([item.leaf], None)
        rule = parsed.match(item.path, item.leaf) if is_one or isinstance(item.leaf, ARRAYS) else None
        used.append(rule)
        where = f"`{item.place}`" + (f" ({type(item.leaf).__name__})" if is_one else "")

        def sharding(leaf: Any) -> Any:
            if not isinstance(leaf, ARRAYS):
                return None
            spec = PartitionSpec() if rule is None else rule.on(mesh, leaf, where)
            return NamedSharding(mesh, spec)

        inner = None if treedef is None else treedef.children()[0]
        return Placed(item, leaves, list(map(sharding, leaves)), inner)

    items, treedef = leaves_of(tree)
    result = [place(item) for item in items]
    candidates = [(i.path, i.leaf) for i in items if isinstance(i.leaf, (State, *ARRAYS))]
    parsed.warn_of_unmatched(used, what, candidates)
    return result, treedef


@public
@short_tracebacks
def shardings(tree: PyTree, rules: Any, mesh: Any = None) -> PyTree:
    """Where each array of a tree is to live, by filter.

    Use the result wherever JAX takes a tree of shardings: in `jax.device_put`, `eqx.filter_shard`,
    `in_shardings=` and `out_shardings=`, and to restore with Orbax.

    **Arguments:**

    - `tree`: any pytree, of arrays or of `jax.ShapeDtypeStruct`s.
    - `rules`: `{PartitionSpec: filter}` in priority order; or a spec alone, for everything. Instead
        of a spec you may pass a function of the leaf that returns one, such as `pstate.largest`.
        Filters apply to states, all of whose leaves get that spec, and to arrays outside states.
        Arrays that no filter selects are whole on every device, `P()`.
    - `mesh`: a `jax.sharding.Mesh`; by default that of the context.

    **Returns:** `tree` with a `jax.sharding.NamedSharding` instead of every array, and `None`
    instead of every other leaf. A filter that names something but selects nothing causes a warning
    (`UnmatchedFilterWarning`).

    **Raises:** `ValueError` if there is no mesh, and for a spec with an axis that the mesh does not
    have; `BatchAxisError` for an array that cannot be cut evenly; `TypeError` for anything but
    rules.

    !!! example

        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> import pstate as ps
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> model = {"w": ps.ParamState(jnp.ones((8, 2))), "n": ps.State(0)}
        >>> where = ps.shardings(model, {P("data"): ps.ParamState, P(): ...}, mesh)
        >>> where["w"].value.spec == P("data"), where["n"].value.spec == P()
        (True, True)
    """
    found, treedef = placed(tree, rules, mesh, "ps.shardings")
    return treedef.unflatten([item.with_leaves(item.shardings) for item in found])
