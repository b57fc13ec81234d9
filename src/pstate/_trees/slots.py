"""The states of a tree structure, and which of its leaves are theirs.

A *slot* is the place of one state: its key path, its kind and tags, and the range of leaves that
hold its value. A *layout* lists the slots of a structure, in the order in which flattening meets
them.
"""

import dataclasses
import functools as ft
from collections.abc import Sequence
from typing import Any

import jax.tree_util as jtu

from .._ground.paths import snake_case
from .._states.showing import held
from .._states.state import State, is_state, make_frozen


#: The structure of a single leaf.
LEAF = jtu.tree_structure(0)


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """The place of one state. `start` and `stop` bound its leaves; `treedef` is that of its value."""

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
        if self.is_leaf:
            return leaves[self.start]
        return self.treedef.unflatten(leaves[self.start : self.stop])

    def empty(self) -> Any:
        """A state of that kind with those tags, for filters to look at."""
        return make_frozen(self.kind, self.tag, None)

    def state(self, leaves: Sequence[Any]) -> Any:
        """A frozen state with that value, for filters to look at."""
        return make_frozen(self.kind, self.tag, self.value(leaves))


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The slots of a structure, and for each leaf its slot, or `None`.

    `outer` is the structure down to the states, which are its leaves. `items` says what these
    leaves are: the index of a slot or, numbered after all slots, of a leaf outside states.
    """

    slots: tuple[Slot, ...]
    slot_of_leaf: tuple[Slot | None, ...]
    key_path_of_leaf: tuple[tuple[Any, ...], ...]
    outer: Any
    items: tuple[int, ...]

    def build(self, states: Sequence[Any], leaves: Sequence[Any]) -> Any:
        """The tree with these states, which are inserted as they are, and the leaves outside states."""
        pool = [*states, *leaves]
        return self.outer.unflatten([pool[item] for item in self.items])


def layout_of(tree: Any) -> Layout:
    """The layout of the structure of a tree.

    It is read from a tree, not from its structure, since nodes may look at their children: a node
    that keeps arrays apart from the rest has other leaves if there are no arrays.
    """
    flat, outer = jtu.tree_flatten_with_path(tree, is_leaf=is_state)
    n_slots = sum(isinstance(item, State) for _, item in flat)
    slots: list[Slot] = []
    items: list[int] = []
    slot_of_leaf: list[Slot | None] = []
    key_paths: list[tuple[Any, ...]] = []
    for key_path, item in flat:
        start = len(slot_of_leaf)
        if not isinstance(item, State):
            items.append(n_slots + start)
            slot_of_leaf.append(None)
            key_paths.append(key_path)
            continue
        inner, child_treedef = jtu.tree_flatten_with_path(held(item))
        slot = Slot(len(slots), key_path, type(item), item.tag, start, start + len(inner), child_treedef)
        items.append(len(slots))
        slots.append(slot)
        slot_of_leaf += [slot] * len(inner)
        key_paths += [(*key_path, *inner_path) for inner_path, _ in inner]
    return Layout(tuple(slots), tuple(slot_of_leaf), tuple(key_paths), outer, tuple(items))


def states_of(tree: Any) -> list[State]:
    """The states of a tree, in the order of its slots."""
    return [item for item in jtu.tree_leaves(tree, is_leaf=is_state) if isinstance(item, State)]


def root_name(tree: Any) -> str:
    """What code would call a tree: its class in lower case, or `tree` for a bare container."""
    if isinstance(tree, list | tuple | dict | State):
        return "tree"
    return snake_case(type(tree).__name__)
