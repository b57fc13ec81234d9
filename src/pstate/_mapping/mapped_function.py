"""What is known of a mapping's calls before any array is seen: options, structure, static leaves."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from .._calls.flat_function import FlatFunction
from .._trees.leaves import operand_mask
from ..filter import to_predicate
from .options import Options
from .plan import InPlan, plan_inputs


@dataclasses.dataclass(eq=False)
class MappedFunction(FlatFunction):
    """A mapping of one function, and calls of one structure."""

    options: Options

    def is_donated(self, leaf: int, writes: Sequence[tuple[Any, ...]]) -> bool:
        """Whether a leaf gives up its buffer: by the argument it is in, or by filter and if written."""
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
        return plan_inputs(
            self.signature,
            leaves,
            operand_mask(leaves),
            options.in_axes,
            options.rules_in,
            options.axis_size,
            self.described,
        )
