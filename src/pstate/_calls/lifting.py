"""Transforms that run their function under their own trace.

The leaves of a call go through one of JAX's transforms, as arrays, and come back with a note. Keys
that the lanes of a mapping around the call have not split yet are *deferred*: they are computed
beforehand, if possible, and those that the function did not touch are released again. So a random
state that no draw touched comes back as it was.
"""

from collections.abc import Collection
from typing import Any

from .._states.deferred import Deferred
from .._states.threads import Threaded, local
from .call import Call
from .contract import Contract
from .notes import Note
from .running import Writes
from .transform import Transform
from .typed import C, P, R


class Lifted(Transform[P, R, C]):
    """A transform of a function of arrays, lifted to calls with states."""

    __slots__ = ()

    def _run(self, call: Call, contract: Contract | None = None) -> tuple[Any, Writes]:
        outer, local.call = local.call, Threaded(call)  # a context manager would cost a microsecond more
        computed = call.leaves
        try:
            if call.kinds.has_deferred:
                computed = [x.tentative() if type(x) is Deferred else x for x in computed]
            note, (out, writes) = self._run_leaves(call, computed, contract)
        except BaseException as error:
            self._failed(call, error)
            raise
        finally:
            local.call = outer
        self._refuse(call, note, contract)
        if local.watch is not None:
            call.watch_reads(note.reads | writes.keys(), local.watch)
        _settle(call, note.reads, writes)
        return out, writes

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        """Run on the leaves of a call, none of them deferred.

        Returns the note; and the output, with what was written.
        """
        raise NotImplementedError

    def _failed(self, call: Call, error: BaseException) -> None:
        """Release the deferred leaves of a call that failed.

        **Raises:** `StateError` for a buffer that was donated before. It is only looked for after a
        failure: checking each array costs more than a call.
        """
        if call.kinds.has_deferred:
            for leaf in call.leaves:
                if type(leaf) is Deferred:
                    leaf.release()
        elif isinstance(error, RuntimeError | ValueError):
            call.explain(error, self._code)


def _settle(call: Call, reads: Collection[int], writes: Collection[int]) -> None:
    """Tell the live states that came in what a function did with them.

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
