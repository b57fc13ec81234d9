"""One run of a mapping's body, for one lane, and what it means for the mapping.

The part that all engines share: choosing the leaves that are passed to the lanes, running the body
with live states, and ordering the arrays that come back.
"""

import dataclasses
import functools as ft
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.notes import Note, write_note
from .._calls.running import Run, run_body
from .._ground.errors import AliasedStateError
from .._states.deferred import Deferred
from .._trees.aliases import alias_message
from .._trees.leaves import operand_mask
from .explaining import Row, rows_of
from .leaving import Outputs


@dataclasses.dataclass(eq=False)
class Meta(Note):
    """The results of a run of the program other than its arrays.

    `soft` are the writes that the lanes did not make themselves. `rows` is empty unless requested,
    and so are the `problems`, which raise in any other run.
    """

    soft: frozenset[int]
    rows: list[Row]
    problems: list[str]
    axis_size: int


jtu.register_pytree_node(Meta, lambda meta: ((), meta), lambda meta, _: meta)


class Lanes:
    """The body of a mapping for the leaves of one call.

    `passed` are the operands that go into every lane; `split` the slots of the random states that are
    split, whose keys stay outside until a lane draws.
    """

    # `mapped` and `plan` are a `MappedFunction` and an `InPlan`, or their counterparts for shards.
    def __init__(self, mapped: Any, leaves: list[Any], plan: Any, wants_rows: bool = False):
        self.mapped = mapped
        self.options = mapped.options
        self.signature = mapped.signature
        self.leaves = leaves
        self.plan = plan
        self.wants_rows = wants_rows
        self.split = [
            slot
            for slot in self.signature.layout.slots
            if slot.stop > slot.start and plan.leaves[slot.start].split
        ]
        withheld = {slot.start for slot in self.split}
        self.passed = [
            i for i, is_one in enumerate(operand_mask(leaves)) if is_one and i not in withheld
        ]

    def operands(self) -> list[Any]:
        """The operands that are passed to the lanes, mapped along `in_axes()`."""
        passed = [self.leaves[i] for i in self.passed]
        return [x.get() if type(x) is Deferred else x for x in passed]

    def in_axes(self) -> list[int | None]:
        return [self.plan.leaves[i].axis for i in self.passed]

    def run(
        self,
        passed: Sequence[Any],
        lane_key: Callable[[int], Callable[[bool], Any]],
        drawn: Any,
        anywhere: bool,
    ) -> tuple[Run, Any]:
        """Run the body on the operands of one lane.

        `lane_key(index)(needed)` returns the lane's key of a split random state, when it is first
        needed; `drawn` is the collection of those that were needed, and is read after the run.
        `anywhere` says that the keys already exist.
        """
        leaves = list(self.leaves)
        for index, value in zip(self.passed, passed, strict=True):
            leaves[index] = value
        for slot in self.split:
            leaves[slot.start] = self._deferred(lane_key(slot.index), slot.index, slot.start, anywhere)
        lines: dict[int, str] = {}
        recording = self.mapped.recording(self.leaves, lines=lines)
        try:
            run = run_body(self.signature, leaves, recording, self.mapped.place_of)
        except NameError as error:
            _say_who_names(error, self.mapped.described.fn)
            raise
        if run.aliased_out is not None:
            raise AliasedStateError(alias_message(*run.aliased_out))
        return run, self.outputs_of(run, frozenset(drawn), lines)

    def outputs_of(self, run: Run, drawn: frozenset[int], lines: dict[int, str]) -> Any:
        """The values that leave the lanes of a run, and along which axes."""
        return Outputs(self.mapped, self.leaves, self.plan, run, drawn, lines, lenient=self.wants_rows)

    def rows(self, run: Run, outputs: Any) -> list[Row]:
        """The rows of `explain`."""
        described = self.mapped.described
        return rows_of(self.signature, described, self.leaves, self.plan, run, outputs)

    def mark(self, index: int, needed: bool) -> None:
        """Note whether the lanes need their keys of a split random state."""
        key = self.leaves[self.signature.layout.slots[index].start]
        if type(key) is Deferred:
            key.get() if needed else key.release()

    def _deferred(self, make: Callable[[bool], Any], index: int, leaf: int, anywhere: bool) -> Deferred:
        mapped = self.mapped
        mark = ft.partial(self.mark, index)
        return Deferred(make, self.leaves[leaf], lambda: mapped.place(index), anywhere, mark)

    def meta(self, run: Run, outputs: Any) -> Meta:
        rows = self.rows(run, outputs) if self.wants_rows else []
        return Meta(
            outputs.out_treedef,
            outputs.out_leaves,
            [write_note(w.index, w.treedef, len(w.leaves) or int(w.kept)) for w in outputs.written],
            run.echoed,
            run.reads,
            run.edited,
            frozenset(w.index for w in outputs.written if w.soft),
            rows,
            outputs.problems,
            self.plan.axis_size,
        )


def _say_who_names(error: NameError, fn: str) -> None:
    """Add to JAX's error of an unbound axis name which call could have bound it."""
    found = re.search(r"unbound axis name: (\w+)", str(error))
    if found and not hasattr(error, "__notes__"):
        error.add_note(
            f"No mapping around the collective names the axis {found[1]!r}. The innermost is {fn}; name "
            f"the axis there, axis_name={found[1]!r}, or in the mapping over whose lanes it should "
            "reduce."
        )


def ordered(outputs: Any) -> list[Any]:
    """The results for the caller, in order: leaves that leave the lanes, and slots with split keys.

    A leaf is a `Leaving`, or its counterpart for shards; a slot is its index.
    """
    order: list[Any] = list(outputs.leaving)
    for state in outputs.written:
        order += [state.index] if state.kept else []
        order += state.leaves
    return order
