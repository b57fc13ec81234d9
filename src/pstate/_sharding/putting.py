"""Putting arrays where they are to live."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.random as jr
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._ground.versions import is_eager, reshard
from .._states.keys import is_typed_key


def put(arrays: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
    """The arrays, put as their shardings say; with `None` they stay where they are.

    Under a trace they are constrained, and a `jax.ShapeDtypeStruct` only gets the sharding. One
    array at two places is put to the same sharding only once.
    """
    where = {(id(x), s): i for i, (x, s) in enumerate(zip(arrays, shardings, strict=True))}
    firsts = sorted(where.values())
    brought = dict(
        zip(firsts, _put([arrays[i] for i in firsts], [shardings[i] for i in firsts]), strict=True)
    )
    return [brought[where[id(x), s]] for x, s in zip(arrays, shardings, strict=True)]


def _put(arrays: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
    result = list(arrays)
    moving = [i for i, s in enumerate(shardings) if s is not None]
    for i in moving:
        if isinstance(arrays[i], jax.ShapeDtypeStruct):
            result[i] = _struct(arrays[i], shardings[i])
        elif not is_eager():
            result[i] = constrained(arrays[i], shardings[i])
    now = [i for i in moving if result[i] is arrays[i]] if is_eager() else []
    # Typed keys as their data: JAX does not move them to devices of other processes. The sharding
    # has fewer axes than the data, which leaves the others whole.
    keys = {i: jr.key_impl(arrays[i]) for i in now if is_typed_key(arrays[i])}
    data = [jr.key_data(arrays[i]) if i in keys else arrays[i] for i in now]
    for i in now:
        _refuse_unconstrained(shardings[i])
    for i, x in zip(now, jax.device_put(data, [shardings[i] for i in now]), strict=True):
        result[i] = jr.wrap_key_data(x, impl=keys[i]) if i in keys else x
    return result


def _struct(x: Any, sharding: Any) -> Any:
    weak = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=weak)


def _refuse_unconstrained(sharding: NamedSharding) -> None:
    if PartitionSpec.UNCONSTRAINED in tuple(sharding.spec):
        raise ValueError(
            f"{sharding.spec} leaves an axis to the compiler, P.UNCONSTRAINED, but outside a compiled "
            "function there is no compiler to choose. Write None for an axis that is whole on every "
            "device."
        )


def constrained(x: Any, sharding: NamedSharding) -> Any:
    """A traced array, constrained to a sharding; on axes of an explicit mesh, resharded."""
    mesh: Any = sharding.mesh
    explicit = {
        n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == AxisType.Explicit
    }
    if not explicit:
        return jax.lax.with_sharding_constraint(x, sharding)
    if is_typed_key(x):  # as data: JAX does not move typed keys to a mesh that is not in its context
        return jr.wrap_key_data(constrained(jr.key_data(x), sharding), impl=jr.key_impl(x))
    x = reshard(x, _part(sharding, lambda name: name in explicit))
    if explicit == set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, _part(sharding, lambda name: name not in explicit))


def _part(sharding: NamedSharding, keeps: Any) -> NamedSharding:
    """The sharding with only some of the names of mesh axes."""

    def part(entry: Any) -> Any:
        if entry is None or entry is PartitionSpec.UNCONSTRAINED:
            return entry
        names = tuple(filter(keeps, entry if isinstance(entry, tuple) else (entry,)))
        return names or None

    return NamedSharding(sharding.mesh, PartitionSpec(*map(part, sharding.spec)))
