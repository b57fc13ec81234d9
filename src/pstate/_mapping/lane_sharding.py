"""Lanes on the devices of an explicit mesh.

On such a mesh, which newer versions of `jax.make_mesh` make, the type of an array says over which
mesh axes each of its axes is sharded, and `jax.vmap` requires the lanes of all operands to be
sharded in the same way. So what pstate itself adds to the lanes, the reference lane and split keys,
is sharded like them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.random as jr
from jax.sharding import NamedSharding, PartitionSpec

from .._ground.versions import reshard
from .._states.keys import is_typed_key


class LaneSharding(NamedTuple):
    """The sharding of lanes: `entry` is the part of a `PartitionSpec` for their axis."""

    mesh: Any
    entry: Any

    def put(self, x: Any, axis: int) -> Any:
        """`x` with its lanes sharded so; its other axes stay as they are."""
        return _put(x, axis, self.mesh, self.entry)


def lane_sharding(
    operands: Sequence[Any], axes: Sequence[int | None]
) -> tuple[int, LaneSharding] | None:
    """The first operand whose lanes are on an explicit mesh, and their sharding; `None` if there is
    none.
    """
    for position, (x, axis) in enumerate(zip(operands, axes, strict=True)):
        sharding = None if axis is None else explicit_sharding(x)
        if axis is not None and sharding is not None:
            entry = _entries(sharding, len(x.shape))[axis]
            if entry is not None:
                return position, LaneSharding(sharding.mesh, entry)
    return None


def gathered(x: Any, axis: int) -> Any:
    """`x` with the whole of an axis on every device, so that it can be cut anywhere."""
    sharding = explicit_sharding(x)
    if sharding is None or _entries(sharding, len(x.shape))[axis] is None:
        return x
    return _put(x, axis, sharding.mesh, None)


def explicit_sharding(x: Any) -> Any:
    """The sharding in the type of an array; `None` if there is none."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    return None if sharding is None or not any(sharding.spec) else sharding


def without_axis(sharding: Any, axis: int, ndim: int) -> Any:
    """The sharding of one lane of an array of `ndim` axes; `None` if nothing is left of it."""
    if sharding is None:
        return None
    entries = _entries(sharding, ndim)
    del entries[axis]
    return NamedSharding(sharding.mesh, PartitionSpec(*entries)) if any(entries) else None


def with_axis(sharding: Any, axis: int, ndim: int) -> Any:
    """The sharding of stacked lanes, each of which has `ndim` axes."""
    if sharding is None:
        return None
    entries = _entries(sharding, ndim)
    entries.insert(axis, None)
    return NamedSharding(sharding.mesh, PartitionSpec(*entries))


def _put(x: Any, axis: int, mesh: Any, entry: Any) -> Any:
    if is_typed_key(x):
        # As data: JAX does not move typed keys to a mesh that is not in its context.
        return jr.wrap_key_data(_put(jr.key_data(x), axis % x.ndim, mesh, entry), impl=jr.key_impl(x))
    ndim = len(x.shape)
    sharding = explicit_sharding(x)
    entries = [None] * ndim if sharding is None else _entries(sharding, ndim)
    entries[axis] = entry
    return reshard(x, NamedSharding(mesh, PartitionSpec(*entries)))


def _entries(sharding: Any, ndim: int) -> list[Any]:
    spec = tuple(sharding.spec)
    return [*spec, *[None] * (ndim - len(spec))]
