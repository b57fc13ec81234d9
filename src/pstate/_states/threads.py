"""What a thread is doing with states right now, and what it read while a body was being compiled.

JAX takes trees apart and puts them together through functions that get only the node. Whatever else
they have to know is kept here, per thread.

A *watch* belongs to a body that is being compiled. A read of a concrete value that the body neither
received nor made is a *capture*: compiled, it would be a constant and go stale.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.core
import jax.tree_util as jtu


class Watch:
    """The values that a body being compiled has read without having received them."""

    __slots__ = ("born", "captured")

    def __init__(self):
        self.captured: Any = None
        # Weakly, because the states hold tracers and the watch outlives traces inside the body.
        self.born: weakref.WeakSet[Any] = weakref.WeakSet()


class Threaded:
    """The states that a call threads while its function runs, and which of them are read by
    closure.

    Such a read gives the value from before the call. If the call also writes the state, that value
    is stale.
    """

    __slots__ = ("_keys", "call", "read", "written")

    def __init__(self, call: Any):
        self.call = call
        self.read: set[int] = set()
        self.written: set[int] = set()
        self._keys: frozenset[int] | None = None

    def note(self, state: Any) -> None:
        """Note a read of a state from outside."""
        if self._keys is None:
            self._keys = frozenset(map(key_of, self.call.states))
        key = key_of(state)
        if key in self._keys:
            self.read.add(key)

    def stale(self, writes: Iterable[int]) -> int | None:
        """The slot of a state that was read by closure and is written, if there is one."""
        states = self.call.states
        self.written.update(key_of(states[index]) for index in writes)
        stale = self.read & self.written
        return next((index for index, state in enumerate(states) if key_of(state) in stale), None)


def key_of(state: Any) -> int:
    """The same key for a live state and all its copies; a frozen state has its own."""
    return id(state if state._cell is None else state._cell)


class Collected(list[Any]):
    """The states that flattening met, in order. A packed tree stands for all its states."""

    has_packed = False


class _Local(threading.local):
    """What a thread is doing with pytrees right now.

    `rebuild`: how unflattening builds a state, or `None` for the usual way. `collected`: where
    flattening puts the states it meets, or `None`. `catchers`: the collectors of new states.
    `recordings`: the open recordings, innermost last. `watch`: the body that is being compiled, or
    `None`. `call`: the call whose function is about to run, with the states that it threads.
    `threaded`: the calls whose functions are running, innermost last. `on_devices`: whether the
    body of a mapping over devices is running. `keep_packed`: whether packed trees stay packed when
    a call is put together. `made`: where a tree that is put together notes its lists and dicts.
    `flat`: the program that runs by the short way, on which it is not traced.
    """

    rebuild: Callable[..., Any] | None = None
    collected: Collected | None = None
    catchers: tuple[Any, ...] = ()
    recordings: tuple[Any, ...] = ()
    watch: Watch | None = None
    call: Threaded | None = None
    threaded: tuple[Threaded, ...] = ()
    on_devices: bool = False
    keep_packed: bool = False
    made: list[Any] | None = None
    flat: Any = None


local = _Local()


@contextmanager
def threading_states(call: Any) -> Iterator[None]:
    """Inside this context, a call that threads the given states is prepared and run."""
    outer, local.call = local.call, Threaded(call)
    try:
        yield
    finally:
        local.call = outer


@contextmanager
def listening(call: Threaded | None) -> Iterator[None]:
    """Inside this context, the function of a call runs, and the call is told about reads."""
    outer = local.threaded
    if call is not None:
        call.call.states  # noqa: B018 (looked up now: a node may take its states apart on the way)
        local.threaded = (*outer, call)
    try:
        yield
    finally:
        local.threaded = outer


def note_read(state: Any) -> None:
    """Tell the running calls that a state was read."""
    for call in local.threaded:
        call.note(state)


def watch_read(state: Any, value: Any) -> None:
    """Note a concrete value that a body being compiled read without having received it."""
    watch = local.watch
    assert watch is not None
    if isinstance(value, jax.core.Tracer):  # nearly always, and a fifth of what the rest costs
        return
    concrete = any(
        isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        for leaf in jtu.tree_leaves(value)
    )
    if concrete and watch.captured is None and not _is_born(state, watch):
        watch.captured = state


def _is_born(state: Any, watch: Watch) -> bool:
    """Whether the body made the state or wrote its value, or did so to the state that this is a copy
    of.
    """
    if state in watch.born:
        return True
    cell = state._cell
    if cell is None:
        return False
    if cell.written and cell.recording.watch is watch:
        return True
    sources = cell.recording.sources
    return cell.index < len(sources) and _is_born(sources[cell.index], watch)
