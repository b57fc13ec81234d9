"""Choices as users write them: keywords, one branch twice, a predicate that is no scalar."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pstate as ps


def add(counter: Any, by: Any, *, times: Any = 1) -> Any:
    counter["n"].value += by * times
    return by


def stay(counter: Any, by: Any, *, times: Any = 1) -> Any:
    return by


def model() -> dict[str, Any]:
    return {"n": ps.State(1.0)}


@pytest.mark.parametrize("compiled", [False, True])
def test_operands_by_keyword(compiled: bool) -> None:
    def step(m: Any, on: Any) -> Any:
        return ps.cond(on, add, stay, m, by=2.0, times=jnp.asarray(3.0))

    step_ = ps.pure(ps.jit(step) if compiled else step)
    for on, expected in ((True, 7.0), (False, 1.0)):
        out, after = step_(model(), jnp.asarray(on))
        assert (out, after["n"].value) == (2.0, expected)


def test_a_live_tree_by_keyword() -> None:
    def up(*, counter: Any) -> None:
        counter["n"].value += 1.0

    def down(*, counter: Any) -> None:
        counter["n"].value -= 1.0

    def step(m: Any, index: Any) -> None:
        ps.switch(index, [up, down, up], counter=m)

    assert [ps.pure(step)(model(), i)[1]["n"].value for i in range(3)] == [2.0, 0.0, 2.0]


def test_a_frozen_tree_by_keyword_is_refused() -> None:
    frozen = model()
    with pytest.raises(ps.FrozenStateError, match=r"counter\['n'\]"):
        ps.cond(True, add, stay, counter=frozen, by=1.0)
    assert frozen["n"].value == 1.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_branch_that_stands_twice_is_traced_once(compiled: bool) -> None:
    traced = []

    def f(m: Any, x: Any) -> Any:
        traced.append(x)
        m["n"].value += x
        return x

    def g(m: Any, x: Any) -> Any:
        m["n"].value *= 10.0
        return 2.0 * x

    def step(m: Any, index: Any) -> Any:
        return ps.switch(index, [f, g, f, f], m, 3.0)

    step_ = ps.pure(ps.jit(step) if compiled else step)
    found = [step_(model(), jnp.asarray(i)) for i in range(4)]
    assert [out.item() for out, _ in found] == [3.0, 6.0, 3.0, 3.0]
    assert [m["n"].value.item() for _, m in found] == [4.0, 10.0, 4.0, 4.0]
    assert len(traced) == 1


def test_one_partial_twice() -> None:
    def step(m: Any, on: Any) -> Any:
        both = ft.partial(add, m, 2.0)
        return ps.cond(on, both, both)

    assert ps.pure(step)(model(), True)[1]["n"].value == 3.0


@pytest.mark.parametrize("pred", [[True], (True,), {"on": True}, jnp.ones(1) > 0, "on", None])
def test_a_predicate_that_is_no_scalar(pred: Any) -> None:
    with pytest.raises(
        TypeError, match=r"`pred` of ps\.cond\(add, stay\) is an array of shape \(\)|scalar"
    ):
        ps.pure(lambda m: ps.cond(pred, add, stay, m, 1.0))(model())
    with pytest.raises(TypeError):
        jax.lax.cond(pred, lambda: 1.0, lambda: 2.0)
