"""Axis specs of loops: which states of `xs` are sliced, shared and carried, and along which axes."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps


X = jnp.arange(4.0)


def tree():
    return {
        "weight": ps.ParamState(jnp.arange(12.0).reshape(3, 4)),
        "hidden": ps.HiddenState(jnp.ones((4, 3))),
        "count": ps.NonBatchState(0),
        "scale": ps.LongTermState(jnp.float32(2.0)),
        "noise": ps.RandomState(3),
    }


def layer(tree, x, y):
    tree["count"].value += 1
    tree["hidden"].value = tree["hidden"].value * tree["scale"].value + x
    total = jnp.sum(tree["hidden"].value) + jnp.sum(y) + tree["noise"].normal()
    return {"a": tree["weight"].value * x, "b": total}


def run(tree, x, y):
    return ps.for_loop(
        layer,
        tree,
        x,
        y,
        in_axes=(0, 0, None),
        out_axes={"a": 1, "b": 0},
        state_in_axes={1: ps.ParamState, "carry": ps.RandomState, None: ps.LongTermState},
        state_out_axes={-1: ps.HiddenState},
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_each_role(compiled):
    """Slices, shared and carried states, and a `NonBatchState`, are what a loop by hand gives."""
    t, y = tree(), jnp.ones(5)
    pure = ps.pure(run)
    out, new = (jax.jit(pure) if compiled else pure)(t, X, y)
    key, hidden, a, b = t["noise"].value, [], [], []
    for i, x in enumerate(X):
        key, own = jr.split(key)
        hidden.append(t["hidden"].value[i] * 2 + x)
        a.append(t["weight"].value[:, i] * x)
        b.append(jnp.sum(hidden[-1]) + 5 + jr.normal(own))
    np.testing.assert_allclose(out["a"], jnp.stack(a, 1))
    np.testing.assert_allclose(out["b"], jnp.stack(b), rtol=1e-6)
    np.testing.assert_allclose(new["hidden"].value, jnp.stack(hidden, -1))
    assert new["count"].value == 4
    assert (jr.key_data(new["noise"].value) == jr.key_data(key)).all()
    if not compiled:
        assert new["weight"] is t["weight"]
        assert new["scale"] is t["scale"]


def test_a_shared_state_is_read_only():
    """A write to a state that all steps share is refused, and the advice runs."""

    def add(t, x):
        t["n"].value += x

    def loop(t, **options):
        return ps.for_loop(add, t, X, **options)

    with pytest.raises(ps.FrozenStateError, match=r"`t\['n'\]` \(State\) is the same in all") as error:
        ps.pure(loop)({"n": ps.State(0.0)}, in_axes=(None, 0))
    advised = re.findall(r"state_in_axes=(\{[^}]*\})", str(error.value))
    starts = (0.0, jnp.zeros(4))
    after = [
        ps.pure(loop)({"n": ps.State(n)}, state_in_axes=eval(spec))[1]["n"].value
        for n, spec in zip(starts, advised, strict=True)
    ]
    assert after[0] == 6.0
    assert after[1].tolist() == X.tolist()


def test_an_empty_state_is_stacked_along_its_axis():
    """What fills an empty state leaves along the axis that a filled one would have."""

    def fill(t, x):
        t["a"].value = x * jnp.ones(2)
        t["b"].value = x

    loop = lambda t: ps.for_loop(fill, t, X, in_axes=(1, 0), state_in_axes={0: ps.HiddenState})
    _, new = ps.pure(loop)({"a": ps.State(), "b": ps.HiddenState()})
    assert new["a"].value.shape == (2, 4)
    assert new["b"].value.tolist() == X.tolist()


def identity(c, x):
    return c, x


@pytest.mark.parametrize(
    ("xs", "options", "error", "message"),
    [
        ({"a": X}, {"in_axes": {"b": 0}}, ValueError, "not a prefix of the structure of xs"),
        (X, {"in_axes": 1}, ValueError, r"`x` of ps.scan\(identity\) is sliced along axis 1"),
        (X, {"in_axes": "a"}, TypeError, "in_axes of a loop are integers, None and functions"),
        (X, {"out_axes": 1}, ValueError, r"`out` has shape \(4,\) .* no axis 1"),
        (X, {"out_axes": None}, ValueError, "gives no axis to an array"),
        (X, {"out_axes": (0, 0)}, ValueError, "not a prefix of what its function returns"),
        (X, {"state_in_axes": {"cary": ps.State}}, TypeError, "and 'carry'; got 'cary'"),
        (X, {"state_out_axes": {"carry": ps.State}}, TypeError, "are axes; got 'carry'"),
        (X, {"checkpoints": 0}, ValueError, "checkpoints is how many steps keep their carry"),
    ],
)
def test_what_is_refused(xs, options, error, message):
    """Axes that are none, that are not there or that fit no tree are named, with axes that are right."""
    with pytest.raises(error, match=message):
        ps.scan(identity, 0, xs, **options)
    assert ps.scan(identity, 0, xs)[0] == 0


def test_a_filter_that_matches_nothing_is_named():
    """A rule that selects no state of `xs` is nearly always a typo."""
    with pytest.warns(ps.UnmatchedFilterWarning, match="matches no state of the xs"):
        ps.scan(identity, 0, X, state_in_axes={0: ps.ParamState})
