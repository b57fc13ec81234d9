"""What a compiled function was compiled with: numbers, names and captured states never go stale."""

import functools as ft
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from programs.steps import add, deleted, nothing_left_over, zeros


scale = 2.0
held = ps.State(jnp.ones(3))
clean_thread = pytest.fixture(autouse=True)(nothing_left_over)


# Static leaves and staleness ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda k: ps.jit(_times)(jnp.ones(2), k), "k"),
        (lambda k: ps.jit(_times)(jnp.ones(2), k=k), "k"),
        (lambda k: ps.jit(_first_of)({"rate": k, "w": jnp.ones(2)}), r"tree\['rate'\]"),
        pytest.param(
            lambda k: ps.jit(ft.partial(_times_reversed, k))(jnp.ones(2)),
            "k",
        ),
    ],
    ids=["position", "keyword", "leaf", "partial"],
)
def test_a_number_that_keeps_changing(call, place):
    """The fifth value gives one warning that names the number, and its advice ends the compiling."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(8):
            call(k + 0.5)
    (warning,) = [w for w in caught if w.category is ps.RecompilationWarning]
    assert re.match(rf"`{place}` is a Python number and has had 5 values: ps\.jit", str(warning.message))
    assert str(warning.message).endswith("Pass an array: jnp.asarray(4.5).")
    assert warning.filename == __file__
    call(jnp.asarray(4.5))


def _times(x, k):
    return x * k


def _times_reversed(k, x):
    return x * k


def _first_of(tree):
    return tree["w"] * tree["rate"]


@pytest.mark.filterwarnings("ignore::pstate.RecompilationWarning")
def test_numbers_are_told_apart():
    """`1`, `1.0`, `True`, `0.0` and `-0.0` are programs of their own; `nan` is one."""
    seen = []

    def body(x, k):
        seen.append(k)
        return jnp.asarray(k) * x

    step = ps.jit(body)
    for k in (1, 1.0, True, 0.0, -0.0, float("nan"), float("nan"), 1, -0.0):
        step(jnp.ones(()), k)
    assert len(seen) == 6
    assert np.signbit(step(jnp.ones(()), -0.0))
    assert not np.signbit(step(jnp.ones(()), 0.0))


@pytest.mark.parametrize("where", ["position", "partial"])
def test_an_unhashable_leaf(where):
    """It is named by its place, and the advice to pass an array holds."""
    if where == "position":
        with pytest.raises(TypeError, match=r"^`k` is a set, neither an array nor hashable, so ps"):
            ps.jit(_times)(jnp.ones(2), {1, 2})
    else:
        tree = {"s": zeros()}
        partial = ft.partial(lambda k, tree, x: tree["s"].value * x, {1}, tree)
        with pytest.raises(TypeError, match=r"^`k` is a set, neither an array nor hashable"):
            ps.jit(partial)(jnp.ones(3))
    np.testing.assert_array_equal(ps.jit(_times)(jnp.ones(2), jnp.asarray([1, 2])), [1, 2])


@pytest.mark.parametrize("packed", [False, True])
def test_rebound_names(packed, monkeypatch):
    """A rebound global, closure, default and keyword default are seen by a wrapper that was kept."""
    factor = 2.0

    def by_global(state, x):
        return x * scale

    def by_closure(state, x):
        return x * factor

    def by_default(state, x, k=2.0):
        return x * k

    def by_keyword(state, x, *, k=2.0):
        return x * k

    functions = (by_global, by_closure, by_default, by_keyword)
    steps = [ps.pure(ps.jit(f)) for f in functions]
    tree = ps.pack({"s": zeros()}) if packed else {"s": zeros()}
    assert [step(tree, jnp.ones(()))[0].item() for step in steps] == [2, 2, 2, 2]
    monkeypatch.setitem(globals(), "scale", 3.0)
    factor = 4.0
    by_default.__defaults__ = (5.0,)
    by_keyword.__kwdefaults__ = {"k": 6.0}
    assert [step(tree, jnp.ones(()))[0].item() for step in steps] == [3, 4, 5, 6]


# Captured states ------------------------------------------------------------------------------------


def test_a_captured_state():
    """A state that is not an argument is refused, also if the body catches errors; the advice runs."""

    def swallow(x):
        try:
            return x + held.value
        except Exception:
            return x

    message = (
        r"^ps\.jit\(swallow\) reads the state `State\(f32\[3\]\)`, which did not come in through its "
        r"arguments\. Compiled, it would keep the value that the state has now and go stale\. Pass the "
        r"tree that holds the state as an argument\.$"
    )
    step = ps.jit(swallow)
    for look in (step, step.lower, lambda x: step.get_jaxpr_by_cache(step.get_arg_cache_key(x))):
        with pytest.raises(ps.CapturedStateError, match=message):
            look(jnp.ones(3))
    with jax.disable_jit():
        np.testing.assert_array_equal(step(jnp.ones(3)), np.full(3, 2.0))
    out = ps.jit(lambda state, x: x + state.value)(held, jnp.ones(3))
    np.testing.assert_array_equal(out, np.full(3, 2.0))


@pytest.mark.parametrize(
    "inside", [jax.jit, ps.checkpoint, lambda f: jax.vmap(f), lambda f: ps.grad(lambda x: f(x).sum())]
)
def test_a_state_captured_deeper(inside):
    """A transform inside the body hides nothing."""
    with pytest.raises(ps.CapturedStateError, match=r"ps\.jit\(f\) reads the state `State"):
        ps.jit(lambda x: inside(lambda x: x + held.value.sum())(x))(jnp.ones(3))


def test_a_live_state_captured():
    """A body that closes over a live state is refused: to read it, and to write it."""

    def reads(state, x):
        return ps.jit(lambda x: x + state.value)(x)

    def writes(state, x):
        def inner(x):
            state.value = x

        ps.jit(inner)(x)

    with pytest.raises(ps.CapturedStateError, match=r"reads the state `state` \(State\)"):
        ps.pure(reads)(zeros(), jnp.ones(3))
    with pytest.raises(ps.TraceScopeError, match=r"`state` \(State\) was written under a JAX trace"):
        ps.pure(writes)(zeros(), jnp.ones(3))


def test_no_false_alarms():
    """States made in the body, of whatever arrays, are no captures."""

    def body(tree, x):
        made = ps.State(np.ones(3)), ps.State(2.0), ps.State(np.zeros(3)).replace(np.ones(3))
        updated = ps.update({"s": ps.State(np.ones(3))}, {("s",): np.ones(3)})["s"]
        mapped = jtu.tree_map(lambda leaf: np.ones(3, np.float32), tree)["s"]
        changed = eqx.tree_at(lambda t: t["s"].value, tree, np.ones(3, np.float32))["s"]
        with ps.record({"s": ps.State(np.ones(3))}) as live:
            live["s"].value += x
        _, stepped = ps.pure(add)(ps.State(np.ones(3)), x)
        states = (*made, updated, mapped, changed, ps.freeze(live)["s"], stepped)
        return sum(state.value for state in states)

    out = ps.jit(body)({"s": zeros()}, jnp.ones(3))
    np.testing.assert_array_equal(out, np.full(3, 11.0))


def test_no_false_alarm_for_constants_computed_while_tracing():
    """A state of constants that the body made and stepped at compile time is no capture."""

    def body(x):
        with jax.ensure_compile_time_eval():
            _, state = ps.pure(add)(ps.State(jnp.ones(3)), jnp.ones(3))
            return state.value + x

    np.testing.assert_array_equal(ps.jit(body)(jnp.ones(3)), np.full(3, 3.0))


# Looking --------------------------------------------------------------------------------------------


def test_keys_of_calls():
    """Keys are equal for calls that share a program, through any wrapper and with mere shapes."""
    runs = []

    def body(state, x):
        runs.append(None)
        return add(state, x)

    step = ps.jit(body)
    ps.pure(step)(zeros(), jnp.ones(3))
    key = step.get_arg_cache_key(zeros(), jnp.ones(3))
    shapes = jax.eval_shape(lambda: zeros()), jax.ShapeDtypeStruct((3,), jnp.float32)
    for other in (
        ps.jit(body).get_arg_cache_key(zeros(), np.ones(3, np.float32)),
        step.get_arg_cache_key(*shapes),
    ):
        assert other == key
        assert hash(other) == hash(key)
    assert step.get_arg_cache_key(zeros(), 1.0) != key
    assert step.get_arg_cache_key(zeros(), jnp.ones(2)) != key
    assert ps.jit(body, donate=...).get_arg_cache_key(zeros(), jnp.ones(3)) != key
    assert [v.aval.shape for v in step.get_jaxpr_by_cache(key).jaxpr.outvars] == [(3,), (3,)]
    assert step.lower(*shapes).compile() is not None
    assert len(runs) == 1


def test_lower_shows_what_is_donated():
    """A lowered program has the donation of a call, and unwritten states do not leave it."""

    def body(tree, x):
        tree["a"].value += x * tree["b"].value

    tree = {"a": zeros(), "b": zeros(ps.ParamState)}
    text = ps.jit(body, donate=ps.State).lower(tree, jnp.ones(3)).as_text()
    assert text.count("tf.aliasing_output") == 1
    assert deleted(tree) == [False, False]
