"""One run of a mapping's body, for one lane, and what it means to the mapping.

What is common to all engines: which leaves are passed to the lanes, running the body with live states,
and putting the arrays that come back into order.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu

from ._axes import InPlan
from ._call import Run, Writes, run_body
from ._cell import Deferred
from ._context import Context
from ._errors import AliasedStateError
from ._explain import Row, rows_of
from ._leaves import operand_mask
from ._outputs import NEXT, Leaving, Outputs, Written
from ._record import alias_message


@dataclasses.dataclass(eq=False)
class Meta:
    """What a run of the program found out, beside its arrays.

    It is a pytree without leaves, so that it travels through `jax.jit` in the structure of the output.
    `out_leaves` has `NEXT` for each leaf that is the next array, and the leaf itself where it is
    static. `writes` lists `(slot, structure, count, soft)`, without a structure where the value is one
    array; a soft write is one that the lanes did not make themselves. `rows` is empty unless they were
    asked for, and so are the `problems`, which raise in any other run.
    """

    out_treedef: Any
    out_leaves: list[Any]
    writes: list[tuple[int, Any, int, bool]]
    echoed: tuple[tuple[int, str], ...]
    rows: list[Row]
    problems: list[str]
    axis_size: int

    def result(self, arrays: Sequence[Any]) -> tuple[Any, Writes, set[int]]:
        """The output, the writes, and which of them are soft."""
        supply = iter(arrays)
        out = self.out_treedef.unflatten(
            [next(supply) if leaf is NEXT else leaf for leaf in self.out_leaves]
        )
        writes = {
            index: next(supply)
            if treedef is None
            else treedef.unflatten([next(supply) for _ in range(count)])
            for index, treedef, count, _ in self.writes
        }
        return out, writes, {index for index, _, _, soft in self.writes if soft}


jtu.register_pytree_node(Meta, lambda meta: ((), meta), lambda meta, _: meta)


_LEAF = jtu.tree_structure(0)


class LaneBody:
    """The body of a mapping for the leaves of one call.

    `passed` are the operands that go into every lane; `split` the slots of the random states that are
    split, whose keys stay outside until a lane draws.
    """

    def __init__(self, context: Context, leaves: list[Any], plan: InPlan, wants_rows: bool = False):
        self.context = context
        self.options = context.options
        self.signature = context.signature
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
        """What is passed to the lanes, and is mapped along `in_axes()`."""
        passed = [self.leaves[i] for i in self.passed]
        return [x.get() if type(x) is Deferred else x for x in passed]

    def in_axes(self) -> list[int | None]:
        return [self.plan.leaves[i].axis for i in self.passed]

    def run(
        self,
        passed: Sequence[Any],
        lane_key: Callable[[int], Callable[[], Any]],
        drawn: Any,
        anywhere: bool,
    ) -> tuple[Run, Outputs]:
        """Run the body on the operands of one lane.

        `lane_key(index)()` gives the lane's key of a split random state, when it is first needed;
        `drawn` is the collection of those that were needed, and is looked at after the run. `anywhere`
        says that the keys exist already.
        """
        leaves = list(self.leaves)
        for index, value in zip(self.passed, passed, strict=True):
            leaves[index] = value
        for slot in self.split:
            leaves[slot.start] = self._deferred(lane_key(slot.index), slot.index, slot.start, anywhere)
        recording = self.context.recording(self.leaves)
        try:
            run = run_body(self.signature.treedef, leaves, recording)
        except NameError as error:
            _say_who_names(error, self.context.described.fn)
            raise
        if run.aliased_out is not None:
            raise AliasedStateError(alias_message(*run.aliased_out))
        outputs = Outputs(
            self.context, self.leaves, self.plan, run, frozenset(drawn), lenient=self.wants_rows
        )
        return run, outputs

    def _deferred(self, make: Callable[[], Any], index: int, leaf: int, anywhere: bool) -> Deferred:
        context = self.context
        return Deferred(make, self.leaves[leaf], lambda: context.place(index), anywhere)

    def meta(self, run: Run, outputs: Outputs) -> Meta:
        described = self.context.described
        rows = (
            rows_of(self.signature, described, self.leaves, self.plan, run, outputs)
            if self.wants_rows
            else []
        )
        return Meta(
            outputs.out_treedef,
            outputs.out_leaves,
            [_as_write(written) for written in outputs.written],
            run.echoed,
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


def _as_write(written: Written) -> tuple[int, Any, int, bool]:
    count = len(written.leaves) or int(written.kept)
    single = count == 1 and written.treedef == _LEAF
    return written.index, None if single else written.treedef, count, written.soft


def ordered(outputs: Outputs) -> list[Leaving | int]:
    """What the caller gets, in order: leaves that leave the lanes, and slots whose keys were split."""
    order: list[Leaving | int] = list(outputs.leaving)
    for state in outputs.written:
        order += [state.index] if state.kept else []
        order += state.leaves
    return order
