"""Loops as transforms: those that `laws.transforms` has not, and how models use them, with their twins.

They run over the laws like the transforms there, and each stands inside and around some of them.
"""

import functools as ft
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.random as jr

import pstate as ps
from laws.cases import Case
from laws.transforms import ByHand, Model, Stateful, Using, by_hand, model, stateful


LOOPS: list[Using] = []


def use(by_hand: Any, **fields: Any) -> Any:
    """Put a loop into the table; the decorated function uses it and gives it its name."""

    def add(wrap: Any) -> Any:
        LOOPS.append(Using(wrap.__name__, wrap, by_hand, **fields))
        return wrap

    return add


def _fori_by_hand(g: ByHand) -> ByHand:
    def looped(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def step(i: Any, loop: Any) -> Any:
            (count, key), total = loop
            y, new = g({**values, "count": count, "key": key}, x)
            return (new["count"], new["key"]), total + i * y

        init = (values["count"], values["key"]), jnp.zeros(())
        (count, key), total = jax.lax.fori_loop(1, 3, step, init)
        return total, {**values, "count": count, "key": key}

    return looped


@use(_fori_by_hand)
def fori_loop(f: Stateful) -> Stateful:
    def step(model: Model, x: Any, i: Any, total: Any) -> Any:
        return total + i * f(model, x)

    return lambda model, x: ps.fori_loop(1, 3, ft.partial(step, model, x), jnp.zeros(()))


def _bounded_by_hand(g: ByHand, **options: Any) -> ByHand:
    def looped(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def go_on(carry: Any) -> Any:
            return (carry[2] < 2) & (carry[0] < 1e6)

        def step(carry: Any) -> Any:
            count, key, i, total = carry
            y, new = g({**values, "count": count, "key": jr.wrap_key_data(key)}, x)
            return new["count"], jr.key_data(new["key"]), i + 1, total + y

        init = values["count"], jr.key_data(values["key"]), 0, jnp.zeros(())
        count, key, _, total = eqxi.while_loop(go_on, step, init, **options)
        return total, {**values, "count": count, "key": jr.wrap_key_data(key)}

    return looped


def _bounded(f: Stateful, **options: Any) -> Stateful:
    def go_on(model: Model, carry: Any) -> Any:
        return (carry[0] < 2) & (model.count.value < 1e6)

    def step(model: Model, x: Any, carry: Any) -> Any:
        i, total = carry
        return i + 1, total + f(model, x)

    def looped(model: Model, x: Any) -> Any:
        bound = ft.partial(go_on, model), ft.partial(step, model, x)
        return ps.while_loop(*bound, (0, jnp.zeros(())), **options)[1]

    return looped


@use(ft.partial(_bounded_by_hand, kind="bounded", max_steps=3), by_jax=False)
def bounded_while_loop(f: Stateful) -> Stateful:
    return _bounded(f, max_steps=3)


@use(ft.partial(_bounded_by_hand, kind="checkpointed", checkpoints=2), by_jax=False, forward=False)
def checkpointed_while_loop(f: Stateful) -> Stateful:
    return _bounded(f, checkpoints=2)


def _scan_by_hand(g: ByHand) -> ByHand:
    def scanned(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def step(loop: Any, x: Any) -> Any:
            (count, key), total = loop
            y, new = g({**values, "count": count, "key": key}, x)
            return ((new["count"], new["key"]), total + y), 2 * y

        init = (values["count"], values["key"]), jnp.zeros(())
        ((count, key), total), ys = jax.lax.scan(step, init, x + jnp.arange(3.0))
        return total + jnp.sum(ys), {**values, "count": count, "key": key}

    return scanned


@use(_scan_by_hand, by_jax=False)
def scan_with_checkpoints(f: Stateful) -> Stateful:
    def step(model: Model, total: Any, x: Any) -> Any:
        y = f(model, x)
        return total + y, 2 * y

    def scanned(model: Model, x: Any) -> Any:
        xs = x + jnp.arange(3.0)
        total, ys = ps.scan(ft.partial(step, model), jnp.zeros(()), xs, checkpoints=2)
        return total + jnp.sum(ys)

    return scanned


@use(_scan_by_hand, by_jax=False)
def scan_with_axis_specs(f: Stateful) -> Stateful:
    """The model stands in `xs`: what is read is shared, and what is written goes from step to step."""

    def step(total: Any, xs: Any) -> Any:
        model, (x,) = xs
        y = f(model, x)
        return total + y, 2 * y

    def scanned(model: Model, x: Any) -> Any:
        xs = model, (x + jnp.arange(3.0))[None]
        carried = {"carry": [ps.ShortTermState, ps.RandomState]}
        total, ys = ps.scan(step, jnp.zeros(()), xs, in_axes=(None, 1), state_in_axes=carried)
        return total + jnp.sum(ys)

    return scanned


def _chosen_by_hand(g: ByHand, choose: Any) -> ByHand:
    def chosen(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def other(count: Any, key: Any, x: Any) -> Any:
            return x, (2 * count, key)

        def first(count: Any, key: Any, x: Any) -> Any:
            y, new = g({**values, "count": count, "key": key}, x)
            return y, (new["count"], new["key"])

        y, (count, key) = choose(x > 0.5, first, other, values["count"], values["key"], x)
        return y, {**values, "count": count, "key": key}

    return chosen


def _double(model: Model, x: Any) -> Any:
    model.count.value = 2 * model.count.value
    return x


@use(ft.partial(_chosen_by_hand, choose=jax.lax.cond), by_jax=False)
def cond_by_keyword(f: Stateful) -> Stateful:
    first = lambda model, x: f(model, x)
    return lambda model, x: ps.cond(x > 0.5, first, _double, x=x, model=model)


def _switched(first: Any, a: Any, b: Any, *operands: Any) -> Any:
    return jax.lax.switch(first.astype(int), [b, a], *operands)


@use(ft.partial(_chosen_by_hand, choose=_switched), by_jax=False)
def switch_by_keyword(f: Stateful) -> Stateful:
    branches = [_double, lambda model, x: f(model, x)]
    return lambda model, x: ps.switch((x > 0.5).astype(int), branches, x=x, model=model)


#: Equinox's loop with checkpoints keeps a program with its tracers: a leak to newer versions of JAX.
LEAKS = {"checkpointed_while_loop"} if jax.__version_info__ >= (0, 11) else set()

#: Where the loop is not JAX's own the programs differ, and the body is traced once all the same.
LOOPED = [
    Case(
        name=f"{loop.name}_of_a_body",
        make=ft.partial(stateful, loop),
        args=lambda: (model(), jnp.float32(0.75)),
        twin=by_hand(loop),
        mapping=False,
        commutes=False,
        same_program=loop.by_jax,
        leaks=loop.name in LEAKS,
        unwritten=lambda model: (model.untouched, model.weight),
    )
    for loop in LOOPS
]
