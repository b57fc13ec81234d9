"""A model of cells that the tests of looking at states share."""

import equinox as eqx
import jax.numpy as jnp

import pstate as ps


class Cell(eqx.Module):
    weight: ps.ParamState
    hidden: ps.HiddenState
    scale: object
    size: int = eqx.field(static=True, default=3)
    activation: object = jnp.tanh

    def __call__(self, x):
        self.hidden.value = self.activation(self.weight.value @ (self.hidden.value + x))
        return self.hidden.value


class Net(eqx.Module):
    cells: list
    rng: ps.RandomState
    rate: object = 0.5


def cell():
    return Cell(ps.ParamState(jnp.eye(3), tag="slow"), ps.HiddenState(jnp.ones(3)), jnp.float16(2))


def net():
    return Net([cell(), cell()], ps.RandomState(0))
