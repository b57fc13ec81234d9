"""The contract of `pure`: which states of a call may be written, because they are given back.

The *carriers* of a call are the arguments that are given back: positions of arguments, and `None` for
the carrier of the callable.
"""

import functools as ft
from collections.abc import Callable, Collection

from .._ground.errors import FrozenStateError
from .._ground.typing import Filter
from .._trees.guard import Guard
from .call import Call
from .edits import Edit, refuse_edit
from .signature import ARGS, FN, KWARGS


#: A carrier: the position of an argument, or `None` for the carrier of the callable.
Carrier = int | None


def carriers_of(
    call: Call, argnums: int | tuple[int, ...] | None, fn_code: Callable[[], str]
) -> tuple[Carrier, ...]:
    """The arguments that a call gives back.

    **Raises:** `TypeError` if no argument could be given back; `ValueError` for `argnums` that do
    not fit the call.
    """
    bound = (None,) if call.signature.has_carrier else ()
    if argnums is None:
        if not bound and not call.args:
            raise TypeError(
                f"pure({fn_code()}) threads the states of argument 0, but no positional "
                f"argument was passed. Pass the tree with the states first: "
                f"out, tree = ps.pure({fn_code()})(tree)."
            )
        return bound or (0,)
    positions = (argnums,) if isinstance(argnums, int) else argnums
    n = len(call.args)
    for position in positions:
        if not -n <= position < n:
            raise ValueError(
                f"argnums={argnums} of pure({fn_code()}) counts the arguments that "
                f"the caller passes, and {n} were passed: positions {list(range(n))}. Write "
                f"argnums={tuple(range(n))[:1] or 'None'}."
            )
    positions = tuple(position % n for position in positions)
    if len(set(positions)) < len(positions):
        raise ValueError(
            f"argnums={argnums} of pure({fn_code()}) names an argument twice. Write "
            f"argnums={tuple(dict.fromkeys(positions))}."
        )
    return positions if isinstance(argnums, int) else (*bound, *positions)


class Contract:
    """Which states of a call may be written: those of the carriers, within `writes`."""

    def __init__(self, call: Call, carriers: tuple[Carrier, ...], writes: Filter):
        self._call = call
        self._carriers = carriers
        self._writes = writes

    @property
    def arguments(self) -> set[tuple[int, Carrier]]:
        """The arguments that are given back."""
        return {(FN, None) if c is None else (ARGS, c) for c in self._carriers}

    def check_all(self, writes: Collection[int]) -> None:
        """Raise if one of these states may not be written."""
        if not self._allows_all:
            for index in writes:
                self.check(index)

    @ft.cached_property
    def _allows_all(self) -> bool:
        call = self._call
        simple = self._writes is ... and not call.aliases
        return simple and call.signature.arguments_with_states <= self.arguments

    def refuse_edits(self, edited: Collection[Edit], fn: str) -> None:
        """Raise if an argument that is given back was edited in place."""
        for edit in edited:
            if edit[0] in self.arguments:
                refuse_edit(edit, self._call.place_of, fn)

    @ft.cached_property
    def _guard(self) -> Guard:
        return self._call.guard(self._writes)

    def check(self, index: int) -> None:
        """Raise if the state at this index may not be written."""
        if self._allows_all:
            return
        self._guard.check(index)
        call = self._call
        signature = call.signature
        group, which = signature.argument(signature.layout.slots[index].key_path)
        if (None if group == FN else which) in self._carriers and group != KWARGS:
            return
        kind = type(call.states[index]).__name__
        start = f"`{call.place(index)}` ({kind}) was written, but "
        if group == KWARGS:
            raise FrozenStateError(
                f"{start}it came in the keyword argument {which!r}, which `pure` does not give back. "
                f"Pass it by position and include it in argnums: argnums=({len(call.args)},)."
            )
        if group == FN:
            raise FrozenStateError(
                f"{start}an integer argnums gives back that argument alone. A tuple gives back the "
                f"bound module too, first: argnums=({self._carriers[0]},)."
            )
        given = tuple(sorted({c for c in self._carriers if c is not None} | {which}))
        raise FrozenStateError(
            f"{start}argument {which} is not among those that `pure` gives back. Include it: "
            f"argnums={given}."
        )
