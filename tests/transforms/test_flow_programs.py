"""Loops and branches: compiled once, and nothing lost or leaked."""

import concurrent.futures
import functools as ft
import gc
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from pstate._states.threads import local
from transforms.flow import (
    UNDRAWN,
    XS,
    add,
    advance,
    draw_in_a_loop,
    leave,
    model,
    same,
    stays,
)


# Compiled once --------------------------------------------------------------------------------------

runs: list[None] = []


def counted(m, x):
    runs.append(None)
    return m.add(x)


def counted_carry(m, c, x):
    return c + counted(m, x), None


def counted_advance(m, i):
    counted(m, i)
    return i + 1.0


EAGER = {
    "for_loop": lambda m, x: ps.for_loop(ft.partial(counted, m), x * XS),
    "scan": lambda m, x: ps.scan(ft.partial(counted_carry, m), x, XS),
    "while_loop": lambda m, x: ps.while_loop(m.below, ft.partial(counted_advance, m), x),
    "cond": lambda m, x: ps.cond(x > 0, counted, leave, m, x),
    "switch": lambda m, x: ps.switch(jnp.int32(x), [leave, counted], m, x),
}


@pytest.mark.parametrize("call", EAGER.values(), ids=EAGER)
def test_eager_calls_are_compiled_once(call):
    """L6: the body runs once, and not at all in later calls with other values and numbers."""
    m = model()
    runs.clear()
    _, m = ps.pure(call)(m, 1.0)
    assert len(runs) == 1
    for x in (2.0, 3.0):
        _, m = ps.pure(call)(m, x)
    assert len(runs) == 1
    with jax.disable_jit():
        twin = model()
        for x in (1.0, 2.0, 3.0):
            _, twin = ps.pure(call)(twin, x)
    same(m, twin)


def test_rebound_names_are_seen():
    """A function keeps its program, but not the values that its names had."""
    scale, limit, shift = 1.0, 4.0, 0.0

    def body(x):
        return x + scale

    def go(x):
        return x < limit

    def other(x):
        return x + shift

    seen = []
    for scale, limit, shift in [(1.0, 4.0, 0.0), (1.0, 6.0, 1.0), (4.0, 6.0, 2.0)]:  # noqa: B007 (the functions use them)
        seen.append(
            [
                ps.for_loop(body, XS)[0],
                ps.while_loop(go, body, 0.0),
                ps.cond(False, body, other, 0.0),
                ps.switch(1, [body, other], 0.0),
            ]
        )
    assert np.asarray(seen).tolist() == [[2, 4, 0, 0], [2, 6, 1, 1], [5, 8, 2, 2]]


def test_a_number_that_keeps_changing():
    """A number in a partial is part of the program: one warning says so, and its advice works."""

    def run(m, by):
        ps.cond(True, ft.partial(up, by=by), done, m)

    def runs(make):
        return [ps.pure(run)(model(), make(by))[1].total.value for by in range(7)]

    with pytest.warns(
        ps.RecompilationWarning, match=r"is a Python number and has had 5 values: ps\.cond"
    ):
        numbers = runs(int)
    assert numbers == runs(jnp.asarray) == [3 * by for by in range(7)]


def up(model, *, by):
    model.add(by)


def done(model):
    pass


# Nothing lost, nothing leaked -----------------------------------------------------------------------


@pytest.mark.parametrize("call", EAGER.values(), ids=EAGER)
def test_untouched_states_are_the_same_objects(call):
    """L1: what no step wrote is the same state object that came in."""
    start = model()
    _, new = ps.pure(call)(start, 1.0)
    assert new.total is not start.total
    assert new.factor is start.factor
    assert new.rng is start.rng


@pytest.mark.parametrize("call", UNDRAWN.values(), ids=UNDRAWN)
def test_a_loop_that_only_reads_gives_back_the_tree(call):
    """L1: and the whole tree, where nothing was written."""
    start = model()
    assert ps.pure(call)(start, 1.0)[1] is start


def fail_in(m, *args):
    m.add(args[-1])
    raise KeyError("mine")


FAILING = {
    "for_loop": lambda m: ps.for_loop(ft.partial(fail_in, m), XS),
    "scan": lambda m: ps.scan(ft.partial(fail_in, m), 0.0, XS),
    "body": lambda m: ps.while_loop(m.below, ft.partial(fail_in, m), 0.0),
    "condition": lambda m: ps.while_loop(ft.partial(lambda m, i: 1 / 0, m), m.advance, 0.0),
    "branch": lambda m: ps.cond(True, add, fail_in, m, 1.0),
}


TRACES: dict[str, Callable[[Any], Any]] = {
    "eager": lambda f: ps.pure(f),
    "jit": lambda f: jax.jit(ps.pure(f)),
    "ps.jit": lambda f: ps.pure(ps.jit(f)),
}


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize("call", FAILING.values(), ids=FAILING)
def test_an_exception_leaves_everything_as_it_was(call, trace):
    """L8: inputs, the live tree around, and what the thread keeps are as before."""

    def run(m):
        m.add(1.0)
        with pytest.raises((KeyError, ZeroDivisionError)):
            call(m)
        return m.add(1.0)

    before = dict(vars(local))
    start = eqx.filter(model(), eqx.is_array)
    y, new = trace(run)(start)
    assert vars(local) == before
    assert (y, new.total.value, start.total.value) == (12, 6, 0)


def test_threads():
    """L9: loops called from many threads give what serial calls give."""

    def run(m, x):
        draws = draw_in_a_loop(m, x)
        ps.scan(m.carry, 0, XS * x)
        return draws, ps.while_loop(m.below, m.advance, x)

    expected = [ps.pure(run)(model(), float(i)) for i in range(8)]
    fresh = lambda i: ps.pure(lambda m, x: run(m, x))(model(), float(i))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got, one in zip(pool.map(fresh, range(8)), expected, strict=True):
            same(got, one)


def everything(m, x):
    """All loops and branches, in one another."""

    def step(m, c, x):
        y = ps.cond(x > 2, m.add, lambda x: 2 * x, x)
        y += ps.while_loop(lambda i: i < 2, ft.partial(advance, m), 0.0)
        return c + y, ps.switch(1, [leave, lambda m, x: x + m.rng.normal()], m, y)

    def outer(m, x):
        return ps.scan(ft.partial(step, m), x, XS)

    return ps.for_loop(ft.partial(outer, m), x * XS)


def test_nothing_leaks():
    """L7: under leak checking and key-reuse checking, eagerly and compiled; and they agree."""
    expected = ps.pure(everything)(model(), 1.0)
    with jax.checking_leaks(), jax.debug_key_reuse(True):
        same(ps.pure(everything)(model(), 1.0), expected)
        same(eqx.filter_jit(ps.pure(everything))(model(), 1.0), expected)
        same(ps.pure(ps.jit(everything))(model(), jnp.float32(1.0)), expected)


def test_without_jit():
    """`jax.disable_jit()` runs steps and branches one by one, to the same end."""
    expected = ps.pure(everything)(model(), 1.0)
    with jax.disable_jit():
        got = ps.pure(everything)(model(), 1.0)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-5)
    np.testing.assert_allclose(got[1].total.value, expected[1].total.value, rtol=1e-5)
    assert jr.key_data(got[1].rng.value).tolist() == jr.key_data(expected[1].rng.value).tolist()


@pytest.mark.parametrize("call", EAGER.values(), ids=EAGER)
def test_programs_keep_no_values(call):
    """Eager loops keep their programs, and none of the arrays that went through them."""
    start = eqx.tree_at(lambda m: m.factor, model(), ps.ParamState(jnp.float32(2.5) + 0))
    kept = [weakref.ref(start.factor), weakref.ref(start.factor.value)]
    _, new = ps.pure(call)(start, 1.0)
    kept += [weakref.ref(new.total), weakref.ref(new.total.value)]
    del start, new
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


@pytest.mark.parametrize("call", ["cond", "while_loop"])
def test_closures_of_the_second_callable_are_collected(call):
    """A closure made for one call goes, with what it holds, also beside a function that stays."""
    kept = []

    def once():
        big = jnp.ones(1000)
        kept.append(weakref.ref(big))
        if call == "cond":
            ps.cond(True, stays, lambda x: x + big[0], 1.0)
        else:
            ps.while_loop(stays_small, lambda x: x + big[0], 1.0)

    once()
    gc.collect()
    assert kept[0]() is None


def stays_small(x):
    return x < 3
