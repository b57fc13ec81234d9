"""Keys of random numbers: typed ones, raw ones, and batches of either."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._ground.values import as_value


def is_typed_key(x: Any) -> bool:
    """Whether `x` is an array of typed keys."""
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def is_raw_key(x: Any) -> bool:
    """Whether `x` looks like a raw key: `uint32` data of the default implementation."""
    return (
        isinstance(x, jax.Array | np.ndarray)
        and x.dtype == np.uint32
        and x.ndim > 0
        and x.shape[-1:] == jax.eval_shape(lambda: jr.key_data(jr.key(0))).shape
    )


def batch_shape(key: Any) -> tuple[int, ...]:
    """The shape of a batch of keys: `()` for one key, typed or raw."""
    return tuple(key.shape) if is_typed_key(key) else tuple(key.shape[:-1])


def split_for_lanes(key: Any, n: int) -> tuple[Any, Any]:
    """The new value of a key that `n` lanes share, and the keys of the lanes along a new leading axis.

    In a batch of keys, each is split by itself: lane `i` gets a batch of the same shape.
    """
    if batch_shape(key) == ():
        keys = jr.split(key, n + 1)
        return keys[0], keys[1:]
    split = lambda one: jr.split(one, n + 1)
    for _ in batch_shape(key):
        split = jax.vmap(split, out_axes=1)
    keys = split(key)
    if not is_typed_key(keys):
        return keys[0], keys[1:]
    # As data: JAX's check of key reuse mistakes a part of an array of keys for the whole array.
    impl, data = jr.key_impl(keys), jr.key_data(keys)
    return jr.wrap_key_data(data[0], impl=impl), jr.wrap_key_data(data[1:], impl=impl)


def as_key(value: Any) -> Any:
    """A seed or a key in the form in which a random state holds it.

    **Raises:** `TypeError` for anything else.
    """
    if value is None or is_typed_key(value):
        return value
    if isinstance(value, jax.Array | np.ndarray) and value.dtype == np.uint32 and value.ndim > 0:
        return as_value(value)
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if integer or (
        isinstance(value, jax.Array | np.ndarray)
        and value.ndim == 0
        and jnp.issubdtype(value.dtype, jnp.integer)
    ):
        return jr.key(value)  # pyright: ignore[reportArgumentType]
    raise TypeError(
        f"A RandomState holds an integer seed, a typed key or a raw uint32 key; got {value!r}. "
        "Write ps.RandomState(0) or ps.RandomState(jax.random.key(0))."
    )
