"""One lane of a mapping, run by itself."""

from collections.abc import Sequence
from typing import Any

from .._calls.running import Run, run_body
from .._states.deferred import Deferred
from .._states.keys import split_for_lanes
from .lane_sharding import gathered
from .mapped_function import MappedFunction


def run_lane(program: MappedFunction, leaves: Sequence[Any], index: int) -> Run:
    """Run lane `index` of a mapping on the leaves of a call.

    **Raises:** `IndexError` for a lane that does not exist.
    """
    leaves = [x.get() if type(x) is Deferred else x for x in leaves]
    plan = program.plan(leaves)
    n = plan.axis_size
    if not -n <= index < n:
        raise IndexError(
            f"{program.described.fn} has {n} lanes in this call; got lane({index}). "
            + (f"Choose one from 0 to {n - 1}." if n else "Pass at least one.")
        )
    index %= n
    own: list[Any] = []
    for i, (leaf, given) in enumerate(zip(leaves, plan.leaves, strict=True)):
        if given.split:
            own.append(_key(program, leaf, n, index, i))
        elif given.axis is None:
            own.append(leaf)
        else:
            axis = given.axis % len(leaf.shape)
            leaf = gathered(leaf, axis)
            own.append(leaf[(slice(None),) * axis + (index,)])
    return run_body(program.signature, own, program.recording(leaves), program.place_of)


def _key(program: MappedFunction, key: Any, n: int, index: int, leaf: int) -> Deferred:
    slot = program.signature.layout.slot_of_leaf[leaf]
    assert slot is not None
    make = lambda needed: split_for_lanes(key, n)[1][index]
    return Deferred(make, key, lambda: program.place(slot.index), anywhere=False)
