"""The fast path through a compiled call: one packed tree in, the same packed tree out.

Only the other arguments are taken apart, and one lookup picks the new leaves from those that came
in and those that the compiled call returned.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.notes import NEXT, Note
from .._calls.signature import ARGS, Signature
from .._trees.packed import Packed


@dataclasses.dataclass(eq=False)
class PackedProgram:
    """A compiled function whose argument 0 is packed, and holds all states of the call.

    `general` says that the call does not fit, and takes the usual path.
    """

    entry: Any
    signature: Signature
    general: bool
    _plans: "dict[int, _Plan | None]" = dataclasses.field(default_factory=dict)

    def operands(self, packed: Packed[Any], rest: Sequence[Any]) -> list[Any]:
        """The operands of the compiled call."""
        kinds, _ = packed.statics
        return [*(kinds.operands(packed.leaves) if kinds.statics else packed.leaves), *rest]

    def plan(self, note: Note, packed: Packed[Any]) -> "_Plan | None":
        """How the results of the compiled call are put together; `None` if not in this way."""
        try:
            return self._plans[id(note)]
        except KeyError:
            made = self._plans[id(note)] = _plan(note, self.signature, len(packed.leaves))
            return made


@dataclasses.dataclass(eq=False)
class _Plan:
    """How the new leaves are picked from the old ones and the arrays. Keeps its note alive."""

    note: Note
    single: bool
    pick: Callable[[Sequence[Any]], tuple[Any, ...]]

    def result(
        self, packed: Packed[Any], arrays: Sequence[Any], operands: Sequence[Any]
    ) -> tuple[Any, Packed[Any]]:
        """The output and the tree."""
        out = arrays[0] if self.single else self.note.result(arrays, operands)[0]
        leaves = self.pick((*packed.leaves, *arrays))
        return out, Packed(packed.form, leaves, packed._statics)


def _plan(note: Note, signature: Signature, n: int) -> _Plan | None:
    n_out = note.out_leaves.count(NEXT)
    places = list(range(n))
    position = n + n_out
    for index, treedef, count in note.writes:
        slot = signature.layout.slots[index]
        same = slot.is_leaf if treedef is None else treedef == slot.treedef
        if not same:
            return None
        start = slot.start - signature.n_fn
        places[start : start + count] = range(position, position + count)
        position += count
    if note.echoed or not places:
        return None
    single = n_out == 1 and note.out_leaves == [NEXT] and note.out_treedef == jtu.tree_structure(0)
    if n == 1:
        (place,) = places
        return _Plan(note, single, lambda pool: (pool[place],))
    return _Plan(note, single, operator.itemgetter(*places))


def packed_program(call: Call, entry: Any) -> PackedProgram:
    """The program for calls of this structure."""
    signature = call.signature
    fits = signature.arguments_with_states <= {(ARGS, 0)} and not signature.has_carrier
    return PackedProgram(entry, signature, not fits or bool(call.aliases))
