"""A write under one of JAX's or Equinox's transforms: refused, with the line that threads the state."""

import functools as ft
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import pstate as ps


def model() -> dict[str, Any]:
    return {"n": ps.State(1.0)}


def total(m: Any, x: Any) -> Any:
    m["n"].value += 1.0
    return jnp.sum(x * x)


ONE_DEVICE = jax.devices()[:1]
MESH = jax.make_mesh((1,), ("data",), devices=ONE_DEVICE, axis_types=(jax.sharding.AxisType.Auto,))

#: How a user's function of `x` is run; the name in the message; what else the advised line needs.
RAW: dict[str, tuple[Callable[[Any], Any], str, dict[str, Any]]] = {
    "jit": (lambda g: jax.jit(g)(jnp.ones(3)), "jax.jit", {}),
    "filter_jit": (lambda g: eqx.filter_jit(g)(jnp.ones(3)), "eqx.filter_jit", {}),
    "vmap": (lambda g: jax.vmap(g)(jnp.ones(3)), "jax.vmap", {}),
    "filter_vmap": (lambda g: eqx.filter_vmap(g)(jnp.ones(3)), "eqx.filter_vmap", {}),
    "pmap": (
        lambda g: jax.pmap(g, devices=ONE_DEVICE)(jnp.ones((1, 3))),
        "jax.pmap",
        {"x": jnp.ones((1, 3))},
    ),
    "shard_map": (
        lambda g: jax.shard_map(g, mesh=MESH, in_specs=P("data"), out_specs=P("data"))(jnp.ones(3)),
        "jax.shard_map",
        {"mesh": MESH, "P": P, "g": lambda m, x: total(m, x)[None]},
    ),
    "checkpoint": (lambda g: jax.checkpoint(g)(jnp.ones(3)), "jax.checkpoint", {}),
    "filter_checkpoint": (
        lambda g: eqx.filter_checkpoint(g)(jnp.ones(3)),
        "eqx.filter_checkpoint",
        {},
    ),
    "grad": (lambda g: jax.grad(g)(jnp.ones(3)), "jax.grad", {}),
    "filter_grad": (lambda g: eqx.filter_grad(g)(jnp.ones(3)), "eqx.filter_grad", {}),
    "value_and_grad": (lambda g: jax.value_and_grad(g)(jnp.ones(3)), "jax.value_and_grad", {}),
    "filter_value_and_grad": (
        lambda g: eqx.filter_value_and_grad(g)(jnp.ones(3)),
        "eqx.filter_value_and_grad",
        {},
    ),
    "jacfwd": (lambda g: jax.jacfwd(g)(jnp.ones(3)), "jax.jacfwd", {}),
    "jacrev": (lambda g: jax.jacrev(g)(jnp.ones(3)), "jax.jacrev", {}),
    "vjp": (lambda g: jax.vjp(g, jnp.ones(3)), "jax.vjp", {}),
    "jvp": (
        lambda g: jax.jvp(g, (jnp.ones(3),), (jnp.ones(3),)),
        "jax.jvp",
        {"tangent": jnp.ones(3)},
    ),
    "map": (lambda g: jax.lax.map(g, jnp.ones(3)), "jax.lax.map", {"xs": jnp.ones(3)}),
    "cond": (
        lambda g: jax.lax.cond(True, g, jnp.sum, jnp.ones(3)),
        "jax.lax.cond",
        {"pred": True, "other": lambda m, x: jnp.sum(x)},
    ),
    "switch": (
        lambda g: jax.lax.switch(0, [g, jnp.sum], jnp.ones(3)),
        "jax.lax.switch",
        {"index": 0, "other": lambda m, x: jnp.sum(x)},
    ),
}


def advised(message: str) -> str:
    return message.rpartition(":\n    ")[2]


def run(line: str, names: dict[str, Any]) -> Any:
    scope = {"ps": ps, "ft": ft, "x": jnp.ones(3), **names}

    def threaded(m: Any) -> None:
        exec(line, scope, {"m": m})

    return ps.pure(threaded)(model())[1]


@pytest.mark.parametrize("name", RAW)
def test_names_the_counterpart_in_a_line_that_runs(name: str) -> None:
    raw, called, needed = RAW[name]

    def step(m: Any) -> Any:
        def g(x: Any) -> Any:
            return total(m, x)

        return raw(g)

    before = model()
    with pytest.raises(
        ps.TraceScopeError, match=rf"`m\['n'\]`.*: {re.escape(called)} runs `g`"
    ) as caught:
        ps.pure(step)(before)
    assert before["n"].value == 1.0
    after = run(advised(str(caught.value)), {"g": total, **needed})
    assert after["n"].value > 1.0


@pytest.mark.parametrize("name", ["jit", "filter_jit", "grad", "checkpoint"])
def test_names_it_where_the_tree_is_passed_and_copied(name: str) -> None:
    transform = {
        "jit": jax.jit,
        "filter_jit": eqx.filter_jit,
        "grad": lambda g: jax.grad(g, argnums=1),
        "checkpoint": jax.checkpoint,
    }[name]

    def step(m: Any) -> Any:
        return transform(total)(m, jnp.ones(3))

    with pytest.raises((ps.FrozenStateError, ps.TraceScopeError), match="counterpart") as caught:
        ps.pure(step)(model())
    after = run(advised(str(caught.value)), {"total": total})
    assert after["n"].value == 2.0


def scanned(m: Any, c: Any, x: Any) -> Any:
    m["n"].value += x
    return c, x


def test_names_it_for_a_scan() -> None:
    def step(m: Any) -> Any:
        return jax.lax.scan(lambda c, x: scanned(m, c, x), 0.0, jnp.ones(3))

    with pytest.raises(ps.TraceScopeError, match=r"jax\.lax\.scan runs `f`") as caught:
        ps.pure(step)(model())
    after = run(advised(str(caught.value)), {"f": scanned, "carry": 0.0, "xs": jnp.ones(3)})
    assert after["n"].value == 4.0


def counted(m: Any, c: Any) -> Any:
    m["n"].value += 1.0
    return c + 1


def test_names_it_for_a_while_loop() -> None:
    def step(m: Any) -> Any:
        return jax.lax.while_loop(lambda c: c < 3, lambda c: counted(m, c), 0)

    with pytest.raises(ps.TraceScopeError, match=r"jax\.lax\.while_loop runs `f`") as caught:
        ps.pure(step)(model())
    needed = {"f": counted, "carry": 0, "condition": lambda c: c < 3}
    assert run(advised(str(caught.value)), needed)["n"].value == 4.0


class Counter(eqx.Module):
    n: ps.State

    def count(self, x: Any) -> Any:
        self.n.value += 1.0
        return x

    def all_rows(self, xs: Any) -> Any:
        return jax.vmap(self.count)(xs)

    def all_rows_threaded(self, xs: Any) -> Any:
        return ps.vmap2(self.count)(xs)


def test_names_it_for_a_method() -> None:
    counter = Counter(ps.State(1.0))
    with pytest.raises(ps.StateError, match=r"jax\.vmap") as caught:
        ps.pure(Counter.all_rows)(counter, jnp.ones(3))
    assert advised(str(caught.value)) == "out = ps.vmap2(self.count)(x)"
    _, after = ps.pure(Counter.all_rows_threaded)(counter, jnp.ones(3))
    assert after.n.value == 2.0


def test_names_ours_where_its_function_closed_over_the_tree() -> None:
    def step(m: Any) -> Any:
        return ps.vmap2(lambda x: total(m, x))(jnp.ones(3))

    with pytest.raises(ps.TraceScopeError, match=r"function of ps\.vmap2\(f\) closed over it.*`m`"):
        ps.pure(step)(model())


def test_a_transform_outside_of_the_recording_is_not_blamed() -> None:
    def step(m: Any) -> Any:
        copied = jax.tree.map(lambda x: 2 * x, m)
        copied["n"].value += 1.0

    with pytest.raises(ps.FrozenStateError, match=r"by jax\.tree\.map, a raw transform"):
        jax.jit(ps.pure(step))(model())


# States that came in by no argument ----------------------------------------------------------------


@pytest.mark.parametrize("transform", [lambda f: f, ps.jit, ps.checkpoint, ps.vmap2])
def test_a_state_that_is_made_in_the_body(transform: Any) -> None:
    def made(m: Any, x: Any) -> Any:
        state = ps.State(0.0)
        state.value += 1.0
        return state

    def replaced(m: Any, x: Any) -> Any:
        state = ps.State(0.0)
        return state.replace(state.value + 1.0)

    args = {"n": ps.State(jnp.ones(3))}, jnp.ones(3)
    with pytest.raises(
        ps.FrozenStateError, match=r"did not come in through.*state = state\.replace\(value\)"
    ):
        ps.pure(transform(made))(*args)
    out, _ = ps.pure(transform(replaced))(*args)
    assert jnp.all(out.value == 1.0)


def test_a_random_state_that_is_made_in_the_body() -> None:
    with pytest.raises(ps.FrozenStateError, match=r"drawn from in a function of .*made in the function"):
        ps.pure(lambda m: ps.RandomState(0).normal())(model())


# Dropout outside of training ------------------------------------------------------------------------


@pytest.mark.parametrize("run_", [lambda net, x: net(x), lambda net, x: ps.jit(net)(x)])
def test_dropout_outside_of_training(run_: Any) -> None:
    net = ps.nn.Dropout(0.5)
    with pytest.raises(ps.FrozenStateError, match=r"model = eqx\.nn\.inference_mode\(model\)"):
        run_(net, jnp.ones(3))
    evaluated = eqx.nn.inference_mode(net)
    assert jnp.all(run_(evaluated, jnp.ones(3)) == 1.0)
