"""The states that a loop or a branch holds.

JAX's loops and branches take arrays and return arrays of the same types. A *held* state goes in
with its current value and comes out with its current value, whether or not it was written: JAX
itself sees which arrays only pass through. Two places that are one state, such as in two branches
bound to one module, are held once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

from .._calls.flat_function import FlatFunction
from .._calls.running import Run
from .._ground.errors import StateTypeError
from .._ground.values import short_dtype
from .._ground.versions import PCAST, varies_over
from .._trees.slots import Slot


@dataclasses.dataclass(frozen=True)
class CarriedStates:
    """The held states of a call: `slots` without repetition, and the `representative` of every slot."""

    slots: tuple[Slot, ...]
    representative: dict[int, int]

    def values(self, leaves: Sequence[Any]) -> list[list[Any]]:
        """The leaves of each held state."""
        return [list(leaves[slot.start : slot.stop]) for slot in self.slots]

    def leaf_indices(self) -> list[int]:
        """The indices of those leaves in a call."""
        return [i for slot in self.slots for i in range(slot.start, slot.stop)]

    def put(self, leaves: list[Any], slots: Sequence[Slot], values: Sequence[Any]) -> None:
        """Put these leaves at all places of the held states."""
        by_slot = {held.index: value for held, value in zip(self.slots, values, strict=True)}
        for slot in slots:
            if slot.index in self.representative:
                leaves[slot.start : slot.stop] = by_slot[self.representative[slot.index]]

    def newest(self, run: Run, leaves: Sequence[Any]) -> list[Any]:
        """The value of each held state after a run: written, or as it came in."""
        writes = {self.representative.get(i): value for i, value in run.writes.items()}
        return [
            writes[slot.index] if slot.index in writes else slot.value(leaves) for slot in self.slots
        ]


def carried_states(body: FlatFunction, is_held: Callable[[Slot], bool]) -> CarriedStates:
    """The held states of a body's calls."""
    slots = [slot for slot in body.signature.layout.slots if is_held(slot)]
    representative = {slot.index: slot.index for slot in slots}
    for first, second in body.aliases:
        if first in representative and second in representative:
            representative[second] = representative[first]
    own = tuple(slot for slot in slots if representative[slot.index] == slot.index)
    return CarriedStates(own, representative)


def refuse_changed_states(
    body: FlatFunction, held: CarriedStates, run: Run, leaves: Sequence[Any]
) -> None:
    """Raise if a loop's body wrote a value of another type to a held state.

    A weakly typed value may become strong: JAX converts it before the loop, as in its own loops.
    """
    for index, value in run.writes.items():
        if index not in held.representative:
            continue
        slot = body.signature.layout.slots[index]
        before, after = slot.value(leaves), value
        what = "but the body wrote one that does"
        refuse_varying(body, slot, varying(before), varying(after), what)
        if not same_type(before, after):
            advice = (
                "fill the state before the loop, with a value of that shape and dtype."
                if before is None
                else "write a value of the same shape and dtype, state.value = "
                "jnp.asarray(new, state.value.dtype).reshape(state.value.shape), or give the state the "
                "other type before the loop."
            )
            raise StateTypeError(
                f"`{body.place(index)}` ({slot.kind.__name__}) came into {body.described.fn} as "
                f"{shown_type(before)}, but the body wrote {shown_type(after)}. A loop keeps types: "
                f"{advice}"
            )


def varying(value: Any) -> frozenset[Any]:
    """The mesh axes over which a value in a `jax.shard_map` varies."""
    return frozenset[Any]().union(*map(varies_over, jtu.tree_leaves(value)))


def refuse_varying(
    body: FlatFunction, slot: Slot, before: frozenset[Any], after: frozenset[Any], what: str
) -> None:
    """Raise if a held state varies over more of the mesh than the value that it must agree with."""
    axes = tuple(sorted(after - before))
    if axes:
        raise StateTypeError(
            f"`{body.place(slot.index)}` ({slot.kind.__name__}) has a value in {body.described.fn} that "
            f"does not vary over the mesh axes {axes}, {what}. Their types must agree: make it vary "
            f"first, state.value = {PCAST.format(axes=axes)}."
        )


def same_type(before: Any, after: Any) -> bool:
    """Whether two values have the same structure, shapes and dtypes, up to weak types before."""
    old, old_treedef = jtu.tree_flatten(before)
    new, new_treedef = jtu.tree_flatten(after)
    return old_treedef == new_treedef and all(
        _same_array_type(a, b) for a, b in zip(old, new, strict=True)
    )


def _same_array_type(before: Any, after: Any) -> bool:
    if before.shape != getattr(after, "shape", ()):
        return False
    if before.dtype == getattr(after, "dtype", None):
        return True
    # A weakly typed value becomes what JAX promotes it to together with the other.
    kind = _WEAK.get(before.dtype.kind) if getattr(before, "weak_type", False) else None
    return kind is not None and jnp.result_type(kind, after.dtype) == after.dtype


_WEAK = {"b": bool, "i": int, "f": float, "c": complex}


def shown_type(value: Any) -> str:
    """The type of a state's value, for messages."""
    if value is None:
        return "empty"
    leaves, treedef = jtu.tree_flatten(value)
    shown = [_Shown(leaf) for leaf in leaves]
    return repr(treedef.unflatten(shown))


class _Shown:
    def __init__(self, leaf: Any):
        self.text = (
            f"{short_dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"
            if hasattr(leaf, "dtype")
            else repr(leaf)
        )

    def __repr__(self) -> str:
        return self.text
