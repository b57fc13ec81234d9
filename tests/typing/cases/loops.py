"""Loops and branches return what their functions return."""

from typing import reveal_type

import jax.numpy as jnp
from jax import Array
from models import Norm, m, x, xs

import pstate as ps


def run(model: Norm, ys: Array) -> Array:
    total, outs = ps.scan(model.step, jnp.zeros(()), ys)
    reveal_type(total)  # is: Array
    reveal_type(outs)  # is: Array
    reveal_type(ps.for_loop(model, ys))  # is: Array
    reveal_type(ps.for_loop(model.train, ys, reverse=True))  # is: Array
    reveal_type(ps.cond(jnp.sum(ys) > 0, model, model.train, ys[0]))  # is: Array
    reveal_type(ps.switch(0, [model, model.train], ys[0]))  # is: Array  # mypy: Any
    reveal_type(ps.switch(0, (model, model.train), ys[0]))  # is: Array
    return total + outs.sum()


reveal_type(ps.pure(run)(m, xs))  # is: tuple[Array, Norm]


def add(carry: Array, y: Array) -> tuple[Array, dict[str, Array]]:
    return carry + y, {"before": carry}


def count(i: Array, carry: Array) -> Array:
    return carry + i


def double(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    return 2 * carry[0], carry[1] + 1


def below(carry: tuple[Array, Array]) -> Array:
    return carry[0] < 10


# A carry may start from numbers, which become arrays.
reveal_type(ps.scan(add, 0.0, x))  # is: tuple[Array, dict[str, Array]]
reveal_type(ps.fori_loop(0, 3, count, 0))  # is: Array
reveal_type(ps.while_loop(below, double, (1, 0)))  # is: tuple[Array, Array]
reveal_type(ps.for_loop(jnp.sin, x))  # is: Array
reveal_type(ps.cond(x[0] > 0, lambda y: jnp.sin(y), lambda y: jnp.cos(y), x))  # is: Array
reveal_type(ps.pure(ps.for_loop)(m, xs, reverse=True))  # is: tuple[Any, Norm]
total, _ = ps.scan(lambda carry, y: (carry + jnp.sum(y), y), jnp.zeros(()), xs)
