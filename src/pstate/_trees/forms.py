"""Trees as leaves and a form, which is their structure as one object."""

from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from .._ground.exact import exact_key
from .._states.state import make_frozen
from .leaves import LeafKinds, kinds_of
from .slots import layout_of
from .structures import PerStructure


class Form:
    """The structure of a tree. `placeholders` are its states without values."""

    __slots__ = ("__weakref__", "_exact", "_hash", "name", "placeholders", "treedef")

    is_exact = True

    def __init__(self, treedef: Any, exact: Any, tree: Any):
        self.treedef = treedef
        self.name = type(tree).__name__
        self._exact = exact
        self._hash = hash((treedef, exact))
        slots = layout_of(tree).slots
        self.placeholders = tuple(make_frozen(slot.kind, slot.tag, None) for slot in slots)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Form) and other._exact == self._exact and other.treedef == self.treedef
        )

    def __repr__(self) -> str:
        return repr(self.treedef)


#: The form of a tree, by its structure and itself.
form_of = PerStructure(Form)

#: The kinds of the leaves, and an exact key of those that are not arrays.
Statics = tuple[LeafKinds, tuple[Any, ...]]


def statics_of(leaves: Sequence[Any]) -> Statics:
    """What is static among leaves.

    **Raises:** `TypeError` for an unhashable leaf.
    """
    kinds = kinds_of(leaves)
    return kinds, tuple([exact_key(leaves[i]) for i in kinds.statics])


def are_settled(leaves: Sequence[Any]) -> bool:
    """Whether the static leaves keep their exact keys as long as they live."""
    return all(_is_settled(leaves[i]) for i in kinds_of(leaves).statics)


#: Types whose values never change.
_SETTLED = (str, bytes, int, float, complex, FunctionType, BuiltinFunctionType, type, np.dtype)


def _is_settled(leaf: Any) -> bool:
    # What is hashed by identity has a key that is its identity.
    return isinstance(leaf, _SETTLED) or type(leaf).__hash__ is object.__hash__
