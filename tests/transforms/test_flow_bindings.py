"""Loops and branches: where states come from, and which places are refused."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from transforms.flow import XS, Model, add, draws_by_hand, model, same


BINDINGS = {
    "method": lambda m, name: getattr(m, name),
    "partial": lambda m, name: ft.partial(getattr(Model, name), m),
    "jtu.Partial": lambda m, name: jtu.Partial(getattr(Model, name), m),
    "partial of a method": lambda m, name: ft.partial(getattr(m, name)),
    "nested partial": lambda m, name: ft.partial(ft.partial(getattr(Model, name), m)),
    "keyword": lambda m, name: ft.partial(lambda *a, m: getattr(m, name)(*a), m=m),
    "transform": lambda m, name: ps.jit(getattr(m, name)),
}
each_binding = pytest.mark.parametrize("bind", BINDINGS.values(), ids=BINDINGS)


@each_binding
@pytest.mark.parametrize("compiled", [False, True])
def test_states_come_in_through_what_a_function_is_bound_to(bind, compiled):
    """In each way a module can be bound, its writes go from step to step, and come back."""

    def run(m):
        a = ps.for_loop(bind(m, "add"), XS)
        b = ps.scan(bind(m, "carry"), 0, XS)
        c = ps.while_loop(bind(m, "below"), bind(m, "advance"), 1.0)
        d = ps.cond(True, bind(m, "add"), lambda x: x, 1.0)
        e = ps.switch(1, [lambda x: x, bind(m, "add")], 2.0)
        return a, b, c, d, e

    call = ps.pure(run)
    out, new = (eqx.filter_jit(call) if compiled else call)(model())
    total, expected = 0.0, []
    for x in [*XS.tolist(), *XS.tolist(), 1.0, 2.0, 3.0, 1.0, 2.0]:
        total += 3 * x
        expected.append(2 * total)
    np.testing.assert_allclose(out[0], expected[:3])
    assert out[1][0] == 3
    np.testing.assert_allclose(out[1][1], expected[3:6])
    assert (out[2], out[3], out[4]) == (4.0, expected[9], expected[10])
    assert new.total.value == total


def test_a_callable_module():
    """A module that is called is bound to itself."""
    ys, new = ps.pure(lambda m: ps.for_loop(m, XS))(model())
    np.testing.assert_allclose(ys, [6.0, 18.0, 36.0])
    assert new.total.value == 18
    y, new = ps.pure(lambda m: ps.cond(True, m, m, 1.0))(model())
    assert (y, new.total.value) == (6, 3)


CLOSURES: dict[str, Callable[..., Any]] = {
    "for_loop": lambda f: ps.for_loop(f, jnp.zeros(1))[0],
    "scan": lambda f: ps.scan(f, 0.0, length=1)[0],
    "while_loop": lambda f: ps.while_loop(going, f, 0.0),
    "cond": lambda f: ps.cond(True, f, f, 0.0),
    "switch": lambda f: ps.switch(0, [f, f], 0.0),
}


def going(x):
    return x < 1


def reader(m, name):
    """A function that reads a state by closure; made once, so that its programs are kept."""
    if name == "scan":
        return lambda c, x: (c + m.total.value, None)
    return lambda x: x + m.total.value


@pytest.mark.parametrize("name", CLOSURES)
def test_a_captured_state_is_read_and_never_stale(name):
    """An eager loop that reads a state by closure warns, and sees each new value of a live one."""

    def run(m):
        f = reader(m, name)
        seen = [CLOSURES[name](f)]
        for value in (2.0, 5.0):
            m.total.value = value
            seen.append(CLOSURES[name](f))
        return seen

    with pytest.warns(
        ps.CapturedStateWarning,
        match=r"ps\.\w+\(.*\) reads the state `m\.total` \(ShortTermState\), which is not an argument",
    ):
        assert ps.pure(run)(model(1.0))[0] == [1, 2, 5]


@pytest.mark.filterwarnings("ignore::pstate.CapturedStateWarning")
@pytest.mark.parametrize("name", CLOSURES)
def test_a_captured_state_that_was_written_before_is_never_stale(name):
    """The same where the live state was written before the loop first read it."""

    def run(m):
        f, seen = reader(m, name), []
        for value in (2.0, 5.0):
            m.total.value = value
            seen.append(CLOSURES[name](f))
        return seen

    assert ps.pure(run)(model(1.0))[0] == [2, 5]


def test_jit_and_vmap2_notice_a_captured_state_that_was_written_before():
    """The same for `jit`, which refuses, and for `vmap2`, which warns."""

    def run(m, transform):
        m.total.value = 2.0
        return transform(lambda x: x + m.total.value)(jnp.zeros(1))

    with pytest.raises(ps.CapturedStateError):
        ps.pure(run)(model(), ps.jit)
    with pytest.warns(ps.CapturedStateWarning):
        ps.pure(run)(model(), ps.vmap2)


def test_the_warning_of_a_captured_state_gives_advice_for_loops():
    """What it says to do can be done: loops have no `in_axes`; what they have is binding."""
    state = ps.State(2.0)
    with pytest.warns(ps.CapturedStateWarning) as caught:
        ps.for_loop(lambda x: x * state.value, XS)
    (message,) = [str(w.message) for w in caught]
    assert "in_axes" not in message
    assert "ft.partial" in message


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda m: ps.for_loop(lambda x: m.add(x), XS), "ps.for_loop(f)"),
        (lambda m: ps.scan(lambda c, x: (c, m.add(x)), None, XS), "ps.scan(f)"),
        (
            lambda m: ps.while_loop(lambda i: i < 2, lambda i: i + m.add(1.0), 0.0),
            "ps.while_loop(f, f)",
        ),
        (lambda m: ps.cond(True, lambda: m.add(1.0), lambda: 0.0), "ps.cond(f, f)"),
    ],
    ids=["for_loop", "scan", "while_loop", "cond"],
)
def test_a_write_through_a_closure_is_refused(call, name):
    """L8: the error says which loop or choice runs the function, and binding it runs."""
    with pytest.raises(ps.TraceScopeError) as error:
        ps.pure(call)(model())
    assert str(error.value).startswith(
        "`m.total` (ShortTermState) was written under a JAX trace inside ps.pure(f): a function of "
        f"{name} closed over it"
    )
    bound = str(error.value).rpartition("bind it: ")[2].partition("\n")[0].rstrip(".")

    def run(tree):
        return ps.for_loop(eval(bound, {"ft": ft, "f": add, "m": tree}), XS)

    ys, new = ps.pure(run)(model())
    np.testing.assert_allclose(ys, [6.0, 18.0, 36.0])
    assert new.total.value == 18


def test_a_write_to_a_frozen_state_through_a_closure_is_refused():
    """The same for a state that nobody made live."""
    frozen = model()
    message = r"in a function of ps\.for_loop\(f\), but did not come"
    with pytest.raises(ps.FrozenStateError, match=message):
        ps.for_loop(lambda x: frozen.add(x), XS)


def test_states_in_xs_are_sliced_and_stacked():
    """A slice may be written with another shape, an empty one filled, and the rest is untouched."""
    layers = {
        "w": ps.ParamState(jnp.arange(6.0).reshape(3, 2)),
        "last": ps.State(),
        "norm": ps.State(jnp.zeros(3)),
    }

    def layer(h, layer):
        h = h * layer["w"].value + 1
        layer["last"].value = {"h": h, "n": layer["norm"].value}
        layer["norm"].value = jnp.stack([h.sum(), h.max()])
        return h, h.sum()

    def run(layers, h):
        return ps.scan(layer, h, layers)

    (h, sums), new = ps.pure(run)(layers, jnp.ones(2))
    twin, rows = np.ones(2), []
    for w in np.arange(6.0).reshape(3, 2):
        twin = twin * w + 1
        rows.append(twin)
    np.testing.assert_allclose(h, twin)
    np.testing.assert_allclose(sums, np.sum(rows, axis=1))
    np.testing.assert_allclose(new["last"].value["h"], rows)
    assert new["norm"].value.shape == (3, 2)
    assert new["w"] is layers["w"]


def test_scan_over_layers_made_by_filter_vmap():
    """A stack of Equinox layers is a loop over them: leaves are sliced, configuration is not."""
    keys = jr.split(jr.key(0), 4)
    layers = eqx.filter_vmap(lambda k: eqx.nn.MLP(3, 3, 5, 1, activation=jnp.tanh, key=k))(keys)
    h, _ = ps.scan(lambda h, layer: (layer(h), None), jnp.ones(3), layers)
    expected = jnp.ones(3)
    for i in range(4):
        arrays, static = eqx.partition(layers, eqx.is_array)
        expected = eqx.combine(jax.tree.map(lambda x, i=i: x[i], arrays), static)(expected)
    np.testing.assert_allclose(h, expected, rtol=1e-5)


class Unit(ps.nn.Module):
    weight: ps.ParamState
    seen: ps.HiddenState

    def init_state(self, rng):
        self.weight.value = rng.normal()
        self.seen.value = jnp.float32(0)


def test_scan_over_layers_made_by_vmap2_new_states():
    """Each layer of the stack has its states, which come back stacked; all draw from one stream."""
    unit = Unit(ps.ParamState(), ps.HiddenState())
    layers, _ = ps.vmap2_new_states(unit, {"rng": ps.RandomState(0)}, axis_size=3)
    assert len(set(layers.weight.value.tolist())) == 3

    def layer(rng, h, unit):
        h = h * unit.weight.value + 0.1 * rng.normal()
        unit.seen.value = h
        return h, None

    def run(layers, rng, h):
        return ps.scan(ft.partial(layer, rng), h, layers)[0]

    h, (new, rng) = ps.pure(run, argnums=(0, 1))(layers, ps.RandomState(1), 1.0)
    draws, key = draws_by_hand(jr.key(1), 3)
    expected, seen = jnp.float32(1), []
    for w, draw in zip(layers.weight.value, draws, strict=True):
        expected = expected * w + 0.1 * draw
        seen.append(expected)
    np.testing.assert_allclose(h, expected, rtol=1e-5)
    np.testing.assert_allclose(new.seen.value, seen, rtol=1e-5)
    same(rng.value, key)
    assert new.weight is layers.weight


def test_several_callables_of_one_live_module():
    """Both branches, or condition and body, may be bound to one module; it is one module."""

    def run(m):
        m.add(1.0)
        ps.cond(False, m.carry, m.carry, 0, 2.0)
        last = ps.while_loop(m.below, m.advance, 3.0)
        ps.switch(2, [m.add, m, ft.partial(add, m)], last)
        return m.total.value

    out, new = ps.pure(run)(model())
    assert out == new.total.value == 3 * (1 + 2 + 3 + 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: ps.cond(True, ft.partial(lambda a, b: a.add(1.0), m), lambda b: 0.0, m),
        lambda m: ps.cond(True, lambda a, b: a.add(1.0), lambda a, b: 0.0, m, m),
        lambda m: ps.for_loop(ft.partial(lambda a, b, x: b.add(x), m, m), XS),
        lambda m: ps.for_loop(ft.partial(lambda a, x, b: a.add(x), m, b=m), XS),
        lambda m: ps.while_loop(m.below, ft.partial(lambda a, b, i: a.advance(i), m, m), 0.0),
    ],
    ids=["carrier and operand", "operands", "partial", "keyword", "while"],
)
def test_one_state_at_two_places(call):
    """Writing a state that a run sees twice raises, with both places."""
    with pytest.raises(
        ps.AliasedStateError,
        match=r"`[ab]\.total` and `[ab]\.total` are one state object at two places, and it was written",
    ):
        ps.pure(call)(model())


def test_one_state_at_two_places_of_the_second_branch():
    """L8: also where the first branch is bound to it as well, and does not write."""

    def read(a, b):
        return b.total.value

    def write(a, b):
        a.add(1.0)
        b.add(10.0)
        return b.total.value

    with pytest.raises(ps.AliasedStateError, match="are one state object at two places"):
        ps.pure(lambda m: ps.cond(False, ft.partial(read, m), ft.partial(write, m), m))(model())


def test_one_state_at_two_places_may_be_read():
    """Reading is fine: both places hold the same."""
    both = lambda a, b, x: a.total.value + b.total.value + x
    out, new = ps.pure(lambda m: ps.for_loop(ft.partial(both, m, m), XS))(start := model(1.0))
    np.testing.assert_allclose(out, XS + 2)
    assert new is start


def test_a_state_that_is_threaded_and_returned():
    """A live state among the outputs of a step would be two states: it is refused."""

    def step(model, x):
        model.add(x)
        return model.total

    with pytest.raises(ps.AliasedStateError, match="is also in the output as `out"):
        ps.pure(lambda m: ps.for_loop(ft.partial(step, m), XS))(model())
    with pytest.raises(ps.AliasedStateError, match="is also in the output as `out"):
        ps.pure(lambda m: ps.cond(True, lambda m: m.total, lambda m: m.total, m))(model())
