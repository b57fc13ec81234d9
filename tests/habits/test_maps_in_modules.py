"""`Map` where users put it: in modules that are initialised as a whole, and in another `Map`."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps


class Accumulator(ps.nn.Module):
    total: ps.ShortTermState = ps.ShortTermState()
    shared: ps.NonBatchState = ps.NonBatchState()
    size: int = eqx.field(static=True, default=0)

    def init_state(self, size):
        self.total.value = jnp.zeros(size)
        self.shared.value = jnp.ones(2)
        self.size = size

    def update(self, x):
        self.total.value += x
        return self.total.value


class Assigning(ps.nn.Module):
    weights: list = eqx.field(default_factory=list)
    kept: ps.ParamState = eqx.field(default_factory=lambda: ps.ParamState(jnp.full(2, 7.0)))

    def init_state(self, rng):
        self.weights = [ps.ParamState(rng.normal(size=2)), ps.HiddenState(jnp.zeros(1))]


class Holder(ps.nn.Module):
    name: str = eqx.field(static=True)
    parts: dict
    bias: ps.ParamState = ps.ParamState()

    def init_state(self, gain=2.0):
        # Children are ready: the map runs here as it does later.
        self.bias.value = gain + self.parts["map"].module.total.value.sum()

    def __call__(self, x):
        return self.parts["map"].update(x) + self.bias.value


def holder(**options) -> Holder:
    return Holder("holder", {"map": ps.nn.Map(Accumulator(), 3, **options)})


def test_a_holder_makes_the_states_of_the_lanes():
    """`init_all_states` of the holder does to a map what the map's own does, tags and axes included."""
    options = {"init_state_axes": {1: ps.ShortTermState}, "state_tag": "lane"}
    made = holder(**options).init_all_states(size=2, gain=3.0)
    alone = ps.nn.Map(Accumulator(), 3, **options).init_all_states(size=2)
    inside = made.parts["map"]
    assert inside.module.total.value.shape == (2, 3)
    assert inside.module.shared.value.shape == (2,)
    assert inside.module.size == 2
    assert type(inside.module.size) is int
    assert inside.module.total.tag == ("lane",)
    assert inside.dict_vmap_states.keys() == alone.dict_vmap_states.keys() == {1, None}
    assert jax.tree.structure(inside) == jax.tree.structure(alone)
    assert made.bias.value == 3.0
    out, after = ps.pure(made)(jnp.arange(3.0))
    np.testing.assert_array_equal(out, np.arange(3.0)[:, None] + np.full(2, 3.0))
    np.testing.assert_array_equal(after.parts["map"].module.total.value, [[0, 1, 2], [0, 1, 2]])


def test_states_that_were_made_are_made_anew_in_lanes():
    """A holder of a map that is initialised already starts it afresh, with its lanes, and so again."""
    made = ps.nn.Map(Accumulator(), 3).init_all_states(size=2)
    once = Holder("holder", {"map": made}).init_all_states(size=2)
    _, moved = ps.pure(once)(jnp.ones(3))
    for tree in (once, moved.init_all_states(size=2)):
        np.testing.assert_array_equal(tree.parts["map"].module.total.value, np.zeros((3, 2)))
    np.testing.assert_array_equal(moved.parts["map"].module.total.value, np.ones((3, 2)))


def test_every_way_to_initialise_a_map():
    """The function, the method, and the mapped one make the same states."""
    mapper = ps.nn.Map(Accumulator(), 3)
    by_function = ps.nn.init_all_states(mapper, size=2)
    assert eqx.tree_equal(by_function, mapper.init_all_states(size=2))
    nested, states = ps.vmap2_new_states(mapper, {"size": 2}, axis_size=5)
    assert nested.module.total.value.shape == (5, 3, 2)
    assert list(states[0]) == [("module", "total")]


def test_a_map_of_a_map():
    """Lanes in lanes: states, axes, calls and written states."""
    inner = ps.nn.Map(Accumulator(), 3, init_state_axes={-1: ps.ShortTermState})
    outer = ps.nn.Map(inner, 5).init_all_states(size=2)
    assert outer.module.module.total.value.shape == (5, 2, 3)
    x = jnp.arange(15.0).reshape(5, 3)
    out, after = ps.pure(outer.update)(x)
    np.testing.assert_array_equal(out, jnp.broadcast_to(x[..., None], (5, 3, 2)))
    np.testing.assert_array_equal(
        after.module.module.total.value, jnp.broadcast_to(x[:, None], (5, 2, 3))
    )
    thrice = ps.nn.Map(ps.nn.Map(ps.nn.Map(Accumulator(), 3), 4), 5).init_all_states(size=2)
    assert thrice.module.module.module.total.value.shape == (5, 4, 3, 2)
    np.testing.assert_array_equal(ps.pure(thrice.update)(jnp.ones((5, 4, 3)))[0], np.ones((5, 4, 3, 2)))


def test_a_map_of_a_holder_of_a_map():
    """A map in a module that is mapped itself."""
    outer = ps.nn.Map(holder(), 5).init_all_states(size=2)
    assert outer.module.parts["map"].module.total.value.shape == (5, 3, 2)
    assert outer.module.bias.value.shape == (5,)
    out, _ = ps.pure(outer.update)(jnp.ones((5, 3)))
    np.testing.assert_array_equal(out, np.full((5, 3, 2), 3.0))


def test_assigned_fields_and_draws_in_nested_lanes():
    """States that init_state assigns get their lanes too, drawn from keys split level by level."""
    nested = ps.nn.Map(ps.nn.Map(Assigning(), 3), 2).init_all_states(rng=ps.RandomState(0))
    weights = nested.module.module.weights
    assert [w.value.shape for w in weights] == [(2, 3, 2), (2, 3, 1)]
    assert nested.module.module.kept.value.shape == (2,)
    outer = jr.split(jr.key(0), 3)[1:]
    for i in range(2):
        keys = jr.split(outer[i], 4)[1:]
        for j in range(3):
            np.testing.assert_array_equal(weights[0].value[i, j], jr.normal(jr.split(keys[j])[1], (2,)))


def test_keywords_that_a_held_map_names():
    """They are known, go to the map only, and are named with their place where they are missing."""
    with pytest.raises(
        TypeError,
        match=re.escape("`holder.parts['map'].module.init_state` needs the keyword 'size'"),
    ):
        holder().init_all_states()
    with pytest.raises(TypeError, match="No `init_state` in `holder` takes the keyword 'sise'"):
        holder().init_all_states(size=2, sise=3)
    both = {"map": ps.nn.Map(Accumulator(), 3), "random": ps.nn.Map(Assigning(), 2)}
    made = Holder("both", both).init_all_states(size=2, rng=ps.RandomState(1))
    assert made.parts["random"].module.weights[0].value.shape == (2, 2)
    with pytest.raises(ValueError, match="holds a bare key, so all lanes would draw the same"):
        ps.nn.Map(Assigning(), 2).init_all_states(rng=jr.key(0))
    with pytest.raises(ValueError, match="holds a bare key, so all lanes would draw the same"):
        Holder("bare", both).init_all_states(size=2, rng=jr.key(0))


def test_inside_other_transforms():
    """A holder is initialised under `jax.jit` and in lanes as elsewhere."""
    made = holder().init_all_states(size=2)
    under_jit = eqx.filter_jit(lambda: holder().init_all_states(size=2))()
    assert eqx.tree_equal(under_jit, made)
    lanes = jax.vmap(lambda gain: holder().init_all_states(size=2, gain=gain).bias.value)(
        jnp.arange(3.0)
    )
    np.testing.assert_array_equal(lanes, [0.0, 1.0, 2.0])


def test_static_fields_stay_what_they_are():
    """A static field that init_state assigns is not an array afterwards, not even in lanes."""
    made, _ = ps.vmap2_new_states(Accumulator(), {"size": 2}, axis_size=4)
    assert made.size == 2
    assert type(made.size) is int
    hash(jax.tree.structure(made))
