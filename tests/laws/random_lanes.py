"""Cases of random states in lanes."""

import jax
import jax.numpy as jnp
import jax.random as jr

import pstate as ps
from laws.models import draw
from laws.table import case, tick


@case(
    make=lambda: ps.vmap2(draw),
    args=lambda: (ps.RandomState(0), jnp.arange(4.0)),
    commutes=False,
)
def a_key_per_lane(rng, scales):
    keys = jr.split(rng.value, 5)
    kept = keys[0]

    def lane(key, scale):
        kept, own = jr.split(key)
        return 0.0 + scale * jr.normal(own, ()), kept

    ys, _ = jax.vmap(lane)(keys[1:], scales)
    return ys, ps.RandomState(kept)


@case(
    make=lambda: ps.vmap2(draw),
    args=lambda: (ps.RandomState(jr.PRNGKey(0)), jnp.arange(4.0)),
    commutes=False,
)
def a_raw_key_per_lane(rng, scales):
    return a_key_per_lane(rng, scales)


@case(
    make=lambda: ps.vmap2(draw, state_in_axes={None: ps.RandomState}, in_axes=(0, 0)),
    args=lambda: (ps.RandomState(0), jnp.arange(4.0)),
)
def one_key_for_all(rng, scales):
    def lane(key, scale):
        kept, own = jr.split(key)
        return 0.0 + scale * jr.normal(own, ()), kept

    ys, kept = jax.vmap(lane, in_axes=(None, 0), out_axes=(0, None))(rng.value, scales)
    return ys, ps.RandomState(kept)


@case(
    make=lambda: ps.vmap2(draw),
    args=lambda: (ps.RandomState(jr.split(jr.key(1), 4)), jnp.arange(4.0)),
)
def a_batch_of_keys(rng, scales):
    def lane(key, scale):
        kept, own = jr.split(key)
        return 0.0 + scale * jr.normal(own, ()), kept

    ys, kept = jax.vmap(lane)(rng.value, scales)
    return ys, ps.RandomState(kept)


def draw_from_each(rng, x):
    tick()
    return x + jax.vmap(jr.normal)(rng.value).sum()


@case(
    make=lambda: ps.vmap2(draw_from_each, in_axes=(None, 0)),
    args=lambda: (ps.RandomState(jr.split(jr.key(2), 3)), jnp.arange(4.0)),
    commutes=False,
)
def a_stack_of_keys_split_for_lanes(rng, xs):
    keys = jax.vmap(lambda key: jr.split(key, 5), out_axes=1)(rng.value)
    # As data, for the sake of JAX's check of key reuse.
    impl, data = jr.key_impl(keys), jr.key_data(keys)
    kept, own = (jr.wrap_key_data(part, impl=impl) for part in (data[0], data[1:]))
    ys = jax.vmap(lambda key, x: x + jax.vmap(jr.normal)(key).sum())(own, xs)
    return ys, ps.RandomState(kept)


def never_draws(rng, x):
    tick()
    return x + 1


@case(
    make=lambda: ps.vmap2(never_draws),
    args=lambda: (ps.RandomState(0), jnp.arange(4.0)),
    unwritten=lambda rng: rng,
)
def nothing_drawn(rng, xs):
    return jax.vmap(lambda x: x + 1)(xs), rng
