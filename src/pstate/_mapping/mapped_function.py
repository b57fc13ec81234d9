"""What is known about a mapping's calls without any arrays: options, structure, static leaves."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from .._calls.flat_function import FlatFunction
from .._ground.paths import Path
from .._programs.donation import warn_of_idle_donation
from .._states.state import State
from .._trees.axis_specs import Rule
from .._trees.leaves import operand_mask
from .._trees.unmatched import unmatched_rules, with_more
from ..filter import to_predicate
from .options import Options
from .plan import InPlan, plan_inputs


@dataclasses.dataclass(eq=False)
class MappedFunction(FlatFunction):
    """A mapping of one function, and calls of one structure."""

    options: Options

    def warn_of_idle_donation(self, written: Collection[int]) -> None:
        """Warn if the filter of `donate` selects none of the states that are written."""
        if self.options.donate is not None:
            warn_of_idle_donation(self, to_predicate(self.options.donate), written)

    def is_donated(self, leaf: int, writes: Sequence[tuple[Any, ...]]) -> bool:
        """Whether a leaf gives up its buffer: by its argument, or by filter if it is written."""
        options, signature = self.options, self.signature
        key_path = signature.layout.key_path_of_leaf[leaf]
        n = signature.n_args
        group, which = signature.argument(key_path)
        if group == 1 and which in {number % n for number in options.donate_argnums}:
            return True
        slot = signature.layout.slot_of_leaf[leaf]
        if slot is None or options.donate is None:
            return False
        structures = {index: treedef for index, treedef, _ in writes}
        if slot.index not in structures:
            return False
        structure = structures[slot.index]
        if not (slot.is_leaf if structure is None else structure == slot.treedef):
            return False
        chosen = to_predicate(options.donate)(signature.path(slot.index), slot.empty())
        return bool(chosen)

    def plan(self, leaves: Sequence[Any]) -> InPlan:
        options = self.options
        try:
            return plan_inputs(
                self.signature,
                leaves,
                operand_mask(leaves),
                options.in_axes,
                options.rules_in,
                options.axis_size,
                self.described,
            )
        except ValueError as error:
            states = self._states(leaves)
            raise with_more(error, self._unmatched("state_in_axes", options.rules_in, states)) from None

    def unmatched(self, leaves: Sequence[Any], made: Sequence[tuple[Path, State]]) -> list[str]:
        """The messages for filters that match no state, neither of a call nor one that it made."""
        came = self._states(leaves)
        return [
            *self._unmatched("state_in_axes", self.options.rules_in, came),
            *self._unmatched("state_out_axes", self.options.rules_out, [*came, *made]),
        ]

    def _states(self, leaves: Sequence[Any]) -> list[tuple[Path, State]]:
        slots = self.signature.layout.slots
        return [(self.signature.path(slot.index), slot.state(leaves)) for slot in slots]

    def _unmatched(
        self, option: str, rules: Sequence[Rule], states: Sequence[tuple[Path, State]]
    ) -> list[str]:
        return unmatched_rules(option, self.described.fn, rules, states)
