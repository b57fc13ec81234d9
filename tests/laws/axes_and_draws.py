"""Cases in which leaves say their axis, states come in empty, and draws have a type."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

import pstate as ps
from laws.table import case, tick


def fill(model: Any, x: Any) -> Any:
    tick()
    model["hidden"].value = x * model["weight"].value
    return x + 1


@case(
    make=lambda: ps.vmap2(fill),
    args=lambda: ({"hidden": ps.HiddenState(), "weight": ps.ParamState(jnp.ones(3))}, jnp.arange(3.0)),
    unwritten=lambda model: model["weight"],
    commutes=False,
)
def an_empty_state_of_a_mapped_argument(model: Any, xs: Any) -> Any:
    ys, hidden = jax.vmap(lambda w, x: (x + 1, x * w))(model["weight"].value, xs)
    return ys, {"hidden": ps.HiddenState(hidden), "weight": model["weight"]}


def by_rank(leaf: Any) -> int | None:
    return 0 if getattr(leaf, "ndim", 0) == 2 else None


def apply(model: Any, x: Any) -> Any:
    tick()
    model["sum"].value += x
    return model["weight"].value @ x * model["scale"]


@case(
    make=lambda: ps.vmap2(apply, in_axes=(by_rank, 0)),
    args=lambda: (
        {
            "scale": jnp.float32(2.0),
            "sum": ps.State(jnp.zeros((3, 2))),
            "weight": ps.ParamState(jnp.arange(6.0).reshape(3, 2)),
        },
        jnp.ones((3, 2)),
    ),
    unwritten=lambda model: (model["weight"], model["scale"]),
)
def axes_by_leaf(model: Any, xs: Any) -> Any:
    lane = lambda scale, total, weight, x: (weight @ x * scale, total + x)
    axes = (None, 0, 0, 0)
    arrays = model["scale"], model["sum"].value, model["weight"].value
    ys, total = jax.vmap(lane, in_axes=axes)(*arrays, xs)
    return ys, {**model, "sum": ps.State(total)}


def noise(rng: Any, x: Any) -> Any:
    tick()
    return x, rng.normal(size=(2,), dtype=jnp.float16), rng.integers(0, 9, dtype=jnp.int16)


@case(
    make=lambda: ps.vmap2(noise, in_axes=(None, 0)),
    args=lambda: (ps.RandomState(3), jnp.ones(3, jnp.float16)),
)
def draws_of_types(rng: Any, xs: Any) -> Any:
    keys = jr.split(rng.value, 4)

    def lane(key: Any, x: Any) -> Any:
        key, first = jr.split(key)
        _, second = jr.split(key)
        drawn = jnp.float16(0.0) + jnp.float16(1.0) * jr.normal(first, (2,), jnp.float16)
        return x, drawn, jr.randint(second, (), 0, 9, jnp.int16)

    return jax.vmap(lane)(keys[1:], xs), ps.RandomState(keys[0])


def parts() -> ps.State:
    rows = jnp.arange(6.0).reshape(3, 2)
    return ps.State({"first": rows, "second": 2 * rows.T, "shared": jnp.asarray(1.0)})


def advance(state: Any, x: Any) -> Any:
    tick()
    value = state.value
    state.value = {
        "first": value["first"] + x,
        "second": value["second"] * x,
        "shared": value["shared"] + 1,
    }
    return x * value["shared"]


def axes_of_parts() -> Any:
    return jax.tree.unflatten(jax.tree.structure(parts()), [0, 1, None])


@case(
    make=lambda: ps.vmap2(advance, in_axes=(axes_of_parts(), 0)),
    args=lambda: (parts(), jnp.arange(1.0, 4.0)),
)
def parts_of_a_state_along_several_axes(state: Any, xs: Any) -> Any:
    def lane(first: Any, second: Any, shared: Any, x: Any) -> Any:
        return x * shared, first + x, second * x, shared + 1

    values = state.value["first"], state.value["second"], state.value["shared"]
    mapped = jax.vmap(lane, in_axes=(0, 1, None, 0), out_axes=(0, 0, 1, None))
    ys, first, second, shared = mapped(*values, xs)
    return ys, ps.State({"first": first, "second": second, "shared": shared})
