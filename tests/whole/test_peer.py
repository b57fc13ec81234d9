"""Side by side with brainstate, whose calls these have the names of; skipped where it is not installed.

The same seeds and the same model give the same numbers. Where the two differ on purpose, or where the
peer has a known fault, a test says so.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bs = pytest.importorskip("brainstate")

pytestmark = pytest.mark.filterwarnings("ignore")


class TheirCell(bs.nn.Module):
    def init_state(self, size):
        self.weight = bs.ParamState(bs.random.normal(0.0, 1.0, size))
        self.hidden = bs.ShortTermState(jnp.zeros(size))

    def update(self, x):
        self.hidden.value = self.hidden.value + x
        return (self.hidden.value * self.weight.value).sum()

    def predict(self, x):
        return x * self.weight.value.sum()


class OurCell(ps.nn.Module):
    weight: ps.ParamState = ps.ParamState()
    hidden: ps.ShortTermState = ps.ShortTermState()

    def init_state(self, size, rng):
        self.weight.value = rng.normal(0.0, 1.0, size)
        self.hidden.value = jnp.zeros(size)

    def update(self, x):
        self.hidden.value = self.hidden.value + x
        return (self.hidden.value * self.weight.value).sum()

    def predict(self, x):
        return x * self.weight.value.sum()


def test_draws_in_vmap2():
    """The same seed gives the lanes the same draws, several in a row."""
    bs.random.seed(7)
    scales = jnp.array([1.0, 2.0, 3.0])
    theirs = bs.transform.vmap2(lambda s: bs.random.normal(0.0, s) + bs.random.uniform(0.0, 1.0))(scales)
    body = lambda rng, s: rng.normal(0.0, s) + rng.uniform(0.0, 1.0)
    ours, _ = ps.pure(ps.vmap2(body))(ps.RandomState(7), scales)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_states_in_vmap2():
    """The same filters give the same counts."""
    their_count = bs.ShortTermState(jnp.zeros(4))

    def theirs(delta):
        their_count.value = their_count.value + delta
        return their_count.value * 2

    def ours(count, delta):
        count.value = count.value + delta
        return count.value * 2

    axes = {0: bs.util.filter.OfType(bs.ShortTermState)}
    mapped = bs.transform.vmap2(theirs, state_in_axes=axes, state_out_axes=axes)
    deltas = jnp.arange(4.0)
    count = ps.ShortTermState(jnp.zeros(4))
    for _ in range(2):
        expected = mapped(deltas)
        out, count = ps.pure(ps.vmap2(ours))(count, deltas)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(count.value, their_count.value)


def test_new_states():
    """States made for all lanes have the same values. Here the input module stays as it was."""
    bs.random.seed(3)
    theirs = TheirCell()
    bs.transform.vmap2_new_states(theirs, {"size": (3,)}, axis_size=2)
    kwargs = {"size": (3,), "rng": ps.RandomState(3)}
    ours, new = ps.vmap2_new_states(OurCell(), kwargs, axis_size=2)
    np.testing.assert_array_equal(ours.weight.value, theirs.weight.value)
    np.testing.assert_array_equal(ours.hidden.value, theirs.hidden.value)
    assert set(new) == {0}


def test_map():
    """`Map` gives the same outputs and states, call after call."""
    bs.random.seed(5)
    theirs = bs.nn.Map(TheirCell(), init_map_size=4)
    theirs.init_all_states(size=(3,))
    ours = ps.nn.Map(OurCell(), 4).init_all_states(size=(3,), rng=ps.RandomState(5))
    for step in range(2):
        x = jnp.arange(4.0) + step
        expected = theirs.update(x)
        out, ours = ps.pure(ours.update)(x)
        np.testing.assert_allclose(out, expected, rtol=1e-6)
        np.testing.assert_array_equal(ours.module.hidden.value, theirs.module.hidden.value)
    np.testing.assert_allclose(ours.map("predict")(x), theirs.map("predict")(x), rtol=1e-6)
