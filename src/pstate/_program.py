"""The program of a mapping: a flat function of arrays that runs the body once, in lanes.

It is built from what a call's structure and static leaves say, and from the options of the mapping.
Axes are planned when it runs, because they depend on shapes. Called directly it is inlined into
whatever trace is running; called through `jax.jit` it is traced once for each set of shapes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from ._axes import InPlan
from ._cell import Deferred, ForeignReadError
from ._context import Context
from ._lane_body import LaneBody, Meta, ordered
from ._lanes import lane_key, which_differ
from ._replay import Replay


class Program(Context):
    """A mapping of one function, for calls of one structure: a flat function of arrays."""

    def __call__(self, *arrays: Any) -> tuple[list[Any], Meta]:
        return self._run(arrays, wants_rows=False)

    def explained(self, *arrays: Any) -> tuple[list[Any], Meta]:
        """The same, with the rows of `explain`, which a usual run would build for nothing."""
        return self._run(arrays, wants_rows=True)

    def replay(self, leaves: list[Any]) -> Replay:
        """The body traced for the leaves of a call, to be run on others of the same shapes."""
        replay = Replay(self, leaves, self.plan(leaves))
        replay.prepare()
        return replay

    def _run(self, arrays: Sequence[Any], wants_rows: bool) -> tuple[list[Any], Meta]:
        leaves = self.leaves(arrays)
        plan = self.plan(leaves)
        if self.options.replays(plan.axis_size):
            return Replay(self, leaves, plan, wants_rows).run()
        return _Direct(self, leaves, plan, wants_rows).run()


#: Where a key stands that lanes split: outside the groups.
_OUTSIDE = -1


class _Direct(LaneBody):
    """The body run inside the mapping function itself, which need not be told what leaves the lanes.

    Lanes return one group of arrays per axis, so that `out_axes` is known before they run.
    """

    def __init__(self, context: Context, leaves: list[Any], plan: InPlan, wants_rows: bool):
        super().__init__(context, leaves, plan, wants_rows)
        self.kept: dict[int, Any] = {}
        self.first: dict[int, Any] = {}
        self.positions: list[tuple[int, int]] = []
        self.reducers: dict[int, Callable[..., Any]] = {}
        self.found: Meta | None = None
        self.axes = self._possible_axes()

    def run(self) -> tuple[list[Any], Meta]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self.options.infers:
            return self._run(self._split_outside())
        try:
            return self._run({})
        except ForeignReadError:
            # A lane first needs its key under a further trace, where it cannot be split. So it is split
            # before, and the body runs once more.
            if not self.split:
                raise
        keys = self._split_outside()
        self.kept, self.positions, self.reducers = {}, [], {}
        return self._run(keys)

    def _run(self, keys: dict[int, Any]) -> tuple[list[Any], Meta]:
        options = self.options
        mapped = options.mapping_fn(
            self._lane,
            in_axes=(0, self.in_axes(), 0),
            out_axes=self.axes,
            axis_name=options.axis_name,
            axis_size=self.plan.axis_size,
            **options.mapping_kwargs,
        )
        # The reference lane is mapped for certain; NumPy's, because nothing computes with it.
        reference = np.arange(self.plan.axis_size, dtype=np.int32)
        groups = mapped(reference, self.operands(), keys)
        assert self.found is not None
        arrays = [
            self.kept[where] if group == _OUTSIDE else groups[group][where]
            for group, where in self.positions
        ]
        for position, reducer in self.reducers.items():
            arrays[position] = reducer(arrays[position])
        return arrays, self.found

    def _possible_axes(self) -> tuple[int | None, ...]:
        declared = jtu.tree_leaves(self.options.out_axes)
        axes = {0, *declared, *(rule.axis for rule in self.options.rules_out)}
        axes |= {given.axis for given in self.plan.leaves}
        axes = {a for a in axes if isinstance(a, int)}
        return (None, *sorted(axes))

    def _split_outside(self) -> dict[int, Any]:
        """Keys that are split before the lanes run, whether or not they draw.

        For a mapping function that is not known to run the rules of `custom_vmap`.
        """
        keys = {}
        for slot in self.split:
            key = self.leaves[slot.start]
            key = key.value() if type(key) is Deferred else key
            both = jr.split(key, self.plan.axis_size + 1)
            self.first[slot.index], keys[slot.index] = both[0], both[1:]
        return keys

    # Inside a lane ------------------------------------------------------------------------------

    def _lane(self, reference: Any, passed: Sequence[Any], keys: Any) -> tuple[list[Any], ...]:
        def lane_key_of(index: int) -> Callable[[bool], Any]:
            if index in keys:
                return lambda needed: keys[index]
            slot = self.signature.layout.slots[index]
            keep = lambda first: self.first.__setitem__(index, first)
            return lambda needed: lane_key(reference, self.leaves[slot.start], keep, needed)

        run, outputs = LaneBody.run(self, passed, lane_key_of, self.kept, anywhere=bool(keys))
        outputs.settle(lambda asked: which_differ(reference, [leaf.value for leaf in asked]))
        self.found = self.meta(run, outputs)
        groups: tuple[list[Any], ...] = tuple([] for _ in self.axes)
        for item in ordered(outputs):
            if isinstance(item, int):
                self.positions.append((_OUTSIDE, item))
                continue
            if item.reducer is not None:
                self.reducers[len(self.positions)] = item.reducer
            group = self.axes.index(item.axis)
            self.positions.append((group, len(groups[group])))
            groups[group].append(item.value)
        return groups

    def mark(self, index: int, needed: bool) -> None:
        LaneBody.mark(self, index, needed)
        if needed:
            self.kept[index] = self.first[index]
        else:
            del self.kept[index]
