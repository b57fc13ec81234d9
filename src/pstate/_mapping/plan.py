"""The plan: the axis of each leaf, and the reason.

A state going in takes, in this order: the first rule of `state_in_axes` that matches; if it is a
`NonBatchState` or a `SownState`, no axis; if it is a `RandomState` whose key, or keys, all lanes share,
a key per lane, of each; else its argument's `in_axes`. An empty state takes what its value would take.
Arrays outside states take their argument's `in_axes`. Nothing is guessed from sizes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .._calls.signature import ARGS, Described, Signature
from .._ground.errors import BatchAxisError
from .._states.kinds import NonBatchState, SownState
from .._states.messages import kind_code
from .._states.random_state import RandomState, shape_of_keys
from .._trees.axis_specs import Rule
from .._trees.slots import Slot
from .advice import all_alike, broadcast_argument, broadcast_code, with_none
from .empty_states import axes_of_empty
from .prefixes import spread_in_axes


@dataclasses.dataclass(frozen=True)
class Input:
    """How a leaf goes in: its axis (`None`: the same in all lanes) and the reason.

    `ruled` says that a filter of `state_in_axes` gave it the axis.
    """

    axis: int | None
    reason: str
    split: bool = False
    ruled: bool = False


@dataclasses.dataclass(frozen=True)
class InPlan:
    """How each leaf goes in, and how many lanes there are."""

    leaves: tuple[Input, ...]
    axis_size: int
    #: By slot, how a state that came in empty would go in, if it had a value.
    empty: Mapping[int, Input]

    def of(self, slot: Slot) -> Input | None:
        """How a state goes in; `None` for an empty one."""
        return self.leaves[slot.start] if slot.stop > slot.start else None


def plan_inputs(
    signature: Signature,
    leaves: Sequence[Any],
    is_array: Sequence[bool],
    in_axes: Any,
    rules: Sequence[Rule],
    axis_size: int | None,
    described: Described,
) -> InPlan:
    """Decide how each leaf of a call goes in.

    **Raises:** `ValueError` for an `in_axes` that does not fit the arguments, an axis that a leaf
    does not have, sizes that disagree, and if there is nothing to take a size from;
    `BatchAxisError` for an axis that a rule gives to a state that does not have it.
    """
    by_argument = spread_in_axes(signature, in_axes, described, leaves)
    inputs = [
        Input(axis, f"in_axes={axis}") if array else Input(None, "no array")
        for axis, array in zip(by_argument, is_array, strict=True)
    ]
    spread = lambda of, axes, leaves: spread_in_axes(of, axes, described, leaves)
    empty_axes = axes_of_empty(signature, in_axes, leaves, spread)
    empty = {index: Input(axis, f"in_axes={axis}") for index, axis in empty_axes.items()}
    for slot in signature.layout.slots:
        ruled = _ruled(signature, slot, leaves, rules, by_argument)
        if ruled is not None and slot.index in empty:
            empty[slot.index] = ruled
        elif ruled is not None:
            inputs[slot.start : slot.stop] = [ruled] * (slot.stop - slot.start)
    for i, (leaf, given) in enumerate(zip(leaves, inputs, strict=True)):
        if given.axis is not None and not -len(leaf.shape) <= given.axis < len(leaf.shape):
            _refuse_axis(signature, leaves, inputs, i, axis_size, described)
    size = _axis_size(signature, leaves, inputs, axis_size, described)
    return InPlan(tuple(inputs), size, empty)


def _ruled(
    signature: Signature,
    slot: Slot,
    leaves: Sequence[Any],
    rules: Sequence[Rule],
    by_argument: Sequence[int | None],
) -> Input | None:
    state = slot.state(leaves)
    path = signature.path(slot.index)
    for rule in rules:
        if rule.predicate(path, state):
            return Input(rule.axis, f"state_in_axes {rule}", ruled=True)
    if issubclass(slot.kind, NonBatchState):
        return Input(None, "NonBatchState")
    if issubclass(slot.kind, SownState):
        return Input(None, "SownState")
    batch = shape_of_keys(state)
    if batch == () or (batch is not None and by_argument[slot.start] is None):
        return Input(None, f"RandomState: a key{'' if batch == () else ' of each'} per lane", split=True)
    return None


def _refuse_axis(
    signature: Signature,
    leaves: Sequence[Any],
    inputs: Sequence[Input],
    index: int,
    axis_size: int | None,
    described: Described,
) -> None:
    leaf, given = leaves[index], inputs[index]
    place = signature.place(signature.layout.key_path_of_leaf[index], described.names)
    slot = signature.layout.slot_of_leaf[index]
    kind = f" ({slot.kind.__name__})" if slot is not None else ""
    said = f"{given.reason} maps axis {given.axis} of `{place}`{kind}"
    got = f"which has shape {tuple(leaf.shape)}"
    if slot is None:
        group, which = signature.argument(signature.layout.key_path_of_leaf[index])
        raise ValueError(
            f"{said}, {got} and so no such axis. Broadcast it, or name an axis that it has: "
            f"{broadcast_argument(group, which, signature.n_args)}."
        )
    if issubclass(slot.kind, RandomState):
        raise BatchAxisError(
            f"{said}, {got}: one key, not a batch. Leave it out of state_in_axes, and each lane gets "
            "its own key; or share it: state_in_axes={None: ps.RandomState}."
        )
    raise BatchAxisError(
        f"{said}, {got} and so no such axis. Broadcast it with "
        f"state_in_axes={{None: {kind_code(slot.kind)}}}, or give it a lane axis first: "
        f"{_give_lanes(signature, leaves, inputs, slot, axis_size, described)}."
    )


def _give_lanes(
    signature: Signature,
    leaves: Sequence[Any],
    inputs: Sequence[Input],
    slot: Slot,
    axis_size: int | None,
    described: Described,
) -> str:
    """The line that gives the lanes of the call to a state that should have lanes."""
    axis = inputs[slot.start].axis
    assert axis is not None
    n = _lanes_meant(signature, leaves, inputs, axis_size)

    def needs(other: Slot) -> bool:
        pairs = zip(leaves[other.start : other.stop], inputs[other.start : other.stop], strict=True)
        return any(given.axis == axis and (n is None or _size(leaf, axis) != n) for leaf, given in pairs)

    by_kind = all_alike(signature, slot, needs)
    return broadcast_code(signature, described.names, slot, axis, 4 if n is None else n, by_kind)


def _size(leaf: Any, axis: int) -> int | None:
    """The size of an axis; `None` if it does not exist."""
    return leaf.shape[axis] if -len(leaf.shape) <= axis < len(leaf.shape) else None


def _lanes_meant(
    signature: Signature, leaves: Sequence[Any], inputs: Sequence[Input], axis_size: int | None
) -> int | None:
    """The intended number of lanes, by option, by arrays, or by states; `None` if it is unclear."""
    if axis_size is not None:
        return axis_size
    mapped = [
        (_size(leaf, given.axis), slot is None)
        for leaf, given, slot in zip(leaves, inputs, signature.layout.slot_of_leaf, strict=True)
        if given.axis is not None
    ]
    for sizes in ({size for size, is_array in mapped if is_array}, {size for size, _ in mapped}):
        sizes.discard(None)
        if sizes:
            return sizes.pop() if len(sizes) == 1 else None
    return None


# How many lanes -----------------------------------------------------------------------------------


def _axis_size(
    signature: Signature,
    leaves: Sequence[Any],
    inputs: Sequence[Input],
    axis_size: int | None,
    described: Described,
) -> int:
    mapped = [(i, leaves[i].shape[x.axis]) for i, x in enumerate(inputs) if x.axis is not None]
    sizes = {size for _, size in mapped} | ({axis_size} if axis_size is not None else set())
    if len(sizes) == 1:
        return sizes.pop()
    if not sizes:
        raise ValueError(
            f"{described.fn} maps no array, so there is nothing to take the number of lanes from: "
            f"{_no_arrays(signature)}. Pass it: axis_size=4."
        )
    lines = [
        f"    {signature.place(signature.layout.key_path_of_leaf[i], described.names)}: shape "
        f"{tuple(leaves[i].shape)}, axis {inputs[i].axis} of size {size} ({inputs[i].reason})"
        for i, size in mapped
    ]
    if axis_size is not None:
        lines.append(f"    axis_size={axis_size}")
    raise ValueError(
        f"{described.fn} got arrays whose mapped axes differ in size:\n"
        + "\n".join(lines)
        + f"\n{_advice(signature, leaves, inputs, described, axis_size)}"
    )


def _state_that_lacks_lanes(
    signature: Signature, leaves: Sequence[Any], inputs: Sequence[Input], axis_size: int | None
) -> Slot | None:
    """The first state that a filter maps along an axis of another size, if everything else agrees."""
    n = _lanes_meant(signature, leaves, inputs, axis_size)
    found: list[Slot] = []
    for leaf, given, slot in zip(leaves, inputs, signature.layout.slot_of_leaf, strict=True):
        if n is None or given.axis is None or _size(leaf, given.axis) == n:
            continue
        if slot is None or not given.ruled or issubclass(slot.kind, RandomState):
            return None
        found.append(slot)
    return found[0] if found else None


def _no_arrays(signature: Signature) -> str:
    n = signature.n_args
    return "no arguments were passed" if n == 0 else f"all {n} arguments are broadcast"


def _advice(
    signature: Signature,
    leaves: Sequence[Any],
    inputs: Sequence[Input],
    described: Described,
    axis_size: int | None,
) -> str:
    lacking = _state_that_lacks_lanes(signature, leaves, inputs, axis_size)
    if lacking is not None:
        place = signature.place(lacking.key_path, described.names)
        code = _give_lanes(signature, leaves, inputs, lacking, axis_size, described)
        return f"To give each lane its own `{place}`, make its lane axis first: {code}."
    if described.first_is_tree and signature.n_args > 1:
        tree = described.names[0] if described.names else "model"
        nones = ", ".join(["None"] + ["0"] * (signature.n_args - 1))
        return (
            f"To share `{tree}` among the lanes, broadcast it: in_axes=({nones}); or map the module "
            f"itself, which in_axes then leaves out: ps.vmap2({tree})."
        )
    if axis_size is not None:
        return "Leave axis_size out, or make the mapped axes agree with it."
    return f"Broadcast the arguments that all lanes share: {with_none(0, signature.n_args)}."


def first_argument_is_a_tree(signature: Signature, args: Sequence[Any]) -> bool:
    """Whether argument 0 is a callable module, which is easily mapped by mistake."""
    # By the structure of the call: flattening the argument again would count as a read of its states.
    arguments = signature.treedef.children()[ARGS].children()
    return bool(args) and callable(args[0]) and arguments[0].num_nodes > 1
