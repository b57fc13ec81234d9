"""What a thread is doing with states right now, and what it read while a body was being compiled.

JAX takes trees apart and puts them together through functions that get nothing but the node. Whatever
they have to know besides is kept here, for each thread.

A *watch* belongs to a body that is being compiled. A read of a concrete value that the body neither
received nor made is a *capture*: compiled, it would be a constant and go stale.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.tree_util as jtu


class Watch:
    """What a body that is being compiled read without having received it."""

    __slots__ = ("born", "captured")

    def __init__(self):
        self.captured: Any = None
        # Weakly, because the states hold tracers and the watch outlives traces inside the body.
        self.born: weakref.WeakSet[Any] = weakref.WeakSet()


class Collected(list[Any]):
    """The states that flattening met, in order. A packed tree stands for all of its own."""

    has_packed = False


class _Local(threading.local):
    """What a thread is doing with pytrees right now.

    `rebuild`: what unflattening makes of a state, or `None` for the usual.
    `collected`: where flattening puts the states it meets, or `None`.
    `catchers`: who collects new states.
    `recordings`: the open recordings, innermost last.
    `watch`: the body that is being compiled, or `None`.
    `on_devices`: whether the body of a mapping over devices is running.
    `keep_packed`: whether packed trees stay packed where a call is put together.
    """

    rebuild: Callable[..., Any] | None = None
    collected: Collected | None = None
    catchers: tuple[Any, ...] = ()
    recordings: tuple[Any, ...] = ()
    watch: Watch | None = None
    on_devices: bool = False
    keep_packed: bool = False


local = _Local()


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
    """Whether the body made the state, or the state that this is a live copy of."""
    cell = state._cell
    sources = () if cell is None else cell.recording.frozen
    return state in watch.born or (
        cell is not None and cell.index < len(sources) and (sources[cell.index] in watch.born)
    )
