"""What a tree holds, for `summary` and `diff`.

An *entry* is a state, or a leaf outside states. Its *parts* are its leaves: one for a state that holds
an array, several for a container, none for an empty state. Nothing is read or computed on the way.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.tree_util as jtu

from .._ground.paths import Path, to_path, to_place
from .._ground.typing import PyTree
from .._states.showing import held
from .._states.state import State, is_state
from .._trees.leaves import operand_mask


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf of an entry."""

    place: str
    leaf: Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """A state, or a leaf outside states. `parts` go by their path within the state's value."""

    path: Path
    place: str
    leaf: Any
    parts: dict[Path, Part]

    @property
    def kind(self) -> str:
        """The class of a state, or `array`, or `static` for other leaves."""
        if isinstance(self.leaf, State):
            return type(self.leaf).__name__
        return "array" if is_array(self.leaf) else "static"

    @property
    def tag(self) -> tuple[str, ...]:
        """The tags of a state."""
        return self.leaf.tag if isinstance(self.leaf, State) else ()

    @property
    def is_empty(self) -> bool:
        """Whether this is a state without a value."""
        return isinstance(self.leaf, State) and held(self.leaf) is None


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype; Python numbers have none."""
    return operand_mask((leaf,))[0]


def entries_of(tree: PyTree, root: str) -> Iterator[Entry]:
    """The entries of a tree, in its order."""
    for key_path, leaf in jtu.tree_flatten_with_path(tree, is_leaf=is_state)[0]:
        place = to_place(root, key_path)
        parts = _parts(leaf, place) if isinstance(leaf, State) else {(): Part(place, leaf)}
        yield Entry(to_path(key_path), place, leaf, parts)


def _parts(state: State, place: str) -> dict[Path, Part]:
    leaves, _ = jtu.tree_flatten_with_path(held(state))
    return {
        to_path(inner): Part(to_place(f"{place}.value", inner) if inner else place, leaf)
        for inner, leaf in leaves
    }
