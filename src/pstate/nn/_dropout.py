"""Dropout with its own random stream."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._ground.public import public_in
from .._states.random_state import RandomState


@public_in("pstate.nn")
class Dropout(eqx.Module):
    """Zero entries at random, and scale the others so that the mean stays the same.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.

    **Arguments:**

    - `p`: the probability with which an entry is zeroed, in [0, 1].
    - `inference`: whether to pass the input through. `eqx.nn.inference_mode` sets it.
    - `key`: a key or seed for the layer's random stream. Give each layer its own.

    **Raises:** `ValueError` for a `p` outside [0, 1].

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> y, dropout = ps.pure(ps.nn.Dropout(0.5))(jnp.ones(4))
        >>> sorted(set(y.tolist()))
        [0.0, 2.0]
    """

    p: float
    inference: bool
    rng: RandomState

    def __init__(self, p: float = 0.5, inference: bool = False, *, key: Any = 0):
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability, from 0 to 1; got {p}. Write ps.nn.Dropout(0.5).")
        self.p = p
        self.inference = inference
        self.rng = RandomState(key)

    def __call__(
        self, x: Float[Array, "*shape"], *, key: Any = None, inference: bool | None = None
    ) -> Float[Array, "*shape"]:
        """Draw a mask of the shape of `x` and apply it; in inference, or with `p=0`, return `x`.

        With a `key`, which `eqx.nn.Sequential` passes, the mask is drawn from it, and the layer's
        own stream does not advance. `inference` overrides the field for this call.
        """
        inference = self.inference if inference is None else inference
        if inference or self.p == 0:
            return x
        if self.p == 1:
            return jnp.zeros_like(x)
        if key is None:
            key = self.rng.key()
        kept = jr.bernoulli(key, 1 - self.p, x.shape)
        return jnp.where(kept, x / (1 - self.p), 0)
