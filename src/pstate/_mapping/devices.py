"""The engine of `pmap2`: one lane per device, through `jax.pmap` or a function with its keywords."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.extend.core import jaxpr_as_fun

from .._ground.versions import is_eager


def prepare_devices(
    traced: Any, mapping_fn: Callable[..., Any], kwargs: dict[str, Any]
) -> Callable[..., list[Any]]:
    """A function of `(passed, keys)` that runs each lane on its device.

    Typed keys cross the boundary as their data: `jax.jit` of a `jax.pmap` does not take them on JAX 0.6.
    """
    one_lane = jaxpr_as_fun(traced.jaxpr)
    n = traced.n_local
    in_impls = [_impl(x) for x in traced.example()]
    key_impls = traced.key_impls()
    donated = traced.donated()
    n_passed = len(in_impls)

    def lane(reference: Any, given: Sequence[Any], kept: Sequence[Any], keys: Sequence[Any]) -> Any:
        supply = iter(given), iter(kept)
        passed = [next(supply[i not in donated]) for i in range(n_passed)]
        passed = [_wrapped(x, impl) for x, impl in zip(passed, in_impls, strict=True)]
        keys = [_wrapped(x, impl) for x, impl in zip(keys, key_impls, strict=True)]
        outs = one_lane(*passed, *keys)
        return tuple(_data(x) for x in outs)

    ndims = [len(x.shape) for x in traced.example()]
    in_axes = [a if a is None else a % d for a, d in zip(traced.in_axes(), ndims, strict=True)]
    out_axes = [
        a if a is None else a % (len(aval.shape) + 1)
        for a, aval in zip(traced.out_axes, traced.jaxpr.out_avals, strict=True)
    ]
    # JAX 0.6 cannot compile a `jax.pmap` inside `jax.jit` unless all outputs leave along axis 0, so
    # there they do, and are moved outside. Drop this once the oldest supported JAX is 0.7.
    moved = out_axes if not is_eager() else None
    kwargs = dict(kwargs)
    if donated:
        kwargs["donate_argnums"] = (1,)
    given_axes = [a for i, a in enumerate(in_axes) if i in donated]
    kept_axes = [a for i, a in enumerate(in_axes) if i not in donated]
    mapped = mapping_fn(
        lane,
        in_axes=(0, given_axes, kept_axes, 0),
        # A tuple, because several processes want it hashable. No `axis_size`: on JAX 0.6 it means the
        # lanes of all processes, and the reference has the size already.
        out_axes=tuple(out_axes) if moved is None else 0,
        axis_name=traced.axis_name,
        **kwargs,
    )
    reference = np.arange(n, dtype=np.int32)
    out_impls = traced.out_impls

    def run(passed: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
        passed = [
            _data(x if axis is not None else _on_one_device(x))
            for x, axis in zip(passed, in_axes, strict=True)
        ]
        given = [x for i, x in enumerate(passed) if i in donated]
        kept = [x for i, x in enumerate(passed) if i not in donated]
        outs = mapped(reference, given, kept, [_data(key) for key in keys])
        if moved is not None:
            outs = [_moved(x, axis) for x, axis in zip(outs, moved, strict=True)]
        return [_wrapped(x, impl) for x, impl in zip(outs, out_impls, strict=True)]

    return run


def _on_one_device(x: Any) -> Any:
    """An operand that all devices share. `jax.pmap` refuses one that is sharded over devices."""
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer) or x.is_fully_replicated:
        return x
    return jax.device_put(x, min(x.devices(), key=lambda device: device.id))


def _moved(x: Any, axis: int | None) -> Any:
    return x[0] if axis is None else jnp.moveaxis(x, 0, axis)


def manual_axes() -> tuple[str, ...]:
    """The mesh axes over which the running code is mapped, by `jax.shard_map` or by `shard_map2`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def devices_of(kwargs: dict[str, Any]) -> tuple[int, int, int]:
    """How many lanes fit on this process, the number of processes, and the index of this one."""
    devices = kwargs.get("devices")
    if devices is None:
        backend = kwargs.get("backend")
        return jax.local_device_count(backend), jax.process_count(backend), jax.process_index(backend)
    processes = sorted({device.process_index for device in devices})
    own = jax.process_index()
    local = sum(device.process_index == own for device in devices)
    return local, len(processes), processes.index(own) if own in processes else 0


def _is_key(x: Any) -> bool:
    # A constant of the body is a Python number in its jaxpr.
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _impl(x: Any) -> Any:
    return jr.key_impl(x) if _is_key(x) else None


def _wrapped(x: Any, impl: Any) -> Any:
    return x if impl is None else jr.wrap_key_data(x, impl=impl)


def _data(x: Any) -> Any:
    return jr.key_data(x) if _is_key(x) else x
