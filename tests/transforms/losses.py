"""A model and a loss that the tests of derivatives share."""

import equinox as eqx
import jax.numpy as jnp

import pstate as ps


x = jnp.array([1.0, 2.0])


class Net(eqx.Module):
    weight: ps.ParamState
    calls: ps.State
    act: object = jnp.tanh

    def loss(self, x):
        self.calls.value += 1
        return jnp.sum(self.act(self.weight.value * x) ** 2)

    @ps.grad
    def gradient(self, x):
        return self.loss(x)

    @ps.value_and_grad(has_aux=True)
    def with_aux(self, x):
        return self.loss(x), {"act": self.act, "calls": self.calls.value, "name": "aux", "x": x}

    @ps.checkpoint
    def recomputed(self, x):
        return self.loss(x)

    def __call__(self, x):
        return self.loss(x)


def net():
    return Net(ps.ParamState(jnp.array([0.5, -0.25])), ps.State(0))


def square(tree, x):
    tree["n"].value += 1
    return jnp.sum(tree["w"].value ** 2 * x)


def tree():
    return {"n": ps.State(0), "w": ps.ParamState(jnp.array([3.0, 5.0]))}
