"""Modules with an `init_state` that the tests of new states share."""

import equinox as eqx
import jax.numpy as jnp

import pstate as ps


runs: list[str] = []


class Linear(ps.nn.Module):
    """Declared empty states, one filled and one assigned."""

    weight: ps.ParamState = ps.ParamState()
    counter: ps.ShortTermState = ps.ShortTermState()

    def init_state(self, size):
        runs.append("Linear")
        self.weight = ps.ParamState(jnp.ones(size))
        self.counter.value = 0


class Plain(eqx.Module):
    """Not a module of pstate, and takes part all the same."""

    bias: ps.ParamState

    def init_state(self, rng):
        runs.append("Plain")
        self.bias.value = rng.normal(size=2)
