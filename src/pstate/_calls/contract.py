"""The contract of `pure`: which states of a call may be written, because somebody gives them back."""

import functools as ft
from collections.abc import Collection

from .._ground.errors import FrozenStateError
from .._ground.typing import Filter
from .._trees.guard import Guard
from .call import Call
from .signature import ARGS, FN


class Contract:
    """Which states of a call may be written: those of the carriers, within `writes`."""

    def __init__(self, call: Call, carriers: tuple[int | None, ...], writes: Filter):
        self._call = call
        self._carriers = carriers
        self._writes = writes

    @property
    def arguments(self) -> set[tuple[int, int | None]]:
        """The arguments that are given back."""
        return {(FN, None) if c is None else (ARGS, c) for c in self._carriers}

    def check_all(self, writes: Collection[int]) -> None:
        """Raise if one of these states may not be written."""
        call, given = self._call, self.arguments
        simple = self._writes is ... and not call.aliases
        if simple and call.signature.arguments_with_states <= given:
            return
        for index in writes:
            self.check(index)

    @ft.cached_property
    def _guard(self) -> Guard:
        return self._call.guard(self._writes)

    def check(self, index: int) -> None:
        """Raise if the state of this index may not be written."""
        self._guard.check(index)
        call = self._call
        signature = call.signature
        group, which = signature.argument(signature.layout.slots[index].key_path)
        if (None if group == 0 else which) in self._carriers and group != 2:
            return
        kind = type(call.states[index]).__name__
        start = f"`{call.place(index)}` ({kind}) was written, but "
        if group == 2:
            raise FrozenStateError(
                f"{start}it came in the keyword argument {which!r}, which `pure` does not give back. "
                f"Pass it by position and count it in argnums: argnums=({len(call.args)},)."
            )
        if group == 0:
            raise FrozenStateError(
                f"{start}an integer argnums gives back that argument alone. A tuple gives back the "
                f"bound module too, first: argnums=({self._carriers[0]},)."
            )
        given = tuple(sorted({c for c in self._carriers if c is not None} | {which}))
        raise FrozenStateError(
            f"{start}argument {which} is not among those that `pure` gives back. Count it: "
            f"argnums={given}."
        )
