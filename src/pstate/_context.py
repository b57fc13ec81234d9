"""What is known of a mapping's calls before any array is seen: options, structure, static leaves."""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ._axes import Described, InPlan, plan_inputs
from ._call import Signature
from ._cell import Recording
from ._leaves import operand_mask
from ._options import Options
from ._record import Guard
from ._state import make_frozen
from .filter import to_predicate


#: Stands for the anchor among the static leaves of a program, which must not keep it alive.
ANCHOR = object()


def anchor_ref(anchor: Any) -> Callable[[], Any]:
    """A weak reference, where there can be one."""
    try:
        return weakref.ref(anchor)
    except TypeError:
        return lambda: anchor


@dataclasses.dataclass(eq=False)
class Context:
    """A mapping of one function, and calls of one structure.

    `statics` lists the leaves that are no operands, with their indices.
    """

    options: Options
    signature: Signature
    statics: tuple[tuple[int, Any], ...]
    anchor: Any
    aliases: tuple[tuple[int, int], ...]
    described: Described

    def leaves(self, arrays: Sequence[Any]) -> list[Any]:
        """All leaves of the call, from its operands."""
        result = list(arrays)
        for index, leaf in self.statics:
            result.insert(index, self.anchor() if leaf is ANCHOR else leaf)
        return result

    def place(self, index: int) -> str:
        signature = self.signature
        return signature.place(signature.layout.slots[index].key_path, self.described.names)

    def recording(self, leaves: Sequence[Any]) -> Recording:
        """A recording for one lane. Filters and messages see the states as they came in."""
        signature = self.signature
        guard = Guard(
            self.place,
            signature.path,
            lambda index: signature.layout.slots[index].state(leaves),
            self.aliases,
        )
        return Recording(self.place, guard=guard, title=self.described.fn)

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
        structures = {index: treedef for index, treedef, *_ in writes}
        if slot.index not in structures:
            return False
        structure = structures[slot.index]
        if not (slot.is_leaf if structure is None else structure == slot.treedef):
            return False
        placeholder = make_frozen(slot.kind, slot.tag, None)
        chosen = to_predicate(options.donate)(signature.path(slot.index), placeholder)
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
