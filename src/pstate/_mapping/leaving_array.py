"""One array that leaves a lane: where the lanes go, why, and the message if that is impossible."""

import dataclasses
from collections.abc import Callable
from typing import Any

from .._ground.errors import BatchAxisError
from .._trees.axis_specs import Rule


@dataclasses.dataclass
class Leaving:
    """An array that leaves a lane.

    `axis` is where the lanes go, `None` for a value that all share. `same_by`, if it is not empty,
    says which option declared the value to be the same in all lanes, and `fix` what to write
    instead; `undeclared` makes the message for an undeclared value that differs between lanes. A
    `reducer` reduces the stacked lanes to one value.
    """

    value: Any
    axis: int | None
    reason: str
    same_by: str = ""
    fix: str = ""
    undeclared: Callable[[], str] | None = None
    reducer: Callable[[Any], Any] | None = None


def by_out_axes(leaf: Any, axis: int | None, place: str) -> Leaving:
    """An array of the output, by `out_axes`."""
    if axis is None:
        same_by, fix = f"out_axes=None for {place}", "Give it an axis: out_axes=0."
        return Leaving(leaf, None, "out_axes=None", same_by, fix)
    return checked(leaf, axis, f"out_axes={axis}", place)


def by_rule(leaf: Any, rule: Rule, place: str, code: str) -> Leaving:
    """An array of a state, by a rule of `state_out_axes`. `code` is its kind as code."""
    if rule.reducer is not None:
        return Leaving(leaf, 0, f"state_out_axes={rule}", reducer=rule.reducer)
    if rule.axis is None:
        same_by = f"state_out_axes={rule} for {place}"
        fix = f"Give it an axis: state_out_axes={{0: {code}}}."
        return Leaving(leaf, None, f"state_out_axes={rule}", same_by, fix)
    return checked(leaf, rule.axis, f"state_out_axes={rule}", place)


def checked(leaf: Any, axis: int | None, reason: str, place: str) -> Leaving:
    """An array that leaves along an axis.

    **Raises:** `BatchAxisError` if there is no such axis for the lanes.
    """
    is_number = isinstance(leaf, bool | int | float | complex)
    shape = tuple(getattr(leaf, "shape", ()))
    if not hasattr(leaf, "shape") and not is_number:
        return Leaving(leaf, axis, reason)  # not an array, so it has no axis for lanes
    if axis is not None and not -len(shape) - 1 <= axis <= len(shape):
        raise BatchAxisError(
            f"{place} leaves along axis {axis} ({reason}), but a lane's value has shape {shape}: "
            "there is no such axis for the lanes. Choose one from "
            f"{-len(shape) - 1} to {len(shape)}, by state_out_axes for a state and by out_axes for an "
            "output."
        )
    return Leaving(leaf, axis, reason)
