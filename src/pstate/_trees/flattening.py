"""Trees of states taken apart, and put together with live or with frozen states."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax.tree_util as jtu

from .._states.cell import Recording
from .._states.state import make_frozen, make_live
from .._states.threads import Collected, local


def collect(tree: Any) -> tuple[list[Any], Any, Collected]:
    """Flatten `tree`: its leaves, its structure, and the state objects in it, in order.

    Deferred values are leaves here.
    """
    outer, local.collected = local.collected, Collected()
    try:
        leaves, treedef = jtu.tree_flatten(tree)
        return leaves, treedef, local.collected
    finally:
        local.collected = outer


@contextmanager
def _rebuilding(rebuild: Any) -> Iterator[None]:
    outer, local.rebuild = local.rebuild, rebuild
    try:
        yield
    finally:
        local.rebuild = outer


def thaw(treedef: Any, leaves: Iterable[Any], recording: Recording) -> Any:
    """Build a tree whose states are live in `recording`, in the order in which they are flattened."""

    def live(cls: type, tag: tuple[str, ...], child: Any) -> Any:
        return make_live(cls, recording, tuple(tag), child)

    def live_but_for_data(cls: type, tag: tuple[str, ...], child: Any) -> Any:
        assert recording.data is not None
        is_data = recording.data(len(recording.cells)) is not None
        state = make_live(cls, recording, tuple(tag), child)
        if is_data:
            state = make_frozen(cls, tuple(tag), child)
        recording.frozen = (*recording.frozen, state if is_data else None)
        return state

    with _rebuilding(live if recording.data is None else live_but_for_data):
        return treedef.unflatten(leaves)


def _rebuild_frozen(cls: type, tag: tuple[str, ...], child: Any) -> Any:
    return make_frozen(cls, tuple(tag), child)


def unflatten_frozen(treedef: Any, leaves: Iterable[Any], keep_packed: bool = False) -> Any:
    """Build a tree whose states are frozen, whatever tree the structure came from.

    Packed trees in it become trees, or stay packed.
    """
    outer, local.keep_packed = local.keep_packed, keep_packed
    try:
        with _rebuilding(_rebuild_frozen):
            return treedef.unflatten(leaves)
    finally:
        local.keep_packed = outer
