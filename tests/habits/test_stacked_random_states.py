"""A stack of layers, each with a random stream: lanes that share the stack draw differently."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps


LAYERS, LANES = 3, 4
XS = jnp.linspace(1.0, 2.0, LANES)


class Noisy(eqx.Module):
    gain: jax.Array
    rng: ps.RandomState

    def __call__(self, x):
        return self.gain * x + self.rng.normal()


def keys(raw):
    split = jr.split(jr.key(7), LAYERS)
    return jr.key_data(split) if raw else split


def stack(raw=False):
    return Noisy(jnp.arange(1.0, 1.0 + LAYERS), ps.RandomState(keys(raw)))


def net(layers, x):
    y, _ = ps.scan(lambda y, layer: (layer(y), None), x, layers)
    return y


def by_hand(raw=False):
    """The same with keys threaded by hand: each key of the stack is split, lane by lane."""
    split = jax.vmap(lambda key: jr.split(key, LANES + 1))(keys(raw))
    kept, own = split[:, 0], jnp.moveaxis(split[:, 1:], 1, 0)

    def lane(keys, x):
        for gain, key in zip(jnp.arange(1.0, 1.0 + LAYERS), keys, strict=True):
            _, drawn = jr.split(key)
            x = gain * x + (0.0 + 1.0 * jr.normal(drawn, ()))
        return x

    return jax.vmap(lane)(own, XS), kept


def data(rng):
    value = rng.value
    return jr.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


ENGINES = {
    "vmap2": ft.partial(ps.vmap2, in_axes=(None, 0)),
    "pmap2": ft.partial(ps.pmap2, in_axes=(None, 0)),
    "chunks": ft.partial(ps.vmap2, in_axes=(None, 0), chunk_size=3),
    "jit": lambda f: ps.jit(ps.vmap2(f, in_axes=(None, 0))),
    "keyword": lambda f: ps.vmap2(f, in_axes={"layers": None, "x": 0}),
}


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("mapped", ENGINES.values(), ids=ENGINES)
def test_each_key_is_split_lane_by_lane(mapped, raw):
    """Every engine gives the draws of keys that were split by hand, and keeps the same keys."""
    ys, new = ps.pure(mapped(net))(stack(raw), XS)
    expected, kept = by_hand(raw)
    np.testing.assert_allclose(ys, expected, rtol=1e-6)
    kept = kept if raw else jr.key_data(kept)
    np.testing.assert_array_equal(data(new.rng), kept)
    assert len(set(np.asarray(ys - by_hand(raw)[0] + jnp.arange(LANES)).tolist())) == LANES


def test_a_lane_by_itself_draws_alike():
    """`lane(i)` draws what lane `i` draws."""
    mapped = ps.vmap2(net, in_axes=(None, 0))
    ys, _ = ps.pure(mapped)(stack(), XS)
    alone = [ps.pure(mapped.lane(i))(stack(), XS)[0] for i in range(LANES)]
    np.testing.assert_allclose(ys, jnp.stack(alone), rtol=1e-6)


def test_a_bound_stack():
    """The leaves of a bound module are shared, and its keys are split too."""

    class Net(eqx.Module):
        layers: Noisy

        def __call__(self, x):
            return net(self.layers, x)

    ys, new = ps.pure(ps.vmap2(Net(stack())))(XS)
    expected, kept = by_hand()
    np.testing.assert_allclose(ys, expected, rtol=1e-6)
    np.testing.assert_array_equal(data(new.layers.rng), jr.key_data(kept))


def test_undrawn_keys_stay():
    """A stack that no lane draws from comes back as the same key objects."""
    layers = stack()
    _, new = ps.pure(ps.vmap2(lambda layers, x: layers.gain.sum() * x, in_axes=(None, 0)))(layers, XS)
    assert new.rng.value is layers.rng.value


def test_nested_mappings():
    """Keys that two mappings share are split by the outer, then by the inner."""
    inner = ps.vmap2(net, in_axes=(None, 0))
    ys, _ = ps.pure(ps.vmap2(inner, in_axes=(None, 0)))(stack(), jnp.ones((2, LANES)))
    assert len(set(np.asarray(ys).ravel().tolist())) == 2 * LANES


def test_a_rule_shares_them():
    """`{None: ps.RandomState}` gives all lanes the same keys, and a rule maps them by an axis."""
    shared = ps.vmap2(net, in_axes=(None, 0), state_in_axes={None: ps.RandomState})
    ys, _ = ps.pure(shared)(stack(), jnp.ones(LANES))
    assert len(set(np.asarray(ys).tolist())) == 1
    one = lambda layers, x: layers.rng.normal()
    mapped = ps.vmap2(one, in_axes=(None, 0), state_in_axes={0: ps.RandomState})
    draws, new = ps.pure(mapped)(stack(), jnp.ones(LAYERS))
    expected = [jr.normal(jr.split(key)[1], ()) for key in keys(False)]
    np.testing.assert_allclose(draws, jnp.stack(expected), rtol=1e-6)
    assert new.rng.value.shape == (LAYERS,)


def test_dropout_masks_differ_between_the_examples_of_a_batch():
    """Dropout in a scanned stack zeroes other entries in each example, as in a list of layers."""
    make = lambda key: ps.nn.Dropout(0.5, key=key)
    layers = eqx.filter_vmap(make)(jr.split(jr.key(0), LAYERS))
    ys, _ = ps.pure(ps.vmap2(net, in_axes=(None, 0)))(layers, jnp.ones((8, 64)))
    assert len({tuple(row) for row in np.asarray(ys).tolist()}) == 8


def test_no_key_is_used_twice():
    """JAX's own check of key reuse passes. (In a mapped scan over keys it raises false alarms.)"""
    draws = lambda layers, x: x + jax.vmap(jr.normal)(layers.rng.value).sum()
    with jax.debug_key_reuse(True), jax.checking_leaks():
        ys, _ = ps.pure(ps.vmap2(draws, in_axes=(None, 0)))(stack(), XS)
    assert len(set(ys.tolist())) == LANES
