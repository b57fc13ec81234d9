"""The live half of states: recordings and what they record.

A *recording* makes every state of a tree live. Each live state shares a *cell*, which holds the
current value and remembers whether it was read or written. A *link* is the static part of a live
state when a pytree is taken apart: it equals the static part of a frozen state, so that trees match
and nothing is traced again; but it leads back to the cell, so that a copy of the tree stays live if
its value is the same object.

Invariants:

- A cell accepts writes from the thread and the JAX trace that opened its recording, and only until
  the recording is closed.
- Links refer to cells weakly: JAX keeps tree structures in its caches, and must not keep tracers.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .._ground.errors import FrozenStateError, TraceScopeError
from .._ground.tracebacks import users_line
from .._ground.values import copy, same
from .._ground.versions import current_trace
from .deferred import Deferred
from .raw_transforms import trace_message
from .threads import local


class Link(tuple):
    """The tags of a live state, with the way back to its cell.

    Equality, hash and order are those of the plain tuple of tags, and run at the speed of C.
    """

    #: Tags are strings: nothing of another type equals them.
    is_exact = True

    cell: "weakref.ref[Cell]"


class Recording:
    """Makes the states of one tree live, and records their writes.

    `place_of` gives the place of the state at an index, `guard` raises if a write is not allowed,
    `original` is the tree before, `frozen` the states in it, and `title` is what messages call the
    recording, or a function that says it. `data` says for an index whether its state stays frozen,
    and what the error for a write to it says. `sources` are the states of which its live states are
    copies. `aliases` are pairs of indices that hold the same state. `lines`, if given, collects
    where each state was last written.
    """

    __slots__ = (
        "_first",
        "_title",
        "cells",
        "closed",
        "data",
        "frozen",
        "guard",
        "lines",
        "original",
        "place_of",
        "sources",
        "thread",
        "trace",
        "watch",
    )

    def __init__(
        self,
        place_of: Callable[[int], str],
        *,
        guard: Callable[["Cell"], None] | None = None,
        original: Any = None,
        frozen: Sequence[Any] = (),
        title: str | Callable[[], str] = "the recording",
        data: Callable[[int], str | None] | None = None,
        aliases: Sequence[tuple[int, int]] = (),
        lines: dict[int, str] | None = None,
    ):
        self.data = data
        self.lines = lines
        self._first = {b: a for a, b in sorted(aliases, reverse=True)}
        self.cells: list[Cell] = []
        self.closed = False
        self.thread = threading.get_ident()
        self.trace = current_trace()
        self.watch = local.watch
        self.place_of = place_of
        self.guard = guard
        self.original = original
        self.frozen = frozen
        self.sources: Sequence[Any] = frozen
        self._title = title
        local.recordings = (*local.recordings, self)

    @property
    def title(self) -> str:
        """What messages call the recording."""
        return self._title if isinstance(self._title, str) else self._title()

    def first(self, index: int) -> int:
        """The first index that holds the same state as an index."""
        return self._first.get(index, index)

    def close(self, *, check: bool = True) -> None:
        """End the recording. `check` looks for containers that were edited and not written back."""
        if self.closed:
            return
        self.closed = True
        self.frozen = self.sources = ()
        local.recordings = tuple(r for r in local.recordings if r is not self)
        # Live states keep their cells; without this list no cycle keeps tracers alive.
        cells, self.cells = self.cells, []
        if check:
            for cell in cells:
                cell.check_handed_out()


class Cell:
    """Where a live state keeps its value.

    `value` is the current one, `written` and `read` say what happened to it, and `index` is the
    index of the state in its recording.
    """

    __slots__ = (
        "__weakref__",
        "handed_out",
        "index",
        "link",
        "read",
        "recording",
        "value",
        "written",
    )

    def __init__(self, value: Any, tag: tuple[str, ...], recording: Recording):
        self.value = value
        self.recording = recording
        self.index = len(recording.cells)
        self.written = False
        self.read = False
        self.handed_out: list[tuple[Any, Any]] = []
        self.link = Link(tag)
        self.link.cell = weakref.ref(self)
        recording.cells.append(self)

    @property
    def identity(self) -> tuple[int, int]:
        """The same for all cells of one state that is at several places in the recorded tree."""
        return id(self.recording), self.recording.first(self.index)

    @property
    def place(self) -> str:
        return self.recording.place_of(self.index)

    def get(self) -> Any:
        """The current value, computed now if it was deferred."""
        if type(self.value) is Deferred:
            self.value = self.value.get()
        self.read = True
        return self.value

    def hand_out(self) -> Any:
        """The current value for model code: a container is copied, and the copy is watched."""
        value = self.get()
        copied = copy(value)
        if copied is not value and not self.recording.closed:
            self.handed_out.append((copied, value))
        return copied

    def put(self, value: Any) -> None:
        """Record a write."""
        # A copy that is written back is watched from here on; the others were intermediate values.
        self.handed_out = [(held, value) for held, _ in self.handed_out if same(held, value)]
        self.value = value
        self.written = True
        lines = self.recording.lines
        if lines is not None:
            lines[self.index] = users_line()

    def check_writable(self, kind: str) -> None:
        """Raise unless a write would be recorded here and now."""
        recording = self.recording
        if recording.closed:
            raise FrozenStateError(
                f"`{self.place}` ({kind}) was written after {recording.title} ended, so nothing would "
                "record it. Write inside the recording, or open a new one:\n"
                "    with ps.record(tree) as live: ...\n"
                "    tree = ps.freeze(live)"
            )
        if threading.get_ident() != recording.thread:
            raise TraceScopeError(
                f"`{self.place}` ({kind}) was written from another thread than the one that opened "
                "its recording. Give each thread its own call and join the results: "
                "out, tree = ps.pure(f)(tree)."
            )
        if current_trace() != recording.trace:
            raise TraceScopeError(trace_message(self.place, kind, recording))
        if recording.guard is not None:
            recording.guard(self)

    def check_handed_out(self) -> None:
        for held, source in self.handed_out:
            if not same(held, source):
                raise FrozenStateError(
                    f"The container read from `{self.place}` was edited in place and not written "
                    "back. Reading gives a copy, so the edit would be lost. Write the copy back:\n"
                    "    value = state.value\n"
                    "    value[...] = ...\n"
                    "    state.value = value"
                )
