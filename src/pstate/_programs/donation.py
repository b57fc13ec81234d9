"""Which buffers a compiled call gives up.

Donation by filter gives up the buffer of a state that is overwritten; donation by argument gives up
an argument that is not used afterwards. So the buffers are only known after the trace, before
anything is compiled.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from .._calls.arguments import positions_of
from .._calls.call import Call
from .._calls.contract import Contract
from .._calls.flat_function import FlatFunction
from .._calls.notes import Note, Operand
from .._calls.signature import ARGS, KWARGS
from .._ground.errors import UnmatchedFilterWarning
from .._states.messages import warn


#: An argument of a call: its group, and its position or name.
Argument = tuple[int, Any]


@dataclasses.dataclass(eq=False)
class Donation(FlatFunction):
    """A function for calls of one structure that may give up buffers, by filter and by argument.

    `keeps_shardings` says that a written state goes back to the sharding that it came with.
    """

    keeps_shardings: ClassVar[bool] = False

    donate: Any
    donate_argnums: tuple[int, ...]
    donate_argnames: tuple[str, ...]

    @property
    def donates(self) -> bool:
        return self.donate is not None or bool(self.donate_argnums or self.donate_argnames)

    def donated(
        self, note: Note, outs: Sequence[Any], arrays: Sequence[Any], kept: Collection[Argument]
    ) -> tuple[int, ...]:
        """Which operands give up their buffers.

        `note` and `outs` are what a trace of the function returns; the `kept` arguments are used
        afterwards, so only their overwritten buffers can be given up.
        """
        supply = iter(outs[len(outs) - sum(count for _, _, count in note.writes) :])
        written = {index: [next(supply) for _ in range(count)] for index, _, count in note.writes}
        warn_of_idle_donation(self, self.donate, written)
        by_argument = self.by_argument()
        returned = {leaf.index for leaf in note.out_leaves if type(leaf) is Operand}
        static = {index for index, _ in self.statics}
        operands = [i for i in range(len(self.signature.layout.slot_of_leaf)) if i not in static]
        return tuple(
            position
            for position, leaf in enumerate(operands)
            if position not in returned
            and self._is_donated(leaf, arrays[position], written, by_argument, kept)
        )

    def by_argument(self) -> set[Argument]:
        """The arguments that give up their buffers, whether or not they are used afterwards."""
        n = self.signature.n_args
        for number in self.donate_argnums:
            if not -n <= number < n:
                raise ValueError(
                    f"donate_argnums={self.donate_argnums} of {self.described.fn} counts the arguments "
                    f"that the caller passes, and {n} were passed: positions {list(range(n))}. Write "
                    "donate_argnums=(0,)."
                )
        names = self.donate_argnames
        positions = positions_of(self.described.names, n, self.donate_argnums, names)
        by_keyword = {(KWARGS, name) for name in self.signature.keywords if name in names}
        return {(ARGS, position) for position in positions} | by_keyword

    def _is_donated(
        self,
        leaf: int,
        array: Any,
        written: dict[int, Any],
        by_argument: Collection[Argument],
        kept: Collection[Argument],
    ) -> bool:
        signature = self.signature
        argument = signature.argument(signature.layout.key_path_of_leaf[leaf])
        if argument in by_argument and argument not in kept:
            return True
        slot = signature.layout.slot_of_leaf[leaf]
        if slot is None or slot.index not in written:
            return False
        new = written[slot.index]
        same = len(new) == slot.stop - slot.start and _same_type(new[leaf - slot.start], array)
        return same and (argument in by_argument or self._selects(slot.index))

    def _selects(self, index: int) -> bool:
        slot = self.signature.layout.slots[index]
        return self.donate is not None and bool(self.donate(self.signature.path(index), slot.empty()))


def warn_of_idle_donation(function: FlatFunction, donate: Any, written: Collection[int]) -> None:
    """Warn if a filter selects none of the states that a function writes, and so donates nothing."""
    signature = function.signature
    slots = signature.layout.slots
    if donate is None or any(donate(signature.path(i), slots[i].empty()) for i in written):
        return
    writes = ", ".join(f"`{function.place(i)}`" for i in written) or "none"
    warn(
        f"donate={donate!r} of {function.described.fn} gives up nothing: it selects none of the "
        f"states that the function writes, which are {writes}. For an argument whose new tree is "
        "returned, name the argument: donate_argnums=(0,).",
        UnmatchedFilterWarning,
    )


def _same_type(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def kept_arguments(call: Call, contract: Contract | None) -> frozenset[Argument]:
    """The arguments that are used afterwards: those that `pure` gives back, and the live ones."""
    given = frozenset() if contract is None else frozenset(contract.arguments)
    if not call.is_live:
        return given
    arguments = call.signature.argument_of_slot
    pairs = zip(call.states, arguments, strict=True)
    return given | {argument for state, argument in pairs if state._cell is not None}


def with_buffers_of_their_own(arrays: list[Any], donated: Sequence[int]) -> list[Any]:
    """The operands, with copies of those donated buffers that are also at a second place."""
    buffers = list(map(_buffer, arrays)) if donated else []
    if len(set(buffers)) == len(buffers):
        return arrays
    arrays = list(arrays)
    for position in donated:
        if buffers.count(buffers[position]) > 1:
            arrays[position] = jnp.copy(arrays[position])
            buffers[position] = position
    return arrays


def _buffer(array: Any) -> Any:
    """A key for a buffer: two arrays may share one, for example after a `jax.device_put`."""
    try:
        return "at", array.unsafe_buffer_pointer()
    except (AttributeError, RuntimeError, TypeError, ValueError, NotImplementedError):
        return "object", id(array)  # spread over devices, no numbers, or no JAX array
