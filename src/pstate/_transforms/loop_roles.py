"""The role of each leaf of a loop's call: held from step to step, sliced, or the same in all steps.

A state of `xs` takes, in this order: the first rule of `state_in_axes` that matches; if it is a
`NonBatchState`, the carry; if it is a `SownState`, no axis; else what `in_axes` says of its place, as
arrays do. An empty state takes what its value would take. The carry, and the states of what the function
is bound to, are held. A `SownState` never is: what the steps write into it is stacked.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

from .._calls.flat_function import FlatFunction
from .._calls.signature import ARGS, FN, Described, Signature
from .._ground.errors import FrozenStateError, UnmatchedFilterWarning
from .._mapping.empty_states import axes_of_empty
from .._mapping.prefixes import spread_in_axes, spread_prefix
from .._states.cell import Cell
from .._states.kinds import NonBatchState, SownState
from .._states.messages import kind_code, warn
from .._trees.leaves import operand_mask
from .._trees.slots import Slot
from .._trees.unmatched import names_something, unmatched_message
from .carry import CARRY
from .loop_options import CARRIED, LoopOptions


class Roles:
    """The roles in calls of one structure.

    `carried` are the arrays of the carry, and `axes` has the axes along which leaves are sliced, in
    order. `of_slot` has the role of each state in `xs`.
    """

    def __init__(self, body: FlatFunction, options: LoopOptions, leaves: Sequence[Any]):
        self._body = body
        self._options = options
        signature = body.signature
        mask = operand_mask(leaves)
        arguments = [signature.argument(path) for path in signature.layout.key_path_of_leaf]
        in_carry = [options.has_carry and argument == CARRY for argument in arguments]
        in_xs = [a[0] == ARGS and not inside for a, inside in zip(arguments, in_carry, strict=True)]
        roles, self.of_slot = self._roles(leaves)
        self.carried = [i for i, inside in enumerate(in_carry) if inside and mask[i]]
        self.axes = {
            i: roles[i]
            for i, inside in enumerate(in_xs)
            if inside and mask[i] and roles[i] not in (None, CARRIED)
        }

    def is_held(self, slot: Slot) -> bool:
        """Whether a state goes from step to step."""
        group, _ = self._body.signature.argument_of_slot[slot.index]
        if group == FN:
            return not issubclass(slot.kind, SownState)
        return self.of_slot.get(slot.index, 0) == CARRIED

    def _roles(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[int, Any]]:
        signature, options = self._body.signature, self._options
        spread = lambda of, axes, leaves: _spread(of, axes, self._body.described, leaves, options)
        roles: list[Any] = list(spread(signature, options.in_axes, leaves))
        prefix = (None, options.in_axes) if options.has_carry else options.in_axes
        of_empty = axes_of_empty(
            signature,
            prefix,
            leaves,
            lambda of, axes, leaves: spread(of, axes[1] if options.has_carry else axes, leaves),
        )
        of_slot: dict[int, Any] = {}
        matched: set[int] = set()
        states: list[Any] = []
        for slot in signature.layout.slots:
            argument = signature.argument_of_slot[slot.index]
            if argument[0] != ARGS or (options.has_carry and argument == CARRY):
                continue
            state = slot.state(leaves)
            states.append(state)
            found = _first(options.state_in_axes, signature.path(slot.index), state)
            if found is not None:
                matched.add(found)
                role: Any = options.state_in_axes[found].role
            elif issubclass(slot.kind, NonBatchState):
                role = CARRIED
            elif issubclass(slot.kind, SownState):
                role = None
            elif slot.index in of_empty:
                role = of_empty[slot.index]
            else:
                role = self._of_its_leaves(slot, roles)
                of_slot[slot.index] = role
                continue
            of_slot[slot.index] = role
            roles[slot.start : slot.stop] = [role] * (slot.stop - slot.start)
        for k, rule in enumerate(options.state_in_axes):
            if k not in matched and names_something(rule.predicate):
                given = f"state_in_axes={{{rule.role!r}: {rule.predicate!r}}}"
                warn(unmatched_message(given, "xs", states), UnmatchedFilterWarning)
        return roles, of_slot

    def _of_its_leaves(self, slot: Slot, roles: Sequence[Any]) -> Any:
        own = roles[slot.start : slot.stop]
        if any(role != own[0] for role in own):
            parts, along = ("a part", "") if None in own else ("the parts", " along different axes")
            raise ValueError(
                f"in_axes slices {parts} of `{self._body.place(slot.index)}` "
                f"({slot.kind.__name__}){along}, but a state is sliced as a whole, along one axis, or "
                f"not at all. Give it one axis: state_in_axes={{0: {kind_code(slot.kind)}}}; or hold "
                "its parts in states of their own."
            )
        return own[0]

    def refuse_shared(self, cell: Cell) -> None:
        """Raise if a state that is the same in all steps was written."""
        index = cell.index
        if index not in self.of_slot or self.of_slot[index] is not None:
            return
        kind = self._body.signature.layout.slots[index].kind
        if issubclass(kind, SownState):
            return
        raise FrozenStateError(
            f"`{self._body.place(index)}` ({kind.__name__}) is the same in all steps of "
            f"{self._body.described.fn}, but was written in one of them. Carry it from step to step, "
            f"state_in_axes={{'carry': {kind_code(kind)}}}; or slice it, state_in_axes="
            f"{{0: {kind_code(kind)}}}, with a value for each step."
        )

    def refuse_no_axis(self, leaves: Sequence[Any]) -> None:
        """Raise if a leaf does not have the axis along which it is sliced."""
        body = self._body
        for i, axis in self.axes.items():
            ndim = leaves[i].ndim
            if ndim and not -ndim <= axis < ndim:
                place = body.place_of(body.signature.layout.key_path_of_leaf[i])
                raise ValueError(
                    f"`{place}` of {body.described.fn} is sliced along axis {axis}, but has shape "
                    f"{tuple(leaves[i].shape)}. Give an axis that it has, in_axes=0, or share it among "
                    "the steps, in_axes=None."
                )

    def out_axis(self, index: int, leaves: Sequence[Any]) -> int:
        """The axis along which the written slices of a state are stacked."""
        signature = self._body.signature
        state = signature.layout.slots[index].state(leaves)
        found = _first(self._options.state_out_axes, signature.path(index), state)
        if found is not None:
            return self._options.state_out_axes[found].role
        return 0 if self.of_slot.get(index) is None else self.of_slot[index]

    def out_axes(self, y: Any, leaves: Sequence[Any], is_array: Sequence[bool]) -> list[int]:
        """The axis along which each array of an output is stacked.

        **Raises:** `ValueError` if `out_axes` is not a prefix of the output, and for one that is
        `None`.
        """
        out_axes, fn = self._options.out_axes, self._body.described.fn
        axes: list[Any] = [None] * len(leaves)
        try:
            spread_prefix(out_axes, y, axes, 0, lambda axis, leaves: [axis] * len(leaves))
        except ValueError:
            raise ValueError(
                f"out_axes={out_axes!r} of {fn} is not a prefix of what its function returns, "
                f"{jtu.tree_structure(y)}. Give one axis for the whole of it: out_axes=0."
            ) from None
        found = [axis for axis, is_one in zip(axes, is_array, strict=True) if is_one]
        if None in found:
            raise ValueError(
                f"out_axes={out_axes!r} of {fn} gives no axis to an array that each step returns, but "
                "steps may return different ones. Stack it, out_axes=0; or keep the last one in the "
                "carry, or in a state."
            )
        return found


def _first(rules: Sequence[Any], path: Any, state: Any) -> int | None:
    return next((k for k, rule in enumerate(rules) if rule.predicate(path, state)), None)


def _spread(
    signature: Signature, in_axes: Any, described: Described, leaves: Sequence[Any], options: LoopOptions
) -> Sequence[Any]:
    """The axis of each leaf by `in_axes`: a prefix of `xs` in `scan`, as in mappings in `for_loop`."""
    if not options.has_carry:
        return spread_in_axes(signature, in_axes, described, leaves)
    try:
        return spread_in_axes(signature, (None, in_axes), described, leaves)
    except ValueError:
        xs = signature.treedef.children()[ARGS].children()[1]
        raise ValueError(
            f"in_axes={in_axes!r} of {described.fn} is not a prefix of the structure of xs, {xs}. Give "
            "one axis for the whole of it, in_axes=0, or a tree of axes like xs: in_axes={'a': 0}."
        ) from None


def sliced_first(leaf: Any, axis: int) -> Any:
    """A leaf with the axis along which a loop slices it moved to the front."""
    return leaf if axis == 0 else jnp.moveaxis(leaf, axis, 0)


def stacked_at(stacked: Any, axis: int, place: str, kind: type | None = None) -> Any:
    """Stacked slices, with the axis of the steps moved from the front to where it is wanted.

    `kind` is that of the state that they were written to, `None` for an output.

    **Raises:** `ValueError` if there is no such axis.
    """
    if axis == 0:
        return stacked
    if not -stacked.ndim <= axis < stacked.ndim:
        raise ValueError(
            f"`{place}` has shape {tuple(stacked.shape)} when it is stacked with the steps first, so "
            f"there is no axis {axis} for the steps. Write "
            f"{'out_axes=0' if kind is None else f'state_out_axes={{0: {kind_code(kind)}}}'}."
        )
    return jnp.moveaxis(stacked, 0, axis)
