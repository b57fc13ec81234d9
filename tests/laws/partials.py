"""Cases of transforms that are bound to a partial which holds states."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

import pstate as ps
from laws.table import case, tick


def loss(model: Any, x: Any) -> Any:
    tick()
    model["calls"].value += 1
    return jnp.sum(jnp.sin(model["w"].value * x))


MODEL = {"calls": ps.State(0), "w": ps.ParamState(jnp.array([0.5, -1.0]))}


@case(
    make=lambda: ps.value_and_grad(jtu.Partial(loss, MODEL)),
    args=lambda: (jnp.array([1.0, 2.0]),),
    mapping=False,
    commutes=False,
    warm=1,
    unwritten=lambda partial: partial.args[0]["w"],
)
def a_gradient_of_a_partial(x: Any) -> Any:
    def by_hand(w: Any, calls: Any) -> Any:
        tick()
        return jnp.sum(jnp.sin(w * x)), calls + 1

    differentiated = jax.value_and_grad(by_hand, has_aux=True)
    (value, calls), gradient = differentiated(MODEL["w"].value, MODEL["calls"].value)
    of_model = {"calls": ps.State(), "w": ps.ParamState(gradient)}
    updated = {"calls": ps.State(calls), "w": MODEL["w"]}
    return (value, jtu.Partial(loss, of_model)), jtu.Partial(loss, updated)
