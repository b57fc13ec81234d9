"""Lanes on an explicit mesh, which `jax.make_mesh` makes by default on newer versions of JAX."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pstate as ps


#: JAX 0.6 cannot draw in `jax.jit(jax.vmap(...))` over lanes on such a mesh.
DRAWS = jax.__version_info__ >= (0, 7)

XS = jnp.arange(24.0).reshape(8, 3)


class Cell(eqx.Module):
    h: ps.HiddenState
    rng: ps.RandomState
    total: ps.State

    def __call__(self, x):
        noise = jr.bits(self.rng.key(), dtype=jnp.uint8) if DRAWS else 1.0
        self.h.value = 2 * self.h.value + x + noise
        self.total.value = self.total.value + 1
        return self.h.value


def lanes() -> NamedSharding:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    return NamedSharding(mesh, P("d"))


def args(sharded: bool):
    cell = Cell(ps.HiddenState(jnp.ones((8, 3))), ps.RandomState(0), ps.State(0))
    if not sharded:
        return cell, XS
    h = cell.h.replace(jax.device_put(cell.h.value, lanes()))
    return eqx.tree_at(lambda c: c.h, cell, h), jax.device_put(XS, lanes())


def call(cell, x):
    return cell(x)


def mapped(f=call, **options):
    return ps.vmap2(f, in_axes=(None, 0), state_in_axes={0: ps.HiddenState}, **options)


def nested(cell, x):
    inner = ps.vmap2(lambda c, x: x + (jr.bits(c.rng.key()) if DRAWS else 1.0), in_axes=(None, 0))
    return inner(cell, x)


def bits(tree):
    """The leaves as NumPy arrays."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return [np.asarray(jr.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


CALLS = {
    "vmap2": lambda *a: ps.pure(mapped())(*a),
    "chunks": lambda *a: ps.pure(mapped(chunk_size=4))(*a),
    "a rest": lambda *a: ps.pure(mapped(chunk_size=3))(*a),
    "jax.jit": lambda *a: jax.jit(ps.pure(mapped()))(*a),
    "ps.jit": lambda *a: ps.pure(ps.jit(mapped()))(*a),
    "named": lambda *a: ps.pure(mapped(axis_name="i"))(*a),
    "lane": lambda *a: ps.pure(mapped().lane(2))(*a),
    "nested": lambda *a: ps.pure(mapped(nested))(*a),
    "reduced": lambda *a: ps.pure(mapped(state_out_axes={ft.partial(jnp.sum, axis=0): ps.HiddenState}))(
        *a
    ),
    "jit of grad": lambda *a: eqx.filter_jit(
        ps.pure(ps.grad(lambda c, x: mapped()(c, x).sum(), wrt=ps.HiddenState))
    )(*a),
}


@pytest.mark.parametrize("run", CALLS.values(), ids=CALLS)
def test_as_without_a_mesh(run):
    """Outputs, states and draws are, bit for bit, those of arrays on one device."""
    expected, got = run(*args(sharded=False)), run(*args(sharded=True))
    for a, b in zip(bits(expected), bits(got), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("chunk_size", [None, 4, 3])
def test_what_leaves_lies_where_it_came_from(chunk_size):
    """The lanes of outputs and states lie on the mesh as they came."""
    out, cell = ps.pure(mapped(chunk_size=chunk_size))(*args(sharded=True))
    assert out.sharding.is_equivalent_to(lanes(), 2)
    assert cell.h.value.sharding.is_equivalent_to(lanes(), 2)


@pytest.mark.parametrize("axis", [1, -1])
def test_other_axes(axis):
    """Lanes along an axis that is not the first, beside an axis that lies on the mesh too."""
    mesh = jax.make_mesh((2, 2), ("m", "d"), axis_types=(AxisType.Explicit,) * 2)
    value = jnp.arange(32.0).reshape(4, 8)
    state = ps.State(jax.device_put(value, NamedSharding(mesh, P("m", "d"))))
    add = lambda s, x: setattr(s, "value", s.value + x)
    xs = jnp.arange(8.0)
    on_mesh = jax.device_put(xs, NamedSharding(mesh, P("d")))
    for options in ({}, {"chunk_size": 2}):
        add_all = ps.vmap2(add, in_axes=(axis, 0), **options)
        _, after = ps.pure(add_all)(state, on_mesh)
        np.testing.assert_array_equal(after.value, value + xs)


def test_a_difference_is_still_seen():
    """An undeclared write that differs between lanes is refused here too."""
    write = lambda s, x: setattr(s, "value", x)
    with pytest.raises(ps.BatchAxisError, match="no axis is declared for it"):
        ps.pure(ps.vmap2(write, in_axes=(None, 0)))(ps.State(jnp.zeros(3)), args(sharded=True)[1])
    same = lambda s, x: setattr(s, "value", s.value + 1)
    _, after = ps.pure(ps.vmap2(same, in_axes=(None, 0)))(ps.State(0), args(sharded=True)[1])
    assert after.value == 1


def test_map():
    """`nn.Map` over such lanes."""

    class Sum(ps.nn.Module):
        total: ps.State = ps.State()

        def init_state(self):
            self.total.value = jnp.zeros(3)

        def update(self, x):
            self.total.value += x
            return self.total.value

    mapper = ps.nn.Map(Sum(), 8).init_all_states()
    on_mesh = jax.device_put(mapper.module.total.value, lanes())
    mapper = ps.update(mapper, {("module", "total"): on_mesh})
    out, mapper = ps.pure(mapper.update)(args(sharded=True)[1])
    np.testing.assert_array_equal(out, XS)
    np.testing.assert_array_equal(mapper.module.total.value, XS)
