"""Models that the cases share."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import pstate as ps
from laws.table import tick


class Counter(eqx.Module):
    count: ps.ShortTermState

    def __call__(self, delta: Any) -> Any:
        tick()
        self.count.value = self.count.value + delta
        return self.count.value * 2


class Layer(eqx.Module):
    weight: ps.ParamState
    hidden: ps.HiddenState
    steps: ps.NonBatchState

    def __call__(self, x: Any) -> Any:
        tick()
        self.hidden.value = jnp.tanh(self.weight.value @ self.hidden.value + x)
        return self.hidden.value


def counter(*shape: int) -> Counter:
    return Counter(ps.ShortTermState(jnp.arange(1.0, 1 + jnp.prod(jnp.array(shape))).reshape(shape)))


def layer(*lead: int) -> Layer:
    return Layer(
        ps.ParamState(jr.normal(jr.key(3), (3, 3))),
        ps.HiddenState(jr.normal(jr.key(4), (*lead, 3))),
        ps.NonBatchState(jnp.int32(7)),
    )


# Modules that functions are bound to; made once, so that making them is no part of any program.
COUNTER = counter(4)
LAYER = layer(4)


def _count(count, delta):
    """What `Counter` does, by hand."""
    count = count + delta
    return count, count * 2


class Norm(eqx.Module):
    mean: ps.BatchState
    gain: jax.Array

    def __call__(self, x):
        tick()
        batch_mean = jax.lax.pmean(x, "batch")
        self.mean.value = 0.9 * self.mean.value + 0.1 * batch_mean
        return (x - batch_mean) * self.gain


def draw(rng, scale):
    tick()
    return rng.normal(0.0, scale)
