"""A tree and a model that the tests of packed trees share."""

import equinox as eqx
import jax.numpy as jnp

import pstate as ps


def act(x):
    """A function that can be pickled."""
    return x * 2


class Net(eqx.Module):
    weight: ps.ParamState
    count: ps.State
    act: object = act
    mode: str = "train"

    def __call__(self, x):
        self.count.value += 1
        return self.act(self.weight.value * x)


def net():
    return Net(ps.ParamState(jnp.array([1.0, 2.0])), ps.State(0))


def add(tree, x):
    tree["s"].value += x
    return tree["s"].value * 2


def tree():
    return {"s": ps.State(jnp.zeros(3))}


x = jnp.ones(3)
