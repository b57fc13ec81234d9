"""Random states: a key that draws replace.

The rule of a draw: `keys = split(key, 2)`; the state becomes `keys[0]`, and the draw uses
`keys[1]`. A mapping over `n` lanes splits once more, `keys = split(key, n + 1)`, and only if a lane
draws: the state becomes `keys[0]` and the lanes get the other `n`.
"""

import math
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Shaped

from .._ground.errors import FrozenStateError
from .._ground.integers import Integer, as_index
from .._ground.public import public
from .cell import Cell
from .keys import as_key, batch_shape
from .messages import draw_message
from .state import State, V


Shape = Integer | tuple[int, ...] | None


@public
class RandomState(State[V]):
    """A stream of random numbers: a state that holds a key.

    Draws happen inside a recording (for example in a function run by `pstate.pure`), because each
    replaces the key. In a mapping each lane draws from its own key; `{None: ps.RandomState}` in
    `state_in_axes` gives all lanes the same key. With the key implementations `"rbg"` and
    `"unsafe_rbg"`, JAX draws different numbers for many lanes at once than for one, so
    `chunk_size`, `pmap2` and `lane(i)` give other draws than `vmap2`; with the default,
    `"threefry2x32"`, all give the same.

    **Arguments:**

    - `seed_or_key`: an integer, a typed key of shape `()`, or a raw `uint32` key, which is kept
        raw. It may also be a batch of keys, for mappings along the batch axis.
    - `tag`: as for `pstate.State`.

    **Raises:** `TypeError` for anything but a seed or a key.

    !!! example

        >>> import jax.random as jr
        >>> import pstate as ps
        >>> draw, rng = ps.pure(lambda rng: rng.normal())(ps.RandomState(0))
        >>> bool(draw == jr.normal(jr.split(jr.key(0))[1]))
        True
    """

    __slots__ = ()

    def __init__(self, seed_or_key: Any = None, *, tag: Any = ()):
        super().__init__(seed_or_key, tag=tag)

    def _as_value(self, value: Any, old: Any) -> Any:
        return as_key(value)

    def split_key(self, n: Shape = None) -> Shaped[Array, "..."]:
        """Draw a key, or several, and advance the state.

        **Arguments:**

        - `n`: how many keys, or the shape of an array of keys. `None` draws one, of shape `()`.

        **Returns:** a key of shape `()`, or keys of shape `(n,)` or `n`. With
        `keys = split(key, number + 1)` the state keeps `keys[0]` and the rest is returned.

        **Raises:** `FrozenStateError` outside a recording; `ValueError` if the state holds a batch
        of keys.

        !!! example

            >>> import pstate as ps
            >>> keys, rng = ps.pure(lambda rng: rng.split_key((2, 3)))(ps.RandomState(0))
            >>> keys.shape
            (2, 3)
        """
        cell = self._cell
        if cell is None:
            raise FrozenStateError(draw_message(self))
        cell.check_writable(type(self).__name__)
        key: Any = self.value
        if batch_shape(key) != ():
            raise ValueError(
                f"`{cell.place}` (RandomState) holds a batch of keys of shape {batch_shape(key)}, and "
                "a draw takes one. Map over the batch, so that each lane has its own: "
                "ps.vmap2(f, state_in_axes={0: ps.RandomState})."
            )
        if n is None:
            kept, own = jr.split(key)  # unpacked, as by hand: JAX 0.12 has a primitive for it
            cell.put(kept)
            return own
        shape = _shape(n)
        keys = jr.split(key, math.prod(shape) + 1)
        cell.put(keys[0])
        own = keys[1:]
        return own if len(shape) == 1 else own.reshape(*shape, *own.shape[1:])

    def key(self) -> Shaped[Array, "..."]:
        """A fresh key for any function of `jax.random`. The same as `split_key()`."""
        return self.split_key()

    # Distributions, as in NumPy: parameters, then `size`, then `dtype`. Without `size` the result
    # has the shape to which the parameters broadcast; without `dtype` it has JAX's default type.

    def random(self, size: Shape = None, dtype: Any = None) -> Array:
        """Uniform on [0, 1). `size` is the shape of the result."""
        return jr.uniform(self.key(), _shape(size), **_given(dtype))

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Shape = None, dtype: Any = None) -> Array:
        """Uniform on [low, high)."""
        shape = _shape(size, low, high)
        return jr.uniform(self.key(), shape, minval=low, maxval=high, **_given(dtype))

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Shape = None, dtype: Any = None) -> Array:
        """Normal, with mean `loc` and standard deviation `scale`."""
        drawn = jr.normal(self.key(), _shape(size, loc, scale), **_given(dtype))
        return _as(dtype, loc) + _as(dtype, scale) * drawn

    def truncated_normal(
        self,
        lower: Any,
        upper: Any,
        loc: Any = 0.0,
        scale: Any = 1.0,
        size: Shape = None,
        dtype: Any = None,
    ) -> Array:
        """Normal, truncated to [lower, upper], in standard deviations from `loc`."""
        shape = _shape(size, lower, upper, loc, scale)
        drawn = jr.truncated_normal(self.key(), lower, upper, shape, **_given(dtype))
        return _as(dtype, loc) + _as(dtype, scale) * drawn

    def lognormal(
        self, mean: Any = 0.0, sigma: Any = 1.0, size: Shape = None, dtype: Any = None
    ) -> Array:
        """The exponential of a normal with mean `mean` and standard deviation `sigma`."""
        return jnp.exp(self.normal(mean, sigma, size, dtype))

    def integers(self, low: Any, high: Any = None, size: Shape = None, dtype: Any = None) -> Array:
        """Integers from [low, high), or from [0, low) without `high`; int32 without `dtype`."""
        low, high = (0, low) if high is None else (low, high)
        return jr.randint(self.key(), _shape(size, low, high), low, high, **_given(dtype))

    def bernoulli(self, p: Any = 0.5, size: Shape = None) -> Array:
        """`True` with probability `p`; bool."""
        return jr.bernoulli(self.key(), p, _shape(size, p))

    def binomial(self, n: Any, p: Any, size: Shape = None, dtype: Any = None) -> Array:
        """How many of `n` trials succeed, each with probability `p`; float."""
        return jr.binomial(self.key(), n, p, _shape(size, n, p), **_given(dtype))

    def poisson(self, lam: Any = 1.0, size: Shape = None, dtype: Any = None) -> Array:
        """Poisson counts with mean `lam`; int32 without `dtype`."""
        return jr.poisson(self.key(), lam, _shape(size, lam), **_given(dtype))

    def exponential(self, scale: Any = 1.0, size: Shape = None, dtype: Any = None) -> Array:
        """Exponential with mean `scale`."""
        drawn = jr.exponential(self.key(), _shape(size, scale), **_given(dtype))
        return _as(dtype, scale) * drawn

    def gamma(self, shape: Any, scale: Any = 1.0, size: Shape = None, dtype: Any = None) -> Array:
        """Gamma with shape parameter `shape` and scale `scale`."""
        drawn = jr.gamma(self.key(), shape, _shape(size, shape, scale), **_given(dtype))
        return _as(dtype, scale) * drawn

    def beta(self, a: Any, b: Any, size: Shape = None, dtype: Any = None) -> Array:
        """Beta with parameters `a` and `b`."""
        return jr.beta(self.key(), a, b, _shape(size, a, b), **_given(dtype))

    def laplace(self, loc: Any = 0.0, scale: Any = 1.0, size: Shape = None, dtype: Any = None) -> Array:
        """Laplace with mean `loc` and scale `scale`."""
        drawn = jr.laplace(self.key(), _shape(size, loc, scale), **_given(dtype))
        return _as(dtype, loc) + _as(dtype, scale) * drawn

    def multivariate_normal(self, mean: Any, cov: Any, size: Shape = None, dtype: Any = None) -> Array:
        """Normal vectors: mean (..., n) and covariance (..., n, n) give shape size + (n,)."""
        shape = None if size is None else _shape(size)
        mean, cov = (jnp.asarray(_as(dtype, x)) for x in (mean, cov))
        return jr.multivariate_normal(self.key(), mean, cov, shape, **_given(dtype))

    def categorical(self, logits: Any, size: Shape = None) -> Array:
        """Indices along the last axis of `logits`, by their unnormalised log-probabilities; int32."""
        logits = jnp.asarray(logits)
        shape = None if size is None else _shape(size)
        return jr.categorical(self.key(), logits, shape=shape)

    def choice(self, a: Any, size: Shape = None, replace: bool = True, p: Any = None) -> Array:
        """Elements of `a` (or of range(a)), with probabilities `p`."""
        a = a if isinstance(a, int) else jnp.asarray(a)
        return jr.choice(self.key(), a, _shape(size), replace, p)

    def permutation(self, x: Any) -> Array:
        """`x` shuffled along its first axis, or the integers from [0, x) shuffled."""
        return jr.permutation(self.key(), x if isinstance(x, int) else jnp.asarray(x))


def shape_of_keys(state: State) -> tuple[int, ...] | None:
    """The shape of the batch of keys in a random state, `()` for one key; `None` for other states."""
    if not isinstance(state, RandomState):
        return None
    cell: Cell | None = state._cell
    child = state._child if cell is None else cell.value
    return batch_shape(child) if hasattr(child, "shape") else None


def _shape(size: Shape, *parameters: Any) -> tuple[int, ...]:
    if size is None:
        return jnp.broadcast_shapes(*(jnp.shape(p) for p in parameters))
    one = as_index(size)
    return tuple(size) if one is None else (one,)  # pyright: ignore[reportArgumentType]


def _given(dtype: Any) -> dict[str, Any]:
    return {} if dtype is None else {"dtype": dtype}


def _as(dtype: Any, parameter: Any) -> Any:
    """A parameter that does not change the dtype of the draw."""
    return parameter if dtype is None else jnp.asarray(parameter, dtype)
