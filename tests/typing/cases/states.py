"""States and their values."""

from typing import Any, reveal_type

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from models import m, x
from typing_extensions import TypeVar

import pstate as ps


# Numbers and NumPy arrays become arrays.
reveal_type(ps.State(0))  # is: State[Array]
reveal_type(ps.State(0).value)  # is: Array
reveal_type(ps.ParamState(np.zeros(3)))  # is: ParamState[Array]
reveal_type(ps.HiddenState(x, tag="trace"))  # is: HiddenState[Array]
reveal_type(ps.ShortTermState())  # is: ShortTermState[Array]
reveal_type(ps.BatchState((x, x)).value)  # is: tuple[Array, Array]
reveal_type(ps.State({"a": x}))  # is: State[dict[str, Array]]
reveal_type(ps.State({"a": x}).value["a"])  # is: Array
reveal_type(ps.RandomState(0))  # is: RandomState[Array]
reveal_type(ps.State(0).replace(1))  # is: State[Array]
reveal_type(ps.State(0, tag=("a", "b")).tag)  # is: tuple[str, ...]

# A kind without a parameter holds arrays, whatever their shape.
reveal_type(m.weight)  # is: ParamState[Array]
reveal_type(m.weight.value)  # is: Array
reveal_type(m.scale)  # is: ParamState[Array]
reveal_type(m.scale.value)  # is: Array

V = TypeVar("V", default=Array)


class Membrane(ps.HiddenState[V]):
    """A kind of a user, generic as its base is."""


class Spike(ps.ShortTermState):
    """A kind of a user that holds arrays."""


class Neuron(eqx.Module):
    """States of several types."""

    v: Membrane
    spike: Spike
    cache: ps.HiddenState[dict[str, Array]]
    anything: ps.State[Any]
    trace: ps.ShortTermState[Float[Array, "n"]] = ps.ShortTermState()

    def __call__(self, y: Array) -> Array:
        self.v.value = 0  # a number, where an array is read
        self.v.value += y
        self.spike.value = np.zeros(3)
        self.spike.value = self.v.value > 1
        self.cache.value = {"y": y}
        self.anything.value = (y, {"y": y})
        self.trace.value = jnp.zeros(3)
        return self.v.value


neuron = Neuron(Membrane(x), Spike(0), ps.HiddenState({"y": x}), ps.State((x, {"y": x})))
reveal_type(neuron.v)  # is: Membrane[Array]
reveal_type(neuron.spike.value)  # is: Array
reveal_type(neuron.cache.value["y"])  # is: Array
reveal_type(neuron.anything.value)  # is: Any
reveal_type(ps.pure(neuron)(x))  # is: tuple[Array, Neuron]
with ps.catch_new_states() as states:
    reveal_type(states)  # is: list[State[Any]]
