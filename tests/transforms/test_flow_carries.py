"""Loops and branches: what stands in a carry is data, and keeps its type."""

import functools as ft

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps
from transforms.flow import XS, add, advance, advised, below, carry, model, same


def test_frozen_states_in_a_carry_are_data():
    """They are read, replaced, and go through `pure` in the body; outside nothing is threaded."""

    def step(carry, x):
        m, total = carry
        y, m = ps.pure(add)(m, x)
        return (m, total.replace(total.value + y)), m.total

    (last, total), totals = ps.scan(step, (model(), ps.State(0.0)), XS)
    assert (last.total.value, total.value) == (18, 60)
    assert last.activation is jnp.tanh
    assert type(totals) is ps.ShortTermState
    np.testing.assert_allclose(totals.value, [3.0, 9.0, 18.0])
    out = ps.while_loop(
        lambda c: c[0].total.value < 15, lambda c: (ps.pure(add)(c[0], 2.0)[1], c[1] + 1), (model(), 0)
    )
    assert (out[0].total.value, out[1]) == (18, 3)


def test_a_write_into_a_carry_is_refused():
    """The state of a carry is data; both ways that the message names are right."""

    def step(total, x):
        total.value += x
        return total, None

    for run in (
        lambda: ps.scan(step, ps.State(0.0), XS),
        lambda: ps.while_loop(lambda t: t.value < 3, lambda t: step(t, 1.0)[0], ps.State(0.0)),
    ):
        with pytest.raises(
            ps.FrozenStateError, match=r"is in the carry of .* and was written\. A carry"
        ):
            run()
    last, _ = ps.scan(lambda state, x: (state.replace(state.value + x), None), ps.State(0.0), XS)
    _, threaded = ps.pure(lambda t: ps.for_loop(ft.partial(lambda t, x: step(t, x)[1], t), XS))(
        ps.State(0.0)
    )
    assert last.value == threaded.value == 6


LIVE = {
    "alone": (lambda m: ps.scan(lambda m, x: (m, add(m, x)), m, XS), add),
    "a pair": (lambda m: ps.scan(lambda c, x: ((c[0], c[1] + 1), add(c[0], x)), (m, 0), XS), carry),
}


@pytest.mark.parametrize(("run", "f"), LIVE.values(), ids=LIVE)
def test_a_live_state_in_a_carry(run, f):
    """It is refused, and the rewritten line runs."""
    with pytest.raises(ps.StateTypeError, match=r"is live and is in the carry of ps\.scan") as error:
        ps.pure(run)(model())

    def right(tree):
        return advised(error, {"f": f, "m": tree, "model": tree, "carry": 0, "xs": XS})["ys"]

    ys, new = ps.pure(right)(model())
    np.testing.assert_allclose(ys, [6.0, 18.0, 36.0])
    assert new.total.value == 18


def test_a_live_state_in_the_carry_of_a_while_loop():
    """The same for `while_loop`, alone in the carry and with more beside it."""

    def go(m):
        return m.total.value < 15

    def body(m):
        m.add(1.0)
        return m

    with pytest.raises(
        ps.StateTypeError, match=r"is live and is in the carry of ps\.while_loop"
    ) as error:
        ps.pure(lambda m: ps.while_loop(go, body, m))(model())
    rewritten = {"go": lambda m, _: go(m), "body": lambda m, _: body(m) and None}
    _, new = ps.pure(lambda m: advised(error, {**rewritten, "m": m}) and None)(model())
    assert new.total.value == 15

    def go_on(c):
        return below(*c)

    def next_(c):
        return c[0], advance(*c)

    with pytest.raises(
        ps.StateTypeError, match=r"is live and is in the carry of ps\.while_loop"
    ) as error:
        ps.pure(lambda m: ps.while_loop(go_on, next_, (m, 1.0)))(model())
    rewritten = {"go_on": below, "next_": advance, "carry": 1.0}
    last, new = ps.pure(lambda m: advised(error, {**rewritten, "model": m})["carry"])(model())
    assert (last, new.total.value) == (4, 18)


def test_a_live_tree_as_data():
    """The last line of the message: a frozen copy may be carried, and comes back by itself."""

    def run(m):
        last, _ = ps.scan(lambda m, x: (ps.pure(add)(m, x)[1], None), ps.freeze(m), XS)
        return last.total.value

    last, untouched = ps.pure(run)(start := model())
    assert last == 18
    assert untouched is start


def test_a_live_state_in_a_dict_with_more():
    """A dict of a live model and a number keeps a carry in the rewritten line."""

    def step(carry, x):
        return {"model": carry["model"], "n": carry["n"] + 1}, carry["model"].add(x)

    with pytest.raises(ps.StateTypeError) as error:
        ps.pure(lambda m: ps.scan(step, {"model": m, "n": 0}, XS))(model())
    assert "ps.scan(ft.partial(step, model), carry, xs)" in str(error.value)


def test_nested_loops_that_carry_data():
    """A body may hand its own carry, which is data, to an inner loop."""
    inner = lambda s, x: (s.replace(s.value + x), None)
    last, _ = ps.scan(lambda s, x: (ps.scan(inner, s, x * jnp.ones(2))[0], None), ps.State(0.0), XS)
    assert last.value == 12


def test_static_leaves():
    """Functions and flags in carries, operands and outputs stay as they are."""
    frozen = model()
    (last, n), ys = ps.scan(
        lambda c, x: ((c[0], c[1] + 1), (c[0].activation(x), "name")), (frozen, 0), XS
    )
    assert (last.activation, last.inference, n, ys[1]) == (jnp.tanh, False, 3, "name")
    np.testing.assert_allclose(ys[0], jnp.tanh(XS), rtol=1e-6)
    out = ps.cond(
        True, lambda m, f: (f(1.0), f, m.inference), lambda m, f: (0.0, f, False), frozen, jnp.tanh
    )
    assert out[1] is jnp.tanh
    same(out[2], jnp.asarray(False))
    made = ps.switch(0, [lambda: model(1.0), lambda: model(2.0)])
    assert (made.total.value, made.inference, made.activation) == (1, False, jnp.tanh)
    out = ps.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (0, jnp.tanh))
    assert out[1] is jnp.tanh


def test_static_leaves_that_change():
    """A flag that changes in a carry, or that differs between branches, is named."""
    with pytest.raises(
        TypeError, match=r"`carry\.inference` came into ps\.scan\(f\) as False, which is not a"
    ):
        ps.scan(lambda m, x: (eqx.nn.inference_mode(m), None), model(), XS)
    with pytest.raises(
        TypeError, match=r"The branches of ps\.cond\(f, f\) return the same tree with the same"
    ):
        ps.cond(True, lambda m: m, lambda m: eqx.nn.inference_mode(m), model())
    with pytest.raises(TypeError, match=r"`carry\[1\]` came into ps\.while_loop\(f, f\) as <"):
        ps.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin), (0, jnp.tanh))


def test_carries_that_change():
    """The carry's tree and types are kept, and the message shows both."""
    with pytest.raises(TypeError) as error:
        ps.scan(lambda c, x: ((c[0], c[1], x), None), (jnp.float32(0), jnp.int32(1)), XS)
    assert str(error.value) == (
        "The carry of ps.scan(f) came in as (f32[], i32[]) but the body returned (f32[], i32[], f32[]). "
        "A loop keeps the tree of its carry: return a carry with the same containers and states."
    )
    with pytest.raises(TypeError) as error:
        ps.while_loop(lambda c: True, lambda c: {"a": c["a"].astype(float)}, {"a": jnp.int32(0)})
    assert str(error.value) == (
        "`carry['a']` came into ps.while_loop(f, f) as i32[], but the body returned f32[]. A loop keeps "
        "the types of its carry: return the same shape and dtype, jnp.asarray(new, old.dtype), or give "
        "it the other type before the loop."
    )
    with pytest.raises(
        TypeError, match=r"returns a pair, \(carry, y\); got .* Write return carry, None if"
    ):
        ps.scan(lambda c, x: c, jnp.zeros(2), XS)
