"""Where the static parts of two trees differ: static fields, and the types of nodes.

Paths that only one tree has are not looked into, nor are kinds and tags of states.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.tree_util as jtu

from .._states.showing import held
from .._states.state import State, is_state
from .._trees.flattening import collect
from .comparing import same_static


KeyPath = tuple[Any, ...]

_VALUE = jtu.GetAttrKey("value")


class StaticDifference(NamedTuple):
    """A static field, or a node, that differs."""

    key_path: KeyPath
    is_field: bool
    old: Any
    new: Any


def same_structure(old: Any, new: Any) -> bool:
    """Whether two trees have the same structure, kinds and tags of states included."""
    return collect(old)[1] == collect(new)[1]


def static_differences(old: Any, new: Any, key_path: KeyPath = ()) -> Iterator[StaticDifference]:
    """The static differences of two trees, in the order of the old one."""
    if isinstance(old, State) and isinstance(new, State):
        yield from static_differences(held(old), held(new), (*key_path, _VALUE))
        return
    (olds, old_treedef), (news, new_treedef) = _one_level(old), _one_level(new)
    if jtu.treedef_is_leaf(old_treedef) or jtu.treedef_is_leaf(new_treedef):
        return
    if olds.keys() == news.keys() and old_treedef != new_treedef:
        yield from _at_node(key_path, old, new)
    for key, child in olds.items():
        if key in news:
            yield from static_differences(child, news[key], (*key_path, key))


def _one_level(tree: Any) -> tuple[dict[Any, Any], Any]:
    """The children of a node by key, and the structure of this node alone."""
    flat, treedef = jtu.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree or is_state(x))
    return {key_path[0] if key_path else None: child for key_path, child in flat}, treedef


def _at_node(key_path: KeyPath, old: Any, new: Any) -> Iterator[StaticDifference]:
    fields = _static_fields(old) if type(old) is type(new) else []
    both = [(name, getattr(old, name, None), getattr(new, name, None)) for name in fields]
    differing = [each for each in both if not same_static(*each[1:])]
    for name, old_value, new_value in differing:
        yield StaticDifference((*key_path, jtu.GetAttrKey(name)), True, old_value, new_value)
    if not differing:
        yield StaticDifference(key_path, False, old, new)


def _static_fields(node: Any) -> list[str]:
    """The names of a module's static fields."""
    if not dataclasses.is_dataclass(node):
        return []
    return [field.name for field in dataclasses.fields(node) if field.metadata.get("static")]
