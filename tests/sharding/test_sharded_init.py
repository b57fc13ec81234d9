"""`ps.sharded_init`: a model computed where it will live."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.sharding import PartitionSpec as P

import pstate as ps
from pstate._sharding.init import init_program
from sharding.devices import AUTO, EXPLICIT, in_context, mesh, same_bits, spec_of, specs_of


KINDS = pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
RULES = {ps.largest("data"): ...}


class Net(eqx.Module):
    linear: eqx.nn.Linear
    w: ps.ParamState
    rng: ps.RandomState
    act: Any

    def __init__(self, size: int, key: Any):
        one, two = jr.split(key)
        self.linear = eqx.nn.Linear(size, 2 * size, key=one)
        self.w = ps.ParamState(jr.normal(two, (size, 4)), tag="big")
        self.rng = ps.RandomState(jr.fold_in(key, 2))
        self.act = jnp.tanh


@KINDS
def test_the_numbers_of_one_device(kind: Any):
    """Bit for bit what the unsharded initialisation gives, with its arrays where the rules say."""
    new = ps.sharded_init(Net, RULES, mesh(kind))(8, key=jr.key(0))
    expected = eqx.filter_jit(Net)(8, jr.key(0))
    assert same_bits(eqx.filter(new, eqx.is_array), eqx.filter(expected, eqx.is_array))
    assert specs_of(eqx.filter(new, eqx.is_array)) == [("data",), ("data",), ("data",), ()]
    assert (new.w.tag, new.act) == (("big",), jnp.tanh)


@pytest.mark.parametrize("partitionable", [True, False])
def test_both_ways_to_draw(partitionable: bool):
    """With JAX's older threefry, which is not partitionable, the numbers are those of one device too."""
    with jax.threefry_partitionable(partitionable):
        new = ps.sharded_init(Net, RULES, mesh())(8, jr.key(0))
        assert same_bits(new.w, eqx.filter_jit(Net)(8, jr.key(0)).w)


def test_no_device_has_a_whole_copy():
    """The compiled program computes shards: no array of the whole shape is in it, nor any gathered."""
    make = lambda key: ps.ParamState(jr.normal(key, (64, 24)))
    jitted, operands, _ = init_program(make, P("data"), mesh(), (jr.key(0),), {})
    text = jitted.lower(*operands).compile().as_text()
    assert re.search(r"f32\[16,24\]", text)
    assert not re.search(r"[fus]32\[64,24\]", text)
    assert "all-gather" not in text


def test_make_runs_once():
    """Each call runs it once, under a trace; sizes among the arguments stay numbers."""
    runs: list[Any] = []

    def make(size, key):
        runs.append(size)
        return ps.ParamState(jr.normal(key, (size, size)))

    init = ps.sharded_init(make, {P("data"): ps.ParamState}, mesh())
    for _ in range(2):
        assert spec_of(init(8, jr.key(0)).value) == ("data",)
    assert runs == [8, 8]


def test_one_state_at_two_places():
    """A state that the model holds twice stays one object."""

    def make():
        shared = ps.State(jnp.ones(4))
        return {"a": shared, "b": shared, "n": 3}

    new = ps.sharded_init(make, P("data"), mesh())()
    assert new["a"] is new["b"]
    assert new["n"] == 3


class Cell(ps.nn.Module):
    h: ps.HiddenState
    rng: ps.RandomState
    w: ps.ParamState

    def __init__(self):
        self.h = ps.HiddenState()
        self.rng = ps.RandomState(0)
        self.w = ps.ParamState(jnp.ones(3))

    def init_state(self, size):
        self.h.value = self.rng.normal(size=(size,))


@KINDS
def test_an_ensemble(kind: Any):
    """With `vmap2_new_states` each device makes its own members; the draws are those of one device."""
    make = lambda: ps.vmap2_new_states(Cell(), {"size": 3}, axis_size=8)
    with in_context(mesh(kind)):
        new, found = ps.sharded_init(make, {P("data"): ps.HiddenState, P(): ...})()
    expected = make()
    assert same_bits((new, found), expected)
    assert spec_of(new.h.value) == ("data",)
    assert spec_of(new.w.value) == ()
    assert found[0][("h",)] is new.h


def test_init_all_states():
    """An initialisation of states in their modules, in a function that is given a model."""

    def make(cell):
        return ps.nn.init_all_states(cell, size=8)

    new = ps.sharded_init(make, {P("data"): ps.HiddenState}, mesh())(Cell())
    assert same_bits(new.h, make(Cell()).h)
    assert spec_of(new.h.value) == ("data",)


def test_inside_a_program():
    """Under a trace what is made is constrained to be there."""
    devices = mesh()
    init = ps.sharded_init(lambda key: jr.normal(key, (8, 2)), P("data"), devices)
    assert spec_of(jax.jit(init)(jr.key(0))) == ("data",)


def test_bad_input():
    """What does not fit is refused by name, and the initialisation is usable after it."""
    init = ps.sharded_init(Net, {P("data"): "big"}, mesh())
    with pytest.raises(ps.BatchAxisError, match=r"`tree\.w` \(ParamState\) has shape \(6, 4\)"):
        init(6, jr.key(0))
    assert spec_of(init(8, jr.key(0)).w.value) == ("data",)
    with pytest.raises(ValueError, match="sharded_init needs a mesh"):
        ps.sharded_init(Net, P())(8, jr.key(0))
