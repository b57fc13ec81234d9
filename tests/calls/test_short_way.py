"""Results of the short way that are not new arrays in the place of old ones."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


class Counter(eqx.Module):
    total: ps.State
    other: ps.State


def count(counter, x):
    counter.total.value += x
    return counter.total.value


def count_other(counter, x):
    counter.other.value += x
    return counter.total.value


def shared(f: Any) -> Any:
    return ps.vmap2(f, in_axes=None, axis_size=2, out_axes=None)


@pytest.mark.parametrize("number", [0.0, 0, 2])
@pytest.mark.parametrize("form", [lambda tree: tree, ps.pack], ids=["plain", "packed"])
@pytest.mark.parametrize("transform", [ps.jit, shared], ids=["jit", "vmap2"])
def test_a_number_in_a_state_becomes_an_array(transform, form, number):
    """A number that was put in from outside is static until a call writes the state, and only then."""
    one, two = ps.pure(transform(count)), ps.pure(transform(count_other))
    made = Counter(ps.State(5.0), ps.State(0.0))
    _, made = two(made, 1.0)
    start = form(eqx.tree_at(lambda counter: counter.total.value, made, number))
    _, start = two(start, 1.0)
    for _ in range(3):
        tree, seen = start, []
        for _ in range(4):
            out, tree = one(tree, jnp.asarray(1.0))
            seen.append(float(out))
        np.testing.assert_array_equal(seen, number + np.arange(1.0, 5.0))


@pytest.mark.parametrize("form", [lambda tree: tree, ps.pack], ids=["plain", "packed"])
@pytest.mark.parametrize("value", [None, {}, {"a": None}], ids=str)
@pytest.mark.parametrize("transform", [ps.jit, shared], ids=["jit", "vmap2"])
def test_a_written_value_without_arrays(transform, value, form):
    """A call that writes nothing but values without arrays may be repeated."""

    def clear(tree):
        tree["a"].value = value

    step = ps.pure(transform(clear))
    tree = form({"a": ps.State(jnp.ones(2)), "w": jnp.ones(2)})
    for _ in range(6):
        _, tree = step(tree)
    tree = tree.unpack() if isinstance(tree, ps.Packed) else tree
    assert ps.states(tree)[("a",)]._child == value
    np.testing.assert_array_equal(tree["w"], np.ones(2))


class Net(eqx.Module):
    hidden: ps.HiddenState
    weight: Any


@pytest.mark.parametrize("transform", [ps.jit, shared], ids=["jit", "vmap2"])
def test_a_module_is_cleared(transform):
    """The same for a module that is remembered."""

    def clear(net):
        net.hidden.value = None

    step, net = ps.pure(transform(clear)), Net(ps.HiddenState(jnp.ones(2)), jnp.ones(2))
    for _ in range(6):
        _, net = step(net)
    assert repr(net.hidden) == "HiddenState()"
