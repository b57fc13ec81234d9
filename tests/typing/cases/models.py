"""Models and functions that the other cases are about."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import Array
from jaxtyping import Float

import pstate as ps


class Norm(eqx.Module):
    """Parameters, a counter, and methods of all sorts."""

    weight: ps.ParamState
    scale: ps.ParamState[Float[Array, "n"]]
    calls: ps.ShortTermState

    def __call__(self, x: Array) -> Array:
        self.calls.value += 1
        return x * self.weight.value * self.scale.value

    def train(self, x: Array, factor: float = 1.0) -> Array:
        return factor * self(x)

    def loss(self, x: Array) -> Array:
        return jnp.sum(self(x))

    def loss_and_aux(self, x: Array) -> tuple[Array, dict[str, Array]]:
        return self.loss(x), {"x": x}

    def step(self, carry: Array, x: Array) -> tuple[Array, Array]:
        return carry + self.loss(x), x

    def reset(self) -> None:
        self.calls.value = 0

    @ps.jit
    def compiled(self, x: Array) -> Array:
        return self(x)

    @ps.jit(donate=None)
    def with_options(self, x: Array) -> Array:
        return self(x)

    @ps.vmap2
    def mapped(self, x: Array) -> Array:
        return self(x)

    @ps.vmap2(in_axes=1, axis_name="batch")
    def mapped_over_columns(self, x: Array) -> Array:
        return self(x)

    @ps.pure
    def stepped(self, x: Array) -> Array:
        return self(x)

    @ps.checkpoint
    def recomputed(self, x: Array) -> Array:
        return self(x)

    @ps.value_and_grad
    def slope(self, x: Array) -> Array:
        return self.loss(x)


class Special(Norm):
    """A subclass."""


def loss(model: Norm, x: Array) -> Array:
    return model.loss(x)


def energy(model: Norm, x: Array) -> Array:  # writes nothing
    return jnp.sum(model.weight.value * x)


def apply(model: Norm, x: Array) -> Array:
    return model(x)


def loss_and_aux(model: Norm, x: Array) -> tuple[Array, dict[str, Array]]:
    return model.loss(x), {"x": x}


def of_dict(tree: dict[str, ps.State], x: Array) -> Array:
    tree["n"].value += 1
    return x


def of_arrays(x: Array, y: Array) -> Array:
    return jnp.sum(x * y)


def make(key: Array) -> Norm:
    return Norm(ps.ParamState(jr.normal(key, (3,))), ps.ParamState(jnp.ones(3)), ps.ShortTermState(0))


m = make(jr.key(0))
special = Special(m.weight, m.scale, m.calls)
x = jnp.ones(3)
xs = jnp.ones((3, 3))
