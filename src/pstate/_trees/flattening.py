"""Trees of states, taken apart and put together with live or frozen states."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax.tree_util as jtu

from .._states.cell import Recording
from .._states.state import make_frozen, make_live
from .._states.threads import Collected, local
from .lending import lend
from .slots import Layout


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
def unread() -> Iterator[None]:
    """Inside this context, taking a tree apart reads no state: it computes and captures nothing."""
    outer, local.collected = local.collected, Collected()
    try:
        yield
    finally:
        local.collected = outer


@contextmanager
def _rebuilding(rebuild: Any) -> Iterator[None]:
    outer, local.rebuild = local.rebuild, rebuild
    try:
        yield
    finally:
        local.rebuild = outer


def thaw(layout: Layout, leaves: Sequence[Any], recording: Recording) -> Any:
    """Build a tree whose states are live in `recording`, in the order of the layout.

    NumPy arrays in it are read-only: an edit in place would change the tree that came in.
    """
    leaves = [lend(leaf) for leaf in leaves]
    states = [make_live(slot.kind, recording, slot.tag, slot.value(leaves)) for slot in layout.slots]
    if recording.data is not None:
        is_data = [recording.data(slot.index) is not None for slot in layout.slots]
        states = [
            make_frozen(slot.kind, slot.tag, slot.value(leaves)) if data else state
            for slot, state, data in zip(layout.slots, states, is_data, strict=True)
        ]
        recording.frozen = tuple(s if data else None for s, data in zip(states, is_data, strict=True))
    return layout.build(states, leaves)


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
