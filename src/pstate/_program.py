"""The program of a mapping: a flat function of arrays that runs the body once, in lanes.

It is built from what a call's structure and static leaves say, and from the options of the mapping.
Axes are planned when it runs, because they depend on shapes. Called directly it is inlined into
whatever trace is running; called through `jax.jit` it is traced once for each set of shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu
import numpy as np

from ._axes import InPlan
from ._call import Run, Writes, run_body
from ._cell import Deferred
from ._context import Context
from ._errors import AliasedStateError
from ._explain import Row, rows_of
from ._lanes import lane_key
from ._leaves import operand_mask
from ._outputs import NEXT, Leaving, Outputs
from ._record import alias_message


@dataclasses.dataclass(eq=False)
class Meta:
    """What a run of the program found out, beside its arrays.

    It is a pytree without leaves, so that it travels through `jax.jit` in the structure of the output.
    `out_leaves` has `NEXT` for each leaf that is the next array, and the leaf itself where it is
    static. `writes` lists `(slot, structure, count, soft)`; a soft write is one that the lanes did not
    make themselves. `rows` is empty unless they were asked for.
    """

    out_treedef: Any
    out_leaves: list[Any]
    writes: list[tuple[int, Any, int, bool]]
    echoed: tuple[tuple[int, str], ...]
    rows: list[Row]
    axis_size: int
    drawn: frozenset[int]

    def result(self, arrays: Sequence[Any]) -> tuple[Any, Writes, set[int]]:
        """The output, the writes, and which of them are soft."""
        supply = iter(arrays)
        out = self.out_treedef.unflatten(
            [next(supply) if leaf is NEXT else leaf for leaf in self.out_leaves]
        )
        values = {
            index: treedef.unflatten([next(supply) for _ in range(count)])
            for index, treedef, count, _ in self.writes
        }
        return out, Writes(values, self.drawn), {index for index, _, _, soft in self.writes if soft}


jtu.register_pytree_node(Meta, lambda meta: ((), meta), lambda meta, _: meta)


class Program(Context):
    """A mapping of one function, for calls of one structure: a flat function of arrays."""

    def __call__(self, *arrays: Any) -> tuple[list[Any], Meta]:
        leaves = self.leaves(arrays)
        return _Mapped(self, leaves, self.plan(leaves)).run()

    def explained(self, *arrays: Any) -> tuple[list[Any], Meta]:
        """The same, with the rows of `explain`, which a usual run would build for nothing."""
        leaves = self.leaves(arrays)
        return _Mapped(self, leaves, self.plan(leaves), wants_rows=True).run()


#: Where a key stands that lanes split: outside the groups.
_OUTSIDE = -1


class _Mapped:
    """One run of a program."""

    def __init__(self, program: Program, leaves: list[Any], plan: InPlan, wants_rows: bool = False):
        self.program = program
        self.wants_rows = wants_rows
        self.options = program.options
        self.signature = program.signature
        self.leaves = leaves
        self.plan = plan
        self.operands = [i for i, is_one in enumerate(operand_mask(leaves)) if is_one]
        self.split = [
            slot
            for slot in self.signature.layout.slots
            if slot.stop > slot.start and plan.leaves[slot.start].split
        ]
        withheld = {slot.start for slot in self.split}
        # A key that will be split stays outside the lanes until one of them draws.
        self.passed = [i for i in self.operands if i not in withheld]
        self.kept: dict[int, Any] = {}
        self.axes = self._possible_axes()
        self.meta: Meta | None = None
        self.positions: list[tuple[int, int]] = []
        self.reducers: dict[int, Callable[..., Any]] = {}

    # Outside the lanes ------------------------------------------------------------------------

    def run(self) -> tuple[list[Any], Meta]:
        options = self.options
        passed = [self.leaves[i] for i in self.passed]
        passed = [x.get() if type(x) is Deferred else x for x in passed]
        in_axes = [self.plan.leaves[i].axis for i in self.passed]
        mapped = options.mapping_fn(
            self.lane,
            in_axes=(0, in_axes),
            out_axes=self.axes,
            axis_name=options.axis_name,
            axis_size=self.plan.axis_size,
            **options.mapping_kwargs,
        )
        # The reference lane is mapped for certain; NumPy's, because nothing computes with it.
        groups = mapped(np.arange(self.plan.axis_size, dtype=np.int32), passed)
        assert self.meta is not None
        arrays = [
            self.kept[where] if group == _OUTSIDE else groups[group][where]
            for group, where in self.positions
        ]
        for position, reducer in self.reducers.items():
            arrays[position] = reducer(arrays[position])
        return arrays, self.meta

    def _possible_axes(self) -> tuple[int | None, ...]:
        """Every axis along which something could leave.

        Lanes return one group of arrays per axis, so that `out_axes` is known before they run.
        """
        declared = jtu.tree_leaves(self.options.out_axes)
        axes = {0, *declared, *(rule.axis for rule in self.options.rules_out)}
        axes |= {given.axis for given in self.plan.leaves}
        axes = {a for a in axes if isinstance(a, int)}
        return (None, *sorted(axes))

    # Inside a lane ----------------------------------------------------------------------------

    def lane(self, reference: Any, passed: Sequence[Any]) -> tuple[list[Any], ...]:
        leaves = list(self.leaves)
        for index, value in zip(self.passed, passed, strict=True):
            leaves[index] = value
        for slot in self.split:
            leaves[slot.start] = self._lane_key(reference, slot.index, leaves[slot.start])
        recording = self.program.recording(self.leaves)
        run = run_body(self.signature.treedef, leaves, recording)
        if run.aliased_out is not None:
            raise AliasedStateError(alias_message(*run.aliased_out))
        outputs = Outputs(self.program, self.leaves, self.plan, run, frozenset(self.kept))
        outputs.settle(reference)
        groups = self._grouped(outputs)
        self.meta = Meta(
            outputs.out_treedef,
            outputs.out_leaves,
            [(w.index, w.treedef, len(w.leaves) or int(w.kept), w.soft) for w in outputs.written],
            run.echoed,
            self._rows(run, outputs) if self.wants_rows else [],
            self.plan.axis_size,
            frozenset(w.index for w in outputs.written if w.kept) | run.writes.drawn,
        )
        return groups

    def _rows(self, run: Run, outputs: Outputs) -> list[Row]:
        described = self.program.described
        return rows_of(self.signature, described, self.leaves, self.plan, run, outputs)

    def _lane_key(self, reference: Any, index: int, key: Any) -> Deferred:
        def keep(first: Any) -> None:
            self.kept[index] = first

        place = self.program.place
        return Deferred(lambda: lane_key(reference, key, keep), key, lambda: place(index))

    def _grouped(self, outputs: Outputs) -> tuple[list[Any], ...]:
        groups: tuple[list[Any], ...] = tuple([] for _ in self.axes)

        def put(leaf: Leaving) -> None:
            if leaf.reducer is not None:
                self.reducers[len(self.positions)] = leaf.reducer
            group = self.axes.index(leaf.axis)
            self.positions.append((group, len(groups[group])))
            groups[group].append(leaf.value)

        for leaf in outputs.leaving:
            put(leaf)
        for state in outputs.written:
            if state.kept:
                self.positions.append((_OUTSIDE, state.index))
            for leaf in state.leaves:
                put(leaf)
        return groups
