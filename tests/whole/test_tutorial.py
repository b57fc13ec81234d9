"""The systems of the vectorisation tutorial that people know from object-mutation libraries.

Sections are numbered as there: 1 the arguments of `vmap2`, 2 random numbers, 3 what stands behind the
mapping, 4 nesting. The printed draws of that tutorial are met digit for digit.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Float

import pstate as ps
from pstate.filter import OfType


# 1 The arguments ----------------------------------------------------------------------------------


def test_1_1_in_axes():
    """`in_axes` means what it means in `jax.vmap`, per argument, and numbers are broadcast."""
    np.testing.assert_array_equal(ps.vmap2(lambda x: x**2)(jnp.arange(1.0, 5.0)), [1.0, 4.0, 9.0, 16.0])
    weighted = ps.vmap2(lambda x, weight: x * weight, in_axes=(0, None))
    np.testing.assert_array_equal(weighted(jnp.array([1.0, 2.0, 3.0]), 2.0), [2.0, 4.0, 6.0])
    product = ps.vmap2(lambda matrix, vector: matrix @ vector, in_axes=(0, 0))
    assert product(jnp.ones((4, 3, 2)), jnp.ones((4, 2))).shape == (4, 3)


def test_1_2_out_axes():
    """`out_axes` says where the lanes stand in the output."""

    def multiples(x: Array) -> Array:
        return jnp.array([x, x * 2, x * 3])

    xs = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(ps.vmap2(multiples)(xs), [[1, 2, 3], [2, 4, 6]])
    np.testing.assert_array_equal(ps.vmap2(multiples, out_axes=1)(xs), [[1, 2], [2, 4], [3, 6]])


def test_1_3_axis_name():
    """Collectives find the axis by its name."""
    centred = ps.vmap2(lambda x: x - jax.lax.pmean(x, "batch"), axis_name="batch")
    np.testing.assert_array_equal(centred(jnp.array([1.0, 2.0, 3.0, 4.0])), [-1.5, -0.5, 0.5, 1.5])


def test_1_4_axis_size():
    """Without a mapped argument the number of lanes must be passed; the error asks for it."""
    sequences = ps.vmap2(lambda: jnp.arange(3), in_axes=None, axis_size=5)
    np.testing.assert_array_equal(sequences(), [[0, 1, 2]] * 5)
    with pytest.raises(ValueError, match=r"nothing to take the number of lanes from.*axis_size=4"):
        ps.vmap2(lambda: jnp.arange(3), in_axes=None)()


class Counter(eqx.Module):
    count: ps.ShortTermState

    def __call__(self, delta: Array) -> Array:
        self.count.value = self.count.value + delta
        return self.count.value


def test_1_5_state_axes():
    """A filter gives each lane its own state; the counter that went in is as it was."""
    counter = Counter(ps.ShortTermState(jnp.zeros(4)))
    mapped = ps.vmap2(
        counter,
        in_axes=0,
        out_axes=0,
        state_in_axes={0: OfType(ps.ShortTermState)},
        state_out_axes={0: OfType(ps.ShortTermState)},
    )
    counts, updated = ps.pure(mapped)(jnp.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(counts, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(updated.count.value, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(counter.count.value, jnp.zeros(4))


class LinearLayer(eqx.Module):
    weight: ps.ParamState[Float[Array, "n m"]]
    bias: ps.ParamState[Float[Array, " m"]]

    def __init__(self, in_features: int, out_features: int):
        self.weight = ps.ParamState(jnp.ones((in_features, out_features)))
        self.bias = ps.ParamState(jnp.zeros(out_features))

    def __call__(self, x: Array) -> Array:
        return x @ self.weight.value + self.bias.value


def test_1_6_modules_are_shared():
    """A bound module's states are broadcast by default; reading needs no boundary."""
    outputs = ps.vmap2(LinearLayer(3, 2))(jnp.ones((4, 3)))
    np.testing.assert_array_equal(outputs, jnp.full((4, 2), 3.0))


class Recorder(eqx.Module):
    temp: ps.ShortTermState
    write: ps.LongTermState

    def __call__(self, x: Array) -> Array:
        self.temp.value = self.temp.value + x
        self.write.value = self.temp.value
        return self.temp.value


def test_1_7_unexpected_writes():
    """An undeclared write that differs between lanes raises, or is stacked where one says so."""
    xs = jnp.array([1.0, 2.0, 3.0])
    recorder = Recorder(ps.ShortTermState(jnp.zeros(3)), ps.LongTermState(0.0))
    temp = {0: OfType(ps.ShortTermState)}
    with pytest.raises(ps.BatchAxisError, match=r"`recorder\.write` \(LongTermState\)"):
        ps.pure(ps.vmap2(recorder, state_in_axes=temp, state_out_axes=temp))(xs)
    for policy in ("ignore", "warn"):
        mapped = ps.vmap2(recorder, state_in_axes=temp, unexpected_out_state_mapping=policy)
        if policy == "warn":
            with pytest.warns(ps.BatchAxisWarning, match=r"`recorder\.write`"):
                result, updated = ps.pure(mapped)(xs)
        else:
            result, updated = ps.pure(mapped)(xs)
        np.testing.assert_array_equal(result, [1.0, 2.0, 3.0])
        np.testing.assert_array_equal(updated.write.value, [1.0, 2.0, 3.0])


# 2 Random numbers -----------------------------------------------------------------------------------


def test_2_1_a_key_per_lane():
    """Lanes draw from keys of their own, with the tutorial's digits."""

    def sample(rng: ps.RandomState, scale: Array) -> Array:
        return rng.normal(0.0, scale)

    samples, _ = ps.pure(ps.vmap2(sample))(ps.RandomState(42), jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert str(samples) == "[-1.0413289 -1.4796011  2.222502   6.412178 ]"


def test_2_1_several_draws():
    """Draws within a lane are independent, with the tutorial's digits."""

    def sample(rng: ps.RandomState, mean: Array) -> Array:
        return rng.uniform(0.0, 1.0) + rng.normal(mean, 1.0)

    results, _ = ps.pure(ps.vmap2(sample))(ps.RandomState(123), jnp.array([0.0, 1.0, 2.0]))
    assert str(results) == "[1.063001  2.0858884 3.2780576]"


def test_2_2_shared_keys():
    """A key that all lanes share is an argument with axis `None`, or a filter."""
    draw = ps.vmap2(lambda key, scale: jr.normal(key) * scale, in_axes=(None, 0))
    scales = jnp.array([1.0, 2.0, 3.0, 4.0])
    shared = draw(jr.PRNGKey(0), scales)
    np.testing.assert_allclose(shared, [1.6226422, 3.2452843, 4.8679266, 6.4905686], rtol=1e-6)
    unique = ps.vmap2(lambda key, scale: jr.normal(key) * scale)
    keys = jr.split(jr.PRNGKey(0), 4)
    np.testing.assert_allclose(
        unique(keys, scales), [1.0040143, -4.8849115, 3.8869078, -2.4877744], rtol=1e-6
    )
    same = ps.vmap2(lambda rng, x: rng.normal() + x, state_in_axes={None: ps.RandomState})
    draws, _ = ps.pure(same)(ps.RandomState(0), jnp.zeros(3))
    assert len(set(draws.tolist())) == 1


class Dropout(eqx.Module):
    rng: ps.RandomState
    rate: float

    def __call__(self, x: Array, training: bool = True) -> Array:
        if not training:
            return x
        keep = self.rng.uniform(0.0, 1.0, x.shape) > self.rate
        return jnp.where(keep, x / (1 - self.rate), 0.0)


def test_2_3_dropout():
    """Every lane has a mask of its own: the tutorial's, entry by entry."""
    dropout = Dropout(ps.RandomState(456), 0.3)
    dropped, _ = ps.pure(ps.vmap2(dropout))(jnp.ones((4, 5)))
    kept = [[0, 1, 1, 0, 1], [1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0]]
    np.testing.assert_allclose(dropped, 1.4285715 * np.array(kept), rtol=1e-6)


# 3 Behind the mapping -------------------------------------------------------------------------------


def accumulate(accumulator: ps.ShortTermState, x: Array) -> Array:
    accumulator.value = accumulator.value + x
    return accumulator.value


def test_3_1_what_a_mapping_shows():
    """A mapping shows the options that it was made with."""
    mapped = ps.vmap2(accumulate, axis_size=4, state_in_axes={0: OfType(ps.ShortTermState)})
    assert type(mapped) is ps.StatefulMapping
    assert mapped.origin_fun is accumulate
    assert (mapped.in_axes, mapped.out_axes) == (0, 0)
    assert mapped.state_in_axes == {0: OfType(ps.ShortTermState)}
    assert mapped.state_out_axes == {}
    assert mapped.axis_name is None
    assert mapped.axis_size == 4


def test_3_2_compiled_once():
    """The first call runs the body once, and the next not at all."""
    runs = []

    def double(x: Array) -> Array:
        runs.append(1)
        return x * 2

    mapped = ps.vmap2(double)
    np.testing.assert_array_equal(mapped(jnp.array([1.0, 2.0, 3.0])), [2.0, 4.0, 6.0])
    assert len(runs) == 1
    np.testing.assert_array_equal(mapped(jnp.array([4.0, 5.0, 6.0])), [8.0, 10.0, 12.0])
    assert len(runs) == 1


class Computation(eqx.Module):
    temp: ps.ShortTermState
    param: ps.ParamState

    def __call__(self, x: Array) -> Array:
        self.temp.value = self.temp.value + x
        return self.temp.value * self.param.value


def test_3_3_states_by_filter():
    """One state is batched, the other shared."""
    model = Computation(ps.ShortTermState(jnp.zeros(3)), ps.ParamState(1.0))
    axes = {0: OfType(ps.ShortTermState)}
    mapped = ps.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    outputs, updated = ps.pure(mapped)(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(outputs, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(updated.temp.value, [1.0, 2.0, 3.0])
    assert updated.param.value is model.param.value


def test_3_4_a_mapping_made_directly():
    """`StatefulMapping` takes a mapping function with the keywords of `jax.vmap`."""
    mapping = ps.StatefulMapping(
        accumulate,
        in_axes=0,
        out_axes=0,
        state_in_axes={0: OfType(ps.ShortTermState)},
        state_out_axes={0: OfType(ps.ShortTermState)},
        name="custom_increment",
        mapping_fn=ft.partial(jax.vmap, spmd_axis_name=None),
    )
    results, counter = ps.pure(mapping)(ps.ShortTermState(jnp.zeros(3)), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(results, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(counter.value, [1.0, 2.0, 3.0])


def test_3_5_the_program():
    """The traced program of a call that ran can be looked at, and has nothing but the computation."""

    def op(state: ps.State, x: Array) -> Array:
        state.value = x + state.value
        return state.value * 2

    mapped = ps.vmap2(op, in_axes=(None, 0), state_out_axes={0: OfType(ps.State)})
    arguments = ps.State(1.0), jnp.array([1.0, 2.0])
    with pytest.warns(ps.BatchAxisWarning, match="grows by an axis on each call"):
        ps.pure(mapped)(*arguments)
    jaxpr = mapped.get_jaxpr_by_cache(mapped.get_arg_cache_key(*arguments))
    assert [eqn.primitive.name for eqn in jaxpr.jaxpr.eqns] == ["add", "mul"]


# 4 Nesting ------------------------------------------------------------------------------------------


def test_4_1_nested():
    """A mapping of a mapping maps two axes."""
    product = ps.vmap2(ps.vmap2(lambda x, y: x * y, in_axes=(0, 0)), in_axes=(0, 0))
    matrix = jnp.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(product(jnp.ones((3, 4)), matrix), matrix)
