"""Structures distinguished exactly.

To JAX two structures are equal if their static parts are: for example those of a module with a
static field `2` and of one with `2.0`. A result cached for one of them must not be used for the
other. A node is *ambiguous* if something of another type could equal its static part.
"""

import itertools as it
import weakref
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Generic, TypeVar

from .._ground.exact import Exact, exact_key
from .._ground.remembering import remembered, when_collecting


R = TypeVar("R")


def node_data_of(treedef: Any) -> list[Any]:
    """The static parts of the nodes of a structure, children first."""
    data: list[Any] = []
    treedef.walk(lambda _, own: data.append(own), _ignored, [None] * treedef.num_leaves)
    return data


def _ignored(leaf: Any) -> Any:
    return leaf


class Ambiguity:
    """The ambiguous nodes of a structure, and of every structure that equals it.

    `flat` nodes hold plain numbers side by side, as modules hold their static fields, and are
    distinguished by types alone; `deep` ones hold anything.
    """

    __slots__ = ("deep", "flat")

    def __init__(self, treedef: Any):
        data = node_data_of(treedef)
        ambiguous = [i for i, own in enumerate(data) if _is_ambiguous(own)]
        self.flat = tuple(i for i in ambiguous if _is_flat(data[i]))
        self.deep = tuple(i for i in ambiguous if not _is_flat(data[i]))

    def __bool__(self) -> bool:
        return bool(self.flat or self.deep)

    def exact(self, treedef: Any) -> Any:
        """A hashable key that distinguishes a structure from others that equal it, or `()`."""
        if not self:
            return ()
        data = node_data_of(treedef)
        types = tuple(map(type, it.chain.from_iterable([data[i] for i in self.flat])))
        deep: Sequence[int] = self.deep
        if float in types:  # by their bits
            deep = (*deep, *self.flat)
        return types, tuple([_exact(data[i]) for i in deep])


_ambiguity_of = remembered(Ambiguity)


def exact_structure(treedef: Any) -> Any:
    """A hashable key that distinguishes a structure from others that equal it."""
    return _ambiguity_of(treedef).exact(treedef)


class _Equal:
    """The results for structures that are equal to JAX: one result, unless they are ambiguous."""

    __slots__ = ("ambiguity", "known")

    def __init__(self, treedef: Any):
        self.ambiguity = Ambiguity(treedef)
        self.known: dict[Any, Any] = {}


#: How many results are kept for equal structures.
_MAX_EQUAL = 256


class PerStructure(Generic[R]):
    """One object for each structure, so that structures are compared by the identity of that object.

    `make` takes a structure, its key among equal structures, and a tree of that structure. An
    object lives as long as something refers to it; between calls in a row it is cached. What a full
    collection finds in use is kept until the next one begins: a call of a big tree is long enough for a
    collection, and its structure would be worked out again for each call.
    """

    def __init__(self, make: Callable[[Any, Any, Any], R]):
        self._make = make
        self._alive: weakref.WeakValueDictionary[Any, R] = weakref.WeakValueDictionary()
        self._recent = remembered(_Equal)
        self._in_use: list[R | None] = []
        when_collecting(self._in_use.clear, self._keep)

    def __call__(self, treedef: Any, tree: Any) -> R:
        recent = self._recent(treedef)
        exact = recent.ambiguity.exact(treedef)
        try:
            return recent.known[exact]
        except KeyError:
            found = self._found(treedef, exact, tree)
        if len(recent.known) >= _MAX_EQUAL:
            recent.known.clear()
        recent.known[exact] = found
        return found

    def _keep(self) -> None:
        self._in_use.extend([alive() for alive in self._alive.valuerefs()])

    def _found(self, treedef: Any, exact: Any, tree: Any) -> R:
        found = self._alive.get((treedef, exact))
        if found is None:
            found = self._alive.setdefault((treedef, exact), self._make(treedef, exact, tree))
        return found


#: Types whose values equal nothing of another type.
_PLAIN = (str, bytes, type(None), type, FunctionType, BuiltinFunctionType, ModuleType, Exact)


def _is_ambiguous(own: Any) -> bool:
    kind = type(own)
    if isinstance(own, _PLAIN) or kind.__eq__ is object.__eq__ or getattr(kind, "is_exact", False):
        return False
    if kind in (tuple, list):
        return any(map(_is_ambiguous, own))
    if kind is dict:
        return any(map(_is_ambiguous, it.chain(own, own.values())))
    return True


def _is_flat(own: Any) -> bool:
    return type(own) is tuple and all(type(x) in (bool, int) or not _is_ambiguous(x) for x in own)


def _exact(own: Any) -> Any:
    try:
        return exact_key(own)
    except TypeError:  # unhashable: JAX compares it, and that has to be enough
        return type(own)
