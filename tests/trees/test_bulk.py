"""States in bulk: `select`, `axes`, `states` and `update`."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import pstate as ps


class Net(eqx.Module):
    weight: ps.ParamState
    hidden: ps.HiddenState
    gain: jax.Array
    activation: object = jnp.tanh
    nothing: None = None

    def __call__(self, x):
        return self.activation(self.weight.value @ (self.hidden.value + x)) * self.gain


def net(*lanes):
    return Net(ps.ParamState(jnp.eye(3)), ps.HiddenState(jnp.ones((*lanes, 3))), jnp.float32(2))


# Selecting ----------------------------------------------------------------------------------------


def test_select_gives_a_mask():
    """The mask has the tree's structure, a boolean for each leaf, and `False` for non-arrays."""
    tree = {"net": net(), "n": 3, "s": ps.State({"a": jnp.ones(2), "b": 1}), "e": ps.ParamState()}
    mask = ps.select(tree)
    assert jtu.tree_structure(mask) == jtu.tree_structure(tree)
    assert all(type(leaf) is bool for leaf in jtu.tree_leaves(mask))
    assert mask["net"] == eqx.tree_at(
        lambda m: (m.weight, m.hidden, m.gain, m.activation),
        mask["net"],
        (mask["net"].weight, mask["net"].hidden, True, False),
    )
    assert mask["net"].weight.value is True
    assert mask["net"].hidden.value is False
    assert mask["s"].value == {"a": False, "b": False}
    assert mask["n"] is False


def test_select_with_partition():
    """`eqx.partition` splits by the mask, and `eqx.combine` joins again."""
    model = net()
    diff, static = eqx.partition(model, ps.select(model))
    assert [x.shape for x in jtu.tree_leaves(diff)] == [(3, 3), ()]
    assert jtu.tree_leaves(diff.hidden) == jtu.tree_leaves(static.weight) == []

    def loss(diff, x):
        return jnp.sum(eqx.combine(diff, static)(x))

    grads = jax.grad(loss)(diff, jnp.ones(3))
    assert grads.weight.value.shape == (3, 3)
    assert jtu.tree_structure(grads) == jtu.tree_structure(diff)
    updated = eqx.apply_updates(model, grads)
    assert updated.hidden.value is model.hidden.value
    np.testing.assert_array_equal(updated.weight.value, model.weight.value + grads.weight.value)


def test_select_with_optax():
    """`optax.masked` takes the mask, and what is not selected passes through."""
    model = {"w": ps.ParamState(jnp.ones(2)), "h": ps.HiddenState(jnp.ones(2))}
    optim = optax.masked(optax.sgd(0.5), ps.select(model))
    grads = jtu.tree_map(jnp.ones_like, model)
    updates, _ = optim.update(grads, optim.init(model), model)
    np.testing.assert_array_equal(updates["w"].value, [-0.5, -0.5])
    np.testing.assert_array_equal(updates["h"].value, [1, 1])


def test_axes_for_raw_vmap():
    """`axes` is an `in_axes` prefix that `jax.vmap` and `vmap2` understand alike."""
    model = net(5)
    in_axes = ps.axes(model, {0: ps.HiddenState})
    assert (in_axes.weight, in_axes.hidden, in_axes.gain) == (None, 0, None)
    expected = jax.vmap(lambda m, x: m(x), in_axes=(in_axes, None))(model, jnp.ones(3))
    assert expected.shape == (5, 3)
    got = ps.vmap2(lambda m, x: m(x), in_axes=(in_axes, None))(model, jnp.ones(3))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_axes_ask_filters_in_order_and_about_arrays():
    """The first match wins; a bare filter means axis 0; raw arrays are asked about too."""
    tree = {"h": ps.HiddenState(jnp.ones((2, 3))), "x": jnp.ones((3, 2)), "f": jnp.tanh}
    assert ps.axes(tree, {1: ps.State, 0: ...}) == {"h": 1, "x": 0, "f": None}
    assert ps.axes(tree, {None: ps.State, -1: jax.Array}) == {"h": None, "x": -1, "f": None}
    assert ps.axes(tree, ps.HiddenState) == {"h": 0, "x": None, "f": None}
    assert ps.axes(tree, None) == {"h": None, "x": None, "f": None}


# Listing ------------------------------------------------------------------------------------------


def test_states_by_path():
    """States are listed in the order of the tree, by names and indices, as the same objects."""
    tree = {"b": [ps.State(0), (ps.ParamState(1),)], "a": net(), 3: jnp.ones(2)}
    tree.pop(3)
    assert ps.states(tree) == {
        ("a", "weight"): tree["a"].weight,
        ("a", "hidden"): tree["a"].hidden,
        ("b", 0): tree["b"][0],
        ("b", 1, 0): tree["b"][1][0],
    }
    assert list(ps.states(tree, ps.ParamState)) == [("a", "weight"), ("b", 1, 0)]
    assert ps.states(ps.State(1)).keys() == {()}
    assert ps.states({"x": 1}) == {}


def test_states_of_a_live_tree_are_live():
    """What `states` lists inside a recording takes writes."""
    with ps.record(net()) as live:
        for state in ps.states(live, ps.HiddenState).values():
            state.value = state.value * 0
    assert ps.freeze(live).hidden.value.sum() == 0


# Updating -----------------------------------------------------------------------------------------


def test_update_with_states_and_values():
    """Values come as states or as they are; kind and tags stay, and the rest is the same objects."""
    tree = {"a": ps.HiddenState(1.0, tag="t"), "b": ps.ParamState(2.0), "x": jnp.ones(2)}
    new = ps.update(tree, {("a",): ps.State(5), ("b",): 7})
    assert (type(new["a"]), new["a"].tag, new["a"].value.dtype) == (ps.HiddenState, ("t",), "int32")
    assert (new["b"].value.item(), new["b"].value.dtype) == (7.0, "float32")
    assert new["x"] is tree["x"]
    assert tree["a"].value == 1
    assert ps.update(tree, {}) is tree
    assert ps.update(tree, {("a",): 5.0})["b"] is tree["b"]


def test_a_reset():
    """The reset of the design: the hidden states of a fresh tree put into a used one."""
    used, fresh = net(), eqx.tree_at(lambda m: m.hidden.value, net(), jnp.zeros(3))
    reset = ps.update(used, ps.states(fresh, ps.HiddenState))
    assert reset.hidden.value is fresh.hidden.value
    assert reset.weight is used.weight


def test_update_fills_empty_states():
    """Empty states have paths too, and a value may be a container."""
    tree = ps.update({"s": ps.State()}, {("s",): {"a": 1}})
    assert tree["s"].value["a"] == 1


def test_update_of_a_live_tree():
    """Where states are live the values are written, and the same tree comes back."""
    with ps.record(net()) as live:
        assert ps.update(live, {("hidden",): jnp.zeros(3)}) is live
        assert ps.written(live).keys() == {("hidden",)}
    assert ps.freeze(live).hidden.value.sum() == 0


def test_update_of_a_tree_that_is_partly_live():
    """Live states are written and frozen ones replaced: no value is dropped (L8)."""
    with ps.record(ps.State(0.0)) as live:
        tree = ps.update({"live": live, "frozen": ps.State(0.0)}, {("live",): 1.0, ("frozen",): 2.0})
    assert ps.freeze(live).value == 1
    assert tree["frozen"].value == 2


def test_written_round_trip():
    """What `written` gives, `update` takes."""
    tree = {"a": ps.State(1), "b": ps.State({"c": jnp.ones(2)})}
    with ps.record(tree) as live:
        live["b"].value = {"c": jnp.zeros(2)}
    again = ps.update(tree, ps.written(live))
    assert again["a"] is tree["a"]
    np.testing.assert_array_equal(again["b"].value["c"], [0, 0])


def test_update_that_is_not_strict_lists_what_does_not_fit():
    """Values without a state and states without a value are named; the rest is updated."""
    tree = {"a": ps.State(1), "b": ps.State(2)}
    with pytest.warns(ps.UnmatchedPathWarning) as caught:
        new = ps.update(tree, {("a",): 5, ("gone",): 6}, strict=False)
    [warning] = caught
    assert "values without a state, which are skipped: ('gone',)" in str(warning.message)
    assert "states without a value, which keep their own: ('b',)" in str(warning.message)
    assert (new["a"].value.item(), new["b"].value.item()) == (5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ps.update(tree, {("a",): 5, ("b",): 6}, strict=False)


def test_update_with_an_unknown_path_changes_nothing():
    """A strict update with a wrong path raises before it writes."""
    with ps.record({"a": ps.State(1)}) as live:
        with pytest.raises(KeyError):
            ps.update(live, {("a",): 5, ("b",): 6})
        assert ps.written(live) == {}


def test_update_under_jit():
    """`update` and `states` are ordinary functions of pytrees."""
    tree = {"a": ps.State(1.0), "b": ps.State(2.0)}
    new = jax.jit(lambda t, x: ps.update(t, {("a",): x}))(tree, 4.0)
    assert (new["a"].value.item(), new["b"].value.item()) == (4.0, 2.0)
