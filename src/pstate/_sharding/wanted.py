"""`in_shardings` and `out_shardings`, parsed.

The *wanted* shardings are given as in `jax.jit`, by a prefix of a tree whose entries are shardings,
specs, or `None` if nothing is wanted; or by rules, for the whole or instead of an entry.
"""

from typing import Any

import jax.tree_util as jtu
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from .._ground.exact import Identity
from .meshes import current_mesh
from .rules import ShardingRules, is_rules, parse_rules
from .specs import check_divides, check_spec


class Wanted:
    """What an option wants. Two are equal if they want the same.

    `prefix` has `None`, `PartitionSpec`s, `Sharding`s and `ShardingRules` for entries; `given` is what
    the user wrote.
    """

    __slots__ = ("_key", "given", "option", "prefix")

    is_exact = True

    def __init__(self, given: Any, option: str):
        self.given = given
        self.option = option
        leaves, treedef = jtu.tree_flatten(given, is_leaf=_is_entry)
        entries = [self._parsed(leaf) for leaf in leaves]
        self.prefix = entries[0] if _is_entry(given) else treedef.unflatten(entries)
        self._key: Any = (option, treedef, tuple(entries))
        try:
            hash(self._key)
        except TypeError:  # a structure that holds something unhashable
            self._key = Identity(given)

    def _parsed(self, entry: Any) -> Any:
        if is_rules(entry):
            return parse_rules(entry, self.option)
        if entry is None or isinstance(entry, PartitionSpec | Sharding):
            return entry
        raise TypeError(
            f"The entries of {self.option} are shardings, specs, None, or rules by filter; got "
            f"{entry!r} of type {type(entry).__name__}. Write {self.option}=P('data'), {self.option}="
            "{P('data'): ps.HiddenState, P(): ...}, or the result of ps.shardings(tree, rules, mesh)."
        )

    @property
    def rules(self) -> ShardingRules | None:
        """The rules, if they are for the whole."""
        return self.prefix if isinstance(self.prefix, ShardingRules) else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wanted) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


def _is_entry(x: Any) -> bool:
    return x is None or isinstance(x, PartitionSpec | Sharding) or is_rules(x)


def resolved(entry: Any, path: Any, item: Any, leaf: Any, place: str, what: str) -> Any:
    """The sharding that an entry wants for an array: one of a state, or by itself; or `None`.

    `item` is what filters are called with.

    **Raises:** `ValueError` if a spec does not fit the mesh or the array, and if there is no mesh.
    """
    if isinstance(entry, ShardingRules):
        rule = entry.match(path, item)
        if rule is None:
            return None
        mesh = current_mesh(what)
        return NamedSharding(mesh, rule.on(mesh, leaf, place))
    if isinstance(entry, PartitionSpec):
        mesh = current_mesh(what)
        check_spec(entry, mesh, place)
        entry = NamedSharding(mesh, entry)
    if isinstance(entry, NamedSharding):
        check_divides(leaf.shape, entry.spec, entry.mesh, place)
    return entry
