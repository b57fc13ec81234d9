"""A cache of compiled programs.

Programs belong to the *anchor*, the plain innermost function of a callable, and to a key; the
wrapper around it may be made again on each call. The objects that the anchor's closure, defaults
and directly named globals are bound to are part of the key, by identity: a rebound name is noticed.
A change in place is not, as under `jax.jit`.

Programs hold their anchor weakly, and the table holds the anchor weakly: both are dropped together.
"""

import threading
import types
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from .bindings import bound_by
from .own import own_of


Entry = TypeVar("Entry")

#: Programs kept per function; the oldest goes first.
MAX_PROGRAMS = 256


class Programs:
    """The programs of all functions, for one kind of transform."""

    def __init__(self):
        # By identity, since callables that are equal need not compute the same.
        self._others: dict[int, tuple[Callable[[], Any], dict[Any, Any]]] = {}
        self._lock = threading.Lock()

    def get(
        self, anchor: Any, key: Hashable, make: Callable[[], Entry], others: Sequence[Any] = ()
    ) -> Entry:
        """The program of a function for a key, made if there is none.

        `others` are more functions that are part of the program.
        """
        bound = bound_by(anchor)
        ids, kept = bound.ids, bound.kept
        for other in others:
            also = bound_by(other)
            ids, kept = (*ids, id(other), *also.ids), (*kept, other, *also.kept)
        full_key = (key, ids)
        try:
            return self._of(anchor)[full_key][0]
        except KeyError:
            pass
        made = make()
        with self._lock:
            programs = self._of(anchor)
            if len(programs) >= MAX_PROGRAMS:
                _drop_oldest(programs)
            # The bound objects are kept alive, so that no other object gets their identity; but not the
            # function itself, which another function may be bound to.
            kept = tuple(x for x in kept if x is not anchor)
            return programs.setdefault(full_key, (made, kept))[0]

    def keys(self, anchor: Any) -> list[Any]:
        """The keys of the programs that a function has."""
        with self._lock:
            return [key for key, _ in self._of(anchor)]  # hashes none: an object in one may be edited

    def _of(self, anchor: Any) -> dict[Any, Any]:
        if isinstance(anchor, types.FunctionType):
            programs = own_of(anchor).programs
            return programs.get(id(self)) or programs.setdefault(id(self), {})
        found = self._others.get(id(anchor))
        if found is None or found[0]() is not anchor:
            found = self._others[id(anchor)] = (_reference(anchor, self._others), {})
        return found[1]


def _drop_oldest(programs: dict[Any, Any]) -> None:
    oldest = next(iter(programs))
    if programs.pop(oldest, None) is None:
        # An object in the key was edited, and has another hash now.
        others = list(programs.items())[1:]
        programs.clear()
        programs.update(others)


def _reference(anchor: Any, table: dict[int, Any]) -> Callable[[], Any]:
    """A reference that clears its entry in the table; a strong one for builtins and similar."""
    identity = id(anchor)
    try:
        return weakref.ref(anchor, lambda _: table.pop(identity, None))
    except TypeError:
        return lambda: anchor
