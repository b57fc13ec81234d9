"""Options that print or compare alike and are not the same: each has a program of its own."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


def make_kind():
    """Kinds that are made by one line print alike."""

    class Trace(ps.ShortTermState):
        pass

    return Trace


A, B = make_kind(), make_kind()


class Ending:
    """A predicate that prints like every other of its class."""

    def __init__(self, name):
        self.name = name

    def __call__(self, path, leaf):
        return path[-1] == self.name

    def __repr__(self):
        return "Ending()"


class Cell(ps.nn.Module):
    a: A = A()
    b: B = B()

    def init_state(self):
        self.a.value = jnp.zeros(())
        self.b.value = jnp.zeros(())


def shapes(cell, x):
    """How many axes each state has in a lane."""
    return x + 10 * cell.a.value.ndim + 100 * cell.b.value.ndim


@pytest.mark.parametrize(
    "wrap", [lambda f: f, ps.jit, ps.checkpoint], ids=["eager", "jit", "checkpoint"]
)
@pytest.mark.parametrize(
    ("first", "second"), [(A, B), (Ending("a"), Ending("b"))], ids=["kinds", "predicates"]
)
def test_map_tells_filters_apart(wrap, first, second):
    """`Map.map` with filters that print alike does what each of them says."""
    mapper = ps.nn.Map(Cell(), init_map_size=3).init_all_states()
    call = wrap(lambda mapper, axes, x: mapper.map(shapes, state_axes=axes)(x))
    x = jnp.zeros(3)
    assert call(mapper, first, x).tolist() == [100.0] * 3
    assert call(mapper, second, x).tolist() == [10.0] * 3


def test_two_maps_are_told_apart():
    """Maps that were made with kinds that print alike are not one static part."""
    one, other = (ps.nn.Map(Cell(), 3, call_state_axes=kind).init_all_states() for kind in (A, B))
    call = ps.jit(lambda mapper, x: mapper.map(shapes)(x))
    assert call(one, jnp.zeros(3)).tolist() == [0.0] * 3
    assert jax.tree.structure(one) != jax.tree.structure(other)


def scaled_mean(by, lanes):
    return jnp.mean(lanes, axis=0) / 3 if type(by) is float else jnp.sum(lanes, axis=0)


@pytest.mark.parametrize("wrap", [lambda f: f, ps.jit], ids=["eager", "jit"])
def test_reducers_of_equal_arguments(wrap):
    """`ft.partial(f, 2)` and `ft.partial(f, 2.0)` are equal in Python, and two reducers here."""

    def write(state, x):
        state.value = x

    def reduced(by):
        rule = {ft.partial(scaled_mean, by): ps.State}
        mapped = ps.vmap2(write, in_axes=(None, 0), state_out_axes=rule)
        return ps.pure(wrap(mapped))(ps.State(0.0), jnp.array([1.0, 2.0, 3.0]))[1].value.item()

    assert reduced(2) == 6.0
    assert reduced(2.0) == pytest.approx(2 / 3)
    assert reduced(2) == 6.0


def test_a_reducer_that_holds_an_array():
    """A partial of an array is told apart by the array, and reduces."""
    weights = jnp.array([1.0, 0.0, 0.0])

    def write(state, x):
        state.value = x

    reducer = ft.partial(lambda w, lanes: jnp.sum(w * lanes), weights)
    mapped = ps.vmap2(write, in_axes=(None, 0), state_out_axes={reducer: ps.State})
    _, state = ps.pure(mapped)(ps.State(0.0), jnp.array([5.0, 6.0, 7.0]))
    np.testing.assert_array_equal(state.value, 5.0)
