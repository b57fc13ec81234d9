"""A call of a transform, before its body runs and after.

A transform that runs a body under a trace of its own computes deferred values before, where they can be
computed, and takes the need back for those that the body did not touch: a random state that no draw
touched then comes back as it was.
"""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from .._states.deferred import Deferred
from .._states.threads import local
from .call import Call, refuse_echo
from .notes import Note
from .running import Writes
from .transform import Transform


R = TypeVar("R")


def with_values(transform: Transform, call: Call, run: Callable[[list[Any]], R]) -> R:
    """What `run` makes of the leaves of a call, with deferred values computed.

    **Raises:** `StateError` for a buffer that was given up before. It is looked for where something
    failed: to ask each array costs more than a call.
    """
    if not call.kinds.has_deferred:
        try:
            return run(call.leaves)
        except (RuntimeError, ValueError):
            call.refuse_deleted(lambda: type(transform)._code(transform))
            raise
    leaves = [x.tentative() if type(x) is Deferred else x for x in call.leaves]
    try:
        return run(leaves)
    except BaseException:
        for leaf in call.leaves:
            if type(leaf) is Deferred:
                leaf.release()
        raise


def settle(call: Call, reads: Collection[int], writes: Collection[int]) -> None:
    """Tell the live states that came in what a body did with them.

    `reads` and `writes` are the slots that it read and wrote.
    """
    if not local.recordings:
        return
    for index in reads:
        cell = call.states[index]._cell
        if cell is not None and index not in writes:
            cell.get()  # from now on the cell needs it
    if not call.kinds.has_deferred:
        return
    for leaf, slot in zip(call.leaves, call.signature.layout.slot_of_leaf, strict=True):
        if type(leaf) is not Deferred:
            continue
        assert slot is not None
        touched = slot.index in reads or slot.index in writes
        held = slot.index not in writes and call.states[slot.index]._cell is not None
        if held or not touched:
            leaf.release()


def refuse_echoed(transform: Transform, call: Call, note: Note, threaded: bool) -> None:
    """Raise where a state that somebody threads also stands in the output."""
    if note.echoed:
        live = tuple(e for e in note.echoed if threaded or call.states[e[0]]._cell is not None)
        refuse_echo(call, live, lambda index: transform._line(call, index))


def finish(
    transform: Transform, call: Call, note: Note, result: tuple[Any, Writes], threaded: bool
) -> tuple[Any, Writes]:
    """The result of a run, unless a state that somebody threads also stands in the output."""
    refuse_echoed(transform, call, note, threaded)
    return result
