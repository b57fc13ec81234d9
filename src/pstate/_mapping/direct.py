"""The lanes of a mapping run inside the mapping function itself."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu
import numpy as np

from .._states.deferred import Deferred, ForeignReadError
from .._states.keys import split_for_lanes
from .lane_sharding import LaneSharding, lane_sharding
from .lanes import Lanes, Meta, ordered
from .mapped_function import MappedFunction
from .plan import InPlan
from .probes import lane_key, which_differ


#: The place of a key that lanes split: outside the groups.
_OUTSIDE = -1


class DirectLanes(Lanes):
    """The body run inside the mapping function, which need not be told what leaves the lanes.

    Lanes return one group of arrays per axis, so that `out_axes` is known before they run.
    """

    def __init__(self, mapped: MappedFunction, leaves: list[Any], plan: InPlan, wants_rows: bool):
        super().__init__(mapped, leaves, plan, wants_rows)
        self.kept: dict[int, Any] = {}
        self.first: dict[int, Any] = {}
        self.positions: list[tuple[int, int]] = []
        self.reducers: dict[int, Callable[..., Any]] = {}
        self.found: Meta | None = None
        self.lies: LaneSharding | None = None
        self.axes = self._possible_axes()

    def run(self) -> tuple[list[Any], Meta]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self.options.infers:
            return self._run(self._split_outside())
        try:
            return self._run({})
        except ForeignReadError:
            # A lane first needs its key under a further trace, where it cannot be split. So the key is
            # split beforehand, and the body runs once more.
            if not self.split:
                raise
        keys = self._split_outside()
        self.kept, self.positions, self.reducers = {}, [], {}
        return self._run(keys)

    def _run(self, keys: dict[int, Any]) -> tuple[list[Any], Meta]:
        options = self.options
        operands, in_axes = self.operands(), self.in_axes()
        # The reference lane is always mapped; a NumPy array, because nothing computes with it. If the
        # lanes are on a mesh, it is an operand that is there.
        reference, axis = np.arange(self.plan.axis_size, dtype=np.int32), 0
        found = lane_sharding(operands, in_axes)
        if found is not None:
            position, self.lies = found
            reference, axis = operands[position], in_axes[position]
            keys = {index: self.lies.put(key, 0) for index, key in keys.items()}
        mapped = options.mapping_fn(
            self._lane,
            in_axes=(axis, in_axes, 0),
            out_axes=self.axes,
            axis_name=options.axis_name,
            axis_size=self.plan.axis_size,
            **options.mapping_kwargs,
        )
        groups = mapped(reference, operands, keys)
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

        For a mapping function that may not run the rules of `custom_vmap`.
        """
        keys = {}
        for slot in self.split:
            key = self.leaves[slot.start]
            key = key.value() if type(key) is Deferred else key
            self.first[slot.index], keys[slot.index] = split_for_lanes(key, self.plan.axis_size)
        return keys

    # Inside a lane ------------------------------------------------------------------------------

    def _lane(self, reference: Any, passed: Sequence[Any], keys: Any) -> tuple[list[Any], ...]:
        def lane_key_of(index: int) -> Callable[[bool], Any]:
            if index in keys:
                return lambda needed: keys[index]
            slot = self.signature.layout.slots[index]
            keep = lambda first: self.first.__setitem__(index, first)
            put = (
                (lambda own: own)
                if self.lies is None
                else (lambda own, lies=self.lies: lies.put(own, 0))
            )
            return lambda needed: lane_key(reference, self.leaves[slot.start], keep, needed, put)

        run, outputs = Lanes.run(self, passed, lane_key_of, self.kept, anywhere=bool(keys))
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
        Lanes.mark(self, index, needed)
        if needed:
            self.kept[index] = self.first[index]
        else:
            del self.kept[index]
