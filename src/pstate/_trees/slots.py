"""The states of a tree structure, and which of its leaves are theirs.

A *slot* is one state's place: its key path, its kind and tags, and the range of leaves that hold its
value. A *layout* lists the slots of a structure, in the order in which flattening meets them. It
depends on the structure alone and is worked out once for each.
"""

import dataclasses
import functools as ft
from collections.abc import Sequence
from typing import Any

import jax.tree_util as jtu

from .._ground.paths import snake_case
from .._states.state import State, is_state, make_frozen
from .flattening import unflatten_frozen


#: The structure of a single leaf.
LEAF = jtu.tree_structure(0)


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """One state's place. `start` and `stop` bound its leaves; `treedef` is its value's structure."""

    index: int
    key_path: tuple[Any, ...]
    kind: type
    tag: tuple[str, ...]
    start: int
    stop: int
    treedef: Any

    @ft.cached_property
    def is_leaf(self) -> bool:
        """Whether the value is a single array, without a container around it."""
        return self.treedef == LEAF

    def value(self, leaves: Sequence[Any]) -> Any:
        """The state's value, from the leaves of the whole tree."""
        return self.treedef.unflatten(leaves[self.start : self.stop])

    def empty(self) -> Any:
        """A state of that kind with those tags, for filters to look at."""
        return make_frozen(self.kind, self.tag, None)

    def state(self, leaves: Sequence[Any]) -> Any:
        """A frozen state with that value, for filters to look at."""
        return make_frozen(self.kind, self.tag, self.value(leaves))


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The slots of a structure, and for each leaf its slot or `None`."""

    slots: tuple[Slot, ...]
    slot_of_leaf: tuple[Slot | None, ...]
    key_path_of_leaf: tuple[tuple[Any, ...], ...]


@ft.lru_cache(maxsize=4096)
def layout_of(treedef: Any) -> Layout:
    """The layout of a tree structure."""
    numbered = unflatten_frozen(treedef, range(treedef.num_leaves))
    slots: list[Slot] = []
    slot_of_leaf: list[Slot | None] = []
    key_paths: list[tuple[Any, ...]] = []
    for key_path, item in jtu.tree_flatten_with_path(numbered, is_leaf=is_state)[0]:
        if not isinstance(item, State):
            slot_of_leaf.append(None)
            key_paths.append(key_path)
            continue
        inner, child_treedef = jtu.tree_flatten_with_path(item._peek())
        start = len(slot_of_leaf)
        stop = start + len(inner)
        slot = Slot(len(slots), key_path, type(item), item.tag, start, stop, child_treedef)
        slots.append(slot)
        slot_of_leaf += [slot] * len(inner)
        key_paths += [(*key_path, *inner_path) for inner_path, _ in inner]
    return Layout(tuple(slots), tuple(slot_of_leaf), tuple(key_paths))


def root_name(tree: Any) -> str:
    """What code would call a tree: its class in lower case, or `tree` for a bare container."""
    if isinstance(tree, list | tuple | dict | State):
        return "tree"
    return snake_case(type(tree).__name__)
