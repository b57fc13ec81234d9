"""Over which mesh axes the outputs of a program may differ: what is found out, and what is true."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from pstate._shard_map.agreement import flow
from shard_map.meshes import mesh


NAMES = frozenset({"data", "model"})
NONE, DATA, MODEL, BOTH = frozenset(), frozenset({"data"}), frozenset({"model"}), NAMES


def program(f: Any) -> Any:
    """The program of one shard: `a` is the same in all, `b` is cut over `data`, `c` over both axes."""
    mapped = jax.shard_map(
        f,
        mesh=mesh(2, 2),
        in_specs=(P(), P("data"), P(("data", "model"))),
        out_specs=P(("data", "model")),
        check_vma=False,
    )
    args = jnp.ones(4), jnp.arange(8.0), jnp.arange(16.0)
    (eqn,) = jax.make_jaxpr(mapped)(*args).jaxpr.eqns
    return eqn.params["jaxpr"]


INPUTS = [NONE, DATA, BOTH]


def scanned(a: Any, b: Any, c: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        mean, own = carry
        return (lax.pmean(mean + x, "data"), own + mean), own

    (mean, own), owns = lax.scan(step, (a, c), jnp.ones(3))
    return mean, own, owns


def looped(a: Any, b: Any, c: Any) -> Any:
    go_on = lambda carry: carry[0] < 3
    step = lambda carry: (carry[0] + 1, lax.psum(carry[1], "data"), carry[2] + 1)
    return lax.while_loop(go_on, step, (0, b, a))[1:]


def looped_as_long_as_a_shard_says(a: Any, b: Any, c: Any) -> Any:
    return lax.while_loop(lambda x: x.sum() < b.sum(), lambda x: x + 1, a)


def branched(a: Any, b: Any, c: Any) -> Any:
    by_all = lax.cond(a.sum() > 1, lambda x, y: (x, x), lambda x, y: (x, y), a, b)
    by_shard = lax.cond(b.sum() > 1, lambda x: x, lambda x: 2 * x, a)
    return (*by_all, by_shard)


@jax.custom_jvp
def rounded(x: Any) -> Any:
    return jnp.round(x)


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


PROGRAMS = {
    "sums": (lambda a, b, c: (a + 1, a + b, b + c), [NONE, DATA, BOTH]),
    "psum": (lambda a, b, c: (lax.psum(b, "data"), lax.psum(c, "data")), [NONE, MODEL]),
    "psum of both": (lambda a, b, c: lax.pmean(c, ("data", "model")), [NONE]),
    "psum of two": (lambda a, b, c: lax.psum((b, c), "model"), [DATA, DATA]),
    "pmax and pmin": (lambda a, b, c: (lax.pmax(b, "data"), lax.pmin(c, "model")), [NONE, DATA]),
    "all_gather": (lambda a, b, c: lax.all_gather(c, "data"), [MODEL]),
    "axis_index": (lambda a, b, c: a + lax.axis_index("model"), [MODEL]),
    "ppermute": (lambda a, b, c: lax.ppermute(a, "data", [(0, 1)]), [DATA]),
    "psum_scatter": (lambda a, b, c: lax.psum_scatter(a, "data", tiled=True), [DATA]),
    "all_to_all": (lambda a, b, c: lax.all_to_all(a.reshape(2, 2), "data", 0, 0), [DATA]),
    "jit": (lambda a, b, c: jax.jit(lambda x, y: (x, y))(a, lax.psum(b, "data")), [NONE, NONE]),
    "checkpoint": (lambda a, b, c: jax.checkpoint(lambda x, y: (x * 2, y))(a, b), [NONE, DATA]),
    "custom_jvp": (lambda a, b, c: (rounded(a), rounded(b)), [NONE, DATA]),
    "vmap": (lambda a, b, c: jax.vmap(lambda x: lax.psum(x, "data"))(b), [NONE]),
    "scan": (scanned, [NONE, BOTH, BOTH]),
    "while": (looped, [DATA, NONE]),
    "while, by a shard": (looped_as_long_as_a_shard_says, [DATA]),
    "cond": (branched, [NONE, DATA, DATA]),
    "constants": (lambda a, b, c: (jnp.arange(3), 1.0 * a), [NONE, NONE]),
    "sort and draw": (lambda a, b, c: (jnp.sort(a), jr.normal(jr.key(0), (2,))), [NONE, NONE]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_flow_is_exact(name: str):
    """For each output of programs with all kinds of primitives, on every version of JAX."""
    f, expected = PROGRAMS[name]
    assert flow(program(f), INPUTS, NAMES) == expected


def test_flow_takes_the_unknown_for_the_worst():
    """A callback may give each shard something else."""

    def called(a: Any, b: Any, c: Any) -> Any:
        from jax.experimental import io_callback

        return io_callback(lambda x: x, jax.ShapeDtypeStruct(a.shape, a.dtype), a), a

    assert flow(program(called), INPUTS, NAMES) == [BOTH, NONE]


# Random programs against what the shards compute -----------------------------------------------------

OPERATIONS = {
    "add": lambda x, y: x + y,
    "where": lambda x, y: jnp.where(x > 0, x, y),
    "psum data": lambda x, y: lax.psum(x, "data"),
    "pmax model": lambda x, y: lax.pmax(x, "model"),
    "gather": lambda x, y: lax.all_gather(x, "data").sum(axis=0),
    "index": lambda x, y: x * (1.0 + lax.axis_index("model")),
    "permute": lambda x, y: lax.ppermute(x, "data", [(0, 1), (1, 0)]),
    "permute away": lambda x, y: lax.ppermute(x, "model", [(0, 1)]),
    "cond": lambda x, y: lax.cond(x.sum() > y.sum(), lambda: x, lambda: y),
    "loop": lambda x, y: lax.fori_loop(0, 2, lambda i, z: lax.pmean(z, "data") + y, x),
    "jit": lambda x, y: jax.jit(lambda x, y: x * y)(x, y),
}


@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 20), st.integers(0, 20)),
        min_size=1,
        max_size=7,
    )
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_random_programs(steps: Any):
    """What is found to be the same along an axis is the same, in the numbers that the shards compute."""

    def run(a: Any, b: Any, c: Any) -> Any:
        values = [a, b, c]
        for name, i, j in steps:
            values.append(OPERATIONS[name](values[i % len(values)], values[j % len(values)]))
        return tuple(value.reshape(1, 1, -1) for value in values[3:])

    inside = program_of_blocks(run)
    found = flow(inside, INPUTS, NAMES)
    a, b, c = (jr.normal(key, shape) for key, shape in zip(jr.split(jr.key(0), 3), SHAPES, strict=True))
    outs = jax.jit(over_blocks(run, P("data", "model")))(a, b, c)
    for out, axes in zip(outs, found, strict=True):
        for name, axis in (("data", 0), ("model", 1)):
            if name not in axes:
                first, second = np.split(np.asarray(out), 2, axis=axis)
                np.testing.assert_array_equal(first, second)


SHAPES = (4,), (8,), (16,)


def over_blocks(f: Any, out: P) -> Any:
    return jax.shard_map(
        f,
        mesh=mesh(2, 2),
        in_specs=(P(), P("data"), P(("data", "model"))),
        out_specs=out,
        check_vma=False,
    )


def program_of_blocks(f: Any) -> Any:
    args = (jnp.ones(shape) for shape in SHAPES)
    (eqn,) = jax.make_jaxpr(over_blocks(f, P("data", "model")))(*args).jaxpr.eqns
    return eqn.params["jaxpr"]
