"""Chunks, loops and branches in the body of `jax.shard_map`, where values vary over the mesh."""

import functools as ft
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import pstate as ps


#: JAX 0.10 and later trace a body for values that vary over the mesh.
TRACES = jax.__version_info__ >= (0, 10)

XS = jnp.arange(32.0).reshape(16, 2)


def on_shards(f, **options):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"), **options))(XS)


def step(s, x):
    s["v"].value = s["v"].value / 2 + x.sum()
    return s["v"].value


# Chunks -------------------------------------------------------------------------------------------


def own(x, **options):
    return ps.pure(ps.vmap2(step, **options))({"v": ps.State(jnp.zeros(4))}, x)[0]


def shared(x, **options):
    def count(s, x):
        s.value += 1
        return x

    out, s = ps.pure(ps.vmap2(count, in_axes=(None, 0), **options))(ps.State(x.sum()), x)
    return out + s.value


def drawn(x, **options):
    draw = lambda rng, x: x + jr.bits(rng.key(), dtype=jnp.uint8)
    return ps.pure(ps.vmap2(draw, in_axes=(None, 0), **options))(ps.RandomState(0), x)[0]


@pytest.mark.parametrize("f", [own, shared, drawn])
@pytest.mark.parametrize("chunk_size", [2, 3])
def test_chunks(f, chunk_size):
    """In chunks a shard gives what it gives at once, or says what to leave out."""
    at_once = on_shards(f)
    chunked = ft.partial(f, chunk_size=chunk_size)
    np.testing.assert_array_equal(on_shards(chunked, check_vma=False), at_once)
    if TRACES:
        np.testing.assert_array_equal(on_shards(chunked), at_once)
    else:
        with pytest.raises(NotImplementedError, match="Leave chunk_size out, or pass check_vma=False"):
            on_shards(chunked)


# Loops and branches -------------------------------------------------------------------------------


def scan(s, x):
    return ps.scan(ft.partial(lambda s, c, x: (c, step(s, x)), s), 0, x)[1]


def for_loop(s, x):
    return ps.for_loop(ft.partial(step, s), x)


def while_loop(s, x):
    body = ft.partial(lambda s, n: (step(s, x), n + 1)[1], s)
    ps.while_loop(lambda n: n < 3, body, 0)
    return s["v"].value[None]


def cond(s, x):
    ps.cond(XS.sum() > 1, lambda s: step(s, x) * 0, lambda s: x.sum() * 0, s)
    return s["v"].value[None]


def switch(s, x):
    ps.switch(1, [lambda s: x.sum() * 0, lambda s: step(s, x) * 0], s)
    return s["v"].value[None]


FLOWS = [scan, for_loop, while_loop, cond, switch]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_state_that_varies_over_more_of_the_mesh(flow):
    """The error names the state, and the line that it advises makes it run."""

    def run(x, first=lambda s: None):
        def body(s, x):
            first(s)
            return flow(s, x)

        return ps.pure(body)({"v": ps.State(0.0)}, x)[0]

    with pytest.raises(
        ps.StateTypeError, match=r"`s\['v'\]` \(State\) .* over the mesh axes \('d',\)"
    ) as e:
        on_shards(run)
    (code,) = re.findall(r"state\.value = jax\.lax\.\w+\(.*\)", str(e.value))

    def first(s):
        exec(code, {"jax": jax, "state": s["v"]})

    np.testing.assert_array_equal(
        on_shards(ft.partial(run, first=first)), on_shards(run, check_vma=False)
    )


@pytest.mark.parametrize("flow", FLOWS)
def test_a_state_that_varies_from_the_start(flow):
    """Nothing is asked for where types agree."""
    run = lambda x: ps.pure(flow)({"v": ps.State(x.sum())}, x)[0]
    np.testing.assert_array_equal(on_shards(run), on_shards(run, check_vma=False))
