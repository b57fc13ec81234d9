"""Cases in which a call records values: one for each lane, and one for each step."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp

import pstate as ps
from laws.table import case, tick


def net(hidden: Any = None, seen: Any = None) -> dict[str, Any]:
    return {
        "hidden": ps.HiddenState(jnp.zeros(2) if hidden is None else hidden),
        "seen": ps.SownState(seen),
        "weight": ps.ParamState(jnp.array([0.5, 2.0])),
    }


def step(model: Any, x: Any) -> Any:
    tick()
    model["hidden"].value = jnp.tanh(model["hidden"].value * model["weight"].value + x)
    model["seen"].value = model["hidden"].value[0]
    return model["hidden"].value.sum()


def run(model: Any, xs: Any) -> Any:
    return ps.for_loop(ft.partial(step, model), xs)


def step_by_hand(weight: Any, hidden: Any, x: Any) -> Any:
    hidden = jnp.tanh(hidden * weight + x)
    return hidden, (hidden.sum(), hidden[0])


def run_by_hand(weight: Any, hidden: Any, xs: Any) -> Any:
    return jax.lax.scan(ft.partial(step_by_hand, weight), hidden, xs)


def after(model: Any, hidden: Any, seen: Any) -> Any:
    return {**model, "hidden": ps.HiddenState(hidden), "seen": ps.SownState(seen)}


@case(
    make=lambda: run,
    args=lambda: (net(), jnp.arange(3.0)),
    mapping=False,
    unwritten=lambda model: model["weight"],
)
def sown_by_steps(model: Any, xs: Any) -> Any:
    hidden, (ys, seen) = run_by_hand(model["weight"].value, model["hidden"].value, xs)
    return ys, after(model, hidden, seen)


@case(
    make=lambda: ps.vmap2(step, in_axes=(None, 0), state_in_axes={0: ps.HiddenState}),
    args=lambda: (net(jnp.zeros((3, 2))), jnp.arange(3.0)),
    unwritten=lambda model: model["weight"],
)
def sown_by_lanes(model: Any, xs: Any) -> Any:
    lane = jax.vmap(step_by_hand, in_axes=(None, 0, 0))
    hidden, (ys, seen) = lane(model["weight"].value, model["hidden"].value, xs)
    return ys, after(model, hidden, seen)


@case(
    make=lambda: ps.vmap2(run, in_axes=(None, 1), out_axes=1, state_in_axes={0: ps.HiddenState}),
    args=lambda: (net(jnp.zeros((3, 2)), jnp.ones((7, 5))), jnp.arange(6.0).reshape(2, 3)),
    unwritten=lambda model: model["weight"],
)
def sown_by_steps_of_lanes(model: Any, xs: Any) -> Any:
    """What came in, of another shape, is what an earlier call recorded."""
    lane = jax.vmap(run_by_hand, in_axes=(None, 0, 1), out_axes=(0, (1, 0)))
    hidden, (ys, seen) = lane(model["weight"].value, model["hidden"].value, xs)
    return ys, after(model, hidden, seen)


@case(
    make=lambda: (
        lambda model, xs: ps.for_loop(
            ft.partial(ps.vmap2(step, in_axes=(None, 0), state_in_axes={0: ps.HiddenState}), model), xs
        )
    ),
    args=lambda: (net(jnp.zeros((3, 2))), jnp.arange(6.0).reshape(2, 3)),
    mapping=False,
    unwritten=lambda model: model["weight"],
)
def sown_by_lanes_in_steps(model: Any, xs: Any) -> Any:
    lane = jax.vmap(step_by_hand, in_axes=(None, 0, 0))
    weight = model["weight"].value
    hidden, (ys, seen) = jax.lax.scan(ft.partial(lane, weight), model["hidden"].value, xs)
    return ys, after(model, hidden, seen)


@case(
    make=lambda: lambda stack, x: ps.scan(lambda x, layer: (step(layer, x), None), x, stack)[0],
    args=lambda: (
        {
            "hidden": ps.HiddenState(jnp.zeros((4, 2))),
            "seen": ps.SownState(jnp.zeros(9)),
            "weight": ps.ParamState(jnp.ones((4, 2))),
        },
        jnp.float32(0.5),
    ),
    mapping=False,
    warm=1,
    unwritten=lambda stack: stack["weight"],
)
def sown_by_layers_of_a_stack(stack: Any, x: Any) -> Any:
    def layer(x: Any, arrays: Any) -> Any:
        hidden, (y, seen) = step_by_hand(arrays[1], arrays[0], x)
        return y, (hidden, seen)

    y, (hidden, seen) = jax.lax.scan(layer, x, (stack["hidden"].value, stack["weight"].value))
    return y, after(stack, hidden, seen)
