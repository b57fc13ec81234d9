"""Values that no rule of `jax.vmap` tells from others, and that differ between shards all the same."""

import functools as ft
import itertools
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call
from jax.experimental import io_callback
from jax.sharding import PartitionSpec as P

import pstate as ps
from shard_map.meshes import mesh


COUNTER = itertools.count()
FLOAT = jax.ShapeDtypeStruct((), jnp.float32)


def counted() -> Any:
    return io_callback(lambda: np.float32(next(COUNTER)), FLOAT)


@custom_vmap
def averaged_over_lanes(x: Any) -> Any:
    return 1.0 * x


@averaged_over_lanes.def_vmap
def _rule(axis_size: int, in_batched: Any, x: Any) -> Any:
    return x.mean(axis=0), False


def own_place(rest: Any, x: Any) -> Any:
    return x * (1.0 + lax.axis_index("data"))


DIFFER = {
    "io_callback": lambda x: counted(),
    "io_callback in jit": lambda x: jax.jit(counted)(),
    "io_callback in scan": lambda x: lax.scan(lambda c, _: (c + counted(), None), 0.0, None, 2)[0],
    "a rule of custom_vmap": lambda x: averaged_over_lanes(x.sum()),
    "unvmap_any": lambda x: jnp.where(eqxi.unvmap_any(x.sum() > 5), 1.0, 2.0),
    "linear_call": lambda x: linear_call(own_place, own_place, (), 1.0),
    "rng_uniform": lambda x: lax.rng_uniform(0.0, 1.0, ()),
}


@pytest.mark.parametrize("name", DIFFER)
def test_differing_values_are_refused(name: str):
    """Each of these was one shard's number, taken for that of all."""
    f = DIFFER[name]
    of = lambda out: ps.shard_map2(
        lambda x: jnp.reshape(f(x), (1,)), mesh=mesh(4), in_specs=P("data"), out_specs=out
    )
    x = jnp.arange(8.0)
    with pytest.raises(ps.BatchAxisError, match="same in all shards"):
        of(P())(x)
    if name != "rng_uniform" or jax.__version_info__ >= (0, 7):  # JAX 0.6 ends the process there
        assert of(P("data"))(x).shape == (4,)


def solved(x: Any) -> Any:
    scale = lax.pmean(x.mean(), "data")
    return jax.scipy.sparse.linalg.cg(lambda v: lax.pmean(scale * v, "data"), jnp.ones(3), maxiter=3)[0]


def solved_in_each(x: Any) -> Any:
    return jax.scipy.sparse.linalg.cg(lambda v: (1 + x.sum()) * v, jnp.ones(3), maxiter=3)[0]


def test_linear_solves_are_followed():
    """A solve of what all shards share, with collectives in it, is the same; one of a shard is not."""
    x = jnp.arange(8.0)
    of = lambda f: ps.shard_map2(f, mesh=mesh(4), in_specs=P("data"), out_specs=P())
    np.testing.assert_allclose(of(solved)(x), np.full(3, 1 / 3.5), rtol=1e-5)
    with pytest.raises(ps.BatchAxisError, match="same in all shards"):
        of(solved_in_each)(x)


def test_barriers_keep_values_apart():
    """What stands beside a value in `optimization_barrier` does not touch it."""

    def f(x: Any) -> Any:
        return lax.optimization_barrier((lax.pmean(x.mean(), "data"), x))[0]

    assert ps.shard_map2(f, mesh=mesh(4), in_specs=P("data"), out_specs=P())(jnp.arange(8.0)) == 3.5


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="JAX 0.6 has no references in shards")
def test_references_are_taken_for_the_worst():
    """What a reference holds may have been written by a shard alone."""

    def f(x: Any) -> Any:
        ref = jax.new_ref(jnp.zeros(()))  # pyright: ignore[reportAttributeAccessIssue]

        @jax.jit
        def fill(ref: Any, x: Any) -> None:
            ref[...] = x.sum()

        fill(ref, x)
        return jax.freeze(ref)  # pyright: ignore[reportAttributeAccessIssue]

    with pytest.raises(ps.BatchAxisError, match="same in all shards"):
        ps.shard_map2(f, mesh=mesh(4), in_specs=P("data"), out_specs=P())(jnp.arange(8.0))


def test_names_of_axes_are_strings():
    """Others JAX allows too, and they would not be followed; the mesh with strings then works."""
    f = lambda name: lambda x: lax.axis_index(name) + 0 * x.sum()
    odd = jax.sharding.Mesh(np.array(jax.devices()[:4]), (frozenset("a"),))
    with pytest.raises(TypeError, match="names that are strings"):
        ps.shard_map2(f(frozenset("a")), mesh=odd, in_specs=P(), out_specs=P())(jnp.ones(3))
    with pytest.raises(ps.BatchAxisError):
        ps.shard_map2(f("data"), mesh=mesh(4), in_specs=P(), out_specs=P())(jnp.ones(3))


def test_a_checked_value_stays_the_same():
    """`eqx.error_if` chooses between branches, here by what all shards agree on."""

    def f(x: Any) -> Any:
        mean = lax.pmean(x.mean(), "data")
        return eqx.error_if(mean, lax.pmax(x.max(), "data") < 0, "all negative")

    assert ps.shard_map2(f, mesh=mesh(4), in_specs=P("data"), out_specs=P())(jnp.arange(8.0)) == 3.5


def _layer(model: Any, x: Any) -> Any:
    model["calls"].value += 1
    return jnp.sum(jnp.sin(model["w"].value * x))


def _recomputed(model: Any, xs: Any) -> Any:
    return ps.checkpoint(_layer)(model, xs)


def _with_checkpoints(model: Any, xs: Any) -> Any:
    return jnp.sum(ps.for_loop(ft.partial(_layer, model), xs, checkpoints=1))


def _of_recomputed(model: Any, xs: Any) -> Any:
    return jnp.sum(ps.for_loop(ft.partial(ps.checkpoint(_layer), model), xs))


def _in_chunks(model: Any, xs: Any) -> Any:
    return jnp.sum(ps.vmap2(_layer, in_axes=(None, 0), chunk_size=1)(model, xs))


@pytest.mark.parametrize("loss", [_recomputed, _with_checkpoints, _of_recomputed, _in_chunks])
def test_a_count_stays_the_same_where_losses_are_recomputed(loss: Any):
    """The same in all shards is what a rematerialised body writes from what they share."""

    def gradient(model: Any, xs: Any) -> Any:
        return lax.pmean(ps.grad(loss)(model, xs)["w"].value, "data")

    step = ps.shard_map2(gradient, mesh=mesh(4), in_specs=(P(), P("data")), out_specs=P())
    model, xs = {"w": ps.ParamState(2.0), "calls": ps.State(0)}, jnp.arange(8.0)
    found, after = ps.pure(step)(model, xs)
    np.testing.assert_allclose(found, np.sum(xs * np.cos(2.0 * xs)) / 4, rtol=1e-5)
    assert after["calls"].value == (2 if loss in (_with_checkpoints, _of_recomputed) else 1)
