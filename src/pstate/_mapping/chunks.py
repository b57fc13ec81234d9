"""The engine of `chunk_size`: k lanes at a time, through a compiled loop.

Inputs are sliced in place, without a copy. Outputs are stacked by the loop, and values that are the
same in all lanes are carried instead. Each chunk is checkpointed, so gradients need the memory of
one chunk only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.extend.core import jaxpr_as_fun

from .._ground.versions import as_varying, varies_over
from .lane_sharding import gathered, lane_sharding


def prepare_chunks(traced: Any, chunk_size: int) -> Callable[..., list[Any]]:
    """A function of `(passed, keys)` that runs all lanes, `chunk_size` at a time."""
    one_lane = jaxpr_as_fun(traced.jaxpr)
    n = traced.n_local
    in_axes, out_axes = traced.in_axes(), list(traced.out_axes)

    def chunk(passed: Sequence[Any], keys: Sequence[Any], size: int) -> list[Any]:
        mapped = jax.vmap(
            lambda passed, keys, reference: one_lane(*passed, *keys),
            in_axes=(in_axes, 0, 0),
            out_axes=out_axes,
            axis_size=size,
        )
        return mapped(passed, keys, jnp.arange(size))

    impls = traced.key_impls()

    def as_keys(data: Sequence[Any]) -> list[Any]:
        pairs = zip(data, impls, strict=True)
        return [jr.wrap_key_data(x, impl=impl) if impl else x for x, impl in pairs]

    def at(passed: Sequence[Any], keys: Sequence[Any], start: Any, size: int) -> list[Any]:
        """Lanes from `start` on, from the operands and keys of all lanes."""

        def part(x: Any, axis: int | None) -> Any:
            if axis is None:
                return x
            return lax.dynamic_slice_in_dim(x, start, size, axis % x.ndim)

        passed = [part(x, axis) for x, axis in zip(passed, in_axes, strict=True)]
        return chunk(passed, keys, size)

    def run(passed: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
        found = lane_sharding(passed, in_axes)
        if found is not None:  # a chunk is cut from lanes that are on several devices
            pairs = zip(passed, in_axes, strict=True)
            passed = [x if axis is None else gathered(x, axis) for x, axis in pairs]
        n_chunks, rest = divmod(n, chunk_size)
        whole = n_chunks * chunk_size
        # As data: JAX's check of key reuse mistakes a part of an array of keys for the whole array.
        data = [jr.key_data(key) if impl else key for key, impl in zip(keys, impls, strict=True)]
        by_chunk = [x[:whole].reshape(n_chunks, chunk_size, *x.shape[1:]) for x in data]
        lanes = [jax.ShapeDtypeStruct((chunk_size, *key.shape[1:]), key.dtype) for key in keys]
        shapes = jax.eval_shape(lambda p, k: at(p, k, 0, chunk_size), list(passed), lanes)
        shared = [
            as_varying(jnp.empty(s.shape, s.dtype), varies_over(s))
            for s, axis in zip(shapes, out_axes, strict=True)
            if axis is None
        ]

        def step(_: list[Any], xs: tuple[Any, list[Any]]) -> tuple[list[Any], list[Any]]:
            start, data = xs
            outs = jax.checkpoint(lambda p, k, s: at(p, k, s, chunk_size))(passed, as_keys(data), start)
            pairs = list(zip(outs, out_axes, strict=True))
            return [x for x, axis in pairs if axis is None], [x for x, a in pairs if a is not None]

        starts = jnp.arange(n_chunks) * chunk_size
        shared, stacked = lax.scan(step, shared, (starts, by_chunk))
        axes = [axis for axis in out_axes if axis is not None]
        stacked = [_merged(x, axis) for x, axis in zip(stacked, axes, strict=True)]
        if rest:
            last = at(passed, as_keys([x[whole:] for x in data]), whole, rest)
            tails = [x for x, axis in zip(last, out_axes, strict=True) if axis is not None]
            stacked = [
                jnp.concatenate([x, tail], axis % x.ndim)
                for x, tail, axis in zip(stacked, tails, axes, strict=True)
            ]
        if found is not None:
            stacked = [found[1].put(x, axis) for x, axis in zip(stacked, axes, strict=True)]
        supply = iter(shared), iter(stacked)
        return [next(supply[axis is not None]) for axis in out_axes]

    return run


def _merged(x: Any, axis: int) -> Any:
    """Chunks stacked on a leading axis, `(n_chunks, ..., chunk_size, ...)`, as one axis of lanes."""
    axis %= x.ndim - 1
    moved = jnp.moveaxis(x, 0, axis)
    shape = moved.shape
    return moved.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
