"""Trees with states are trees to Equinox: its own tools take them, in model code and outside."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


class Tally(eqx.Module):
    """A layer with a weight, that counts what went through."""

    weight: ps.ParamState
    seen: ps.ShortTermState

    def __init__(self, weight=2.0):
        self.weight = ps.ParamState(jnp.float32(weight))
        self.seen = ps.ShortTermState(jnp.float32(0))

    def __call__(self, x, *, key=None):
        self.seen.value += x
        return self.weight.value * x


def norm():
    return ps.nn.from_equinox(eqx.nn.BatchNorm, 3, axis_name="batch", mode="batch")


def network():
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(3, 3, key=jr.key(0)),
            norm(),
            eqx.nn.Lambda(jax.nn.relu),
            ps.nn.Dropout(0.5, key=jr.key(1)),
            eqx.nn.Linear(3, 1, key=jr.key(2)),
        ]
    )


XS = jr.normal(jr.key(3), (4, 3))


# Shared -------------------------------------------------------------------------------------------


def tied():
    return eqx.nn.Shared([Tally(), Tally()], lambda pair: pair[1], lambda pair: pair[0])


def through_both(shared, x):
    first, second = shared()
    return second(first(x))


def test_writes_through_both_places_of_a_shared_module():
    """One call that writes at both places adds up in the one state, which comes back."""
    shared = tied()
    out, new = ps.pure(through_both)(shared, 3.0)
    assert (out, new.pytree[0].seen.value, shared.pytree[0].seen.value) == (12, 9, 0)
    assert list(ps.states(new)) == [("pytree", 0, "weight"), ("pytree", 0, "seen")]
    out, again = eqx.filter_jit(ps.pure(through_both))(new, 1.0)
    assert (out, again.pytree[0].seen.value) == (4, 12)


def test_shared_states_in_lanes():
    """A shared state is mapped as one state: each lane sees its own writes at both places."""
    shared = eqx.tree_at(lambda m: m.pytree[0].seen.value, tied(), jnp.zeros(3))
    mapped = ps.vmap2(through_both, in_axes=(None, 0), state_in_axes={0: ps.ShortTermState})
    _, new = ps.pure(mapped)(shared, jnp.arange(3.0))
    np.testing.assert_array_equal(new.pytree[0].seen.value, [0, 3, 6])


def test_gradients_of_a_shared_parameter():
    """The gradient counts both uses, and the written state comes back beside it."""
    params, rest = eqx.partition(tied(), ps.select(tied()))

    def loss(params):
        return ps.pure(through_both)(eqx.combine(params, rest), 3.0)

    grads, new = eqx.filter_grad(loss, has_aux=True)(params)
    assert (grads.pytree[0].weight.value, new.pytree[0].seen.value) == (12, 9)


def test_a_shared_layer_of_equinox():
    """Two places may share one `from_equinox` layer: its statistics count both calls."""

    def call(shared, xs):
        first, second = shared()
        return second(jnp.sin(first(xs)))

    shared = eqx.nn.Shared([norm(), norm()], lambda pair: pair[1], lambda pair: pair[0])
    _, new = ps.pure(ps.vmap2(call, in_axes=(None, 0), axis_name="batch"))(shared, XS)
    assert new.pytree[0].state.value["BatchNorm.batch_counter"] == 2


# Sequential ---------------------------------------------------------------------------------------


def test_sequential():
    """A sequence of plain and stateful layers is one layer, whose states all come back."""
    model = network()
    assert not model.is_stateful()
    ys, new = ps.pure(ps.vmap2(model, axis_name="batch"))(XS)
    assert ys.shape == (4, 1)
    assert new[1].state.value["BatchNorm.batch_counter"] == 1
    assert new[3].rng.value != model[3].rng.value
    assert type(new) is eqx.nn.Sequential
    inference = eqx.nn.inference_mode(new)
    assert_same(inference, ps.pure(ps.vmap2(inference, axis_name="batch"))(XS)[1])
    outs = jnp.stack([inference(x) for x in XS])
    np.testing.assert_allclose(ps.vmap2(inference)(XS), outs, rtol=1e-6)


def test_sequential_with_a_key():
    """The key that `Sequential` passes on is the one to draw with; the stream stays where it is."""
    model, keys = network(), jr.split(jr.key(4), 4)
    ys, new = ps.pure(ps.vmap2(model, axis_name="batch"))(XS, key=keys)
    assert new[3].rng.value == model[3].rng.value
    plain = eqx.tree_at(lambda m: m.layers[3], model, eqx.nn.Dropout(0.5))
    expected, _ = ps.pure(ps.vmap2(plain, axis_name="batch"))(XS, key=keys)
    np.testing.assert_array_equal(ys, expected)


def assert_same(a, b):
    assert jtu.tree_structure(a) == jtu.tree_structure(b)
    assert all(x is y for x, y in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True))


# Surgery ------------------------------------------------------------------------------------------


def test_tree_at():
    """`eqx.tree_at` replaces a value, a state or a layer of a trained tree, which goes on from there."""
    _, model = ps.pure(Tally.__call__)(Tally(), 3.0)
    by_value = eqx.tree_at(lambda m: m.seen.value, model, jnp.float32(10))
    by_state = eqx.tree_at(lambda m: m.seen, model, ps.ShortTermState(jnp.float32(10)))
    for changed in (by_value, by_state):
        _, new = ps.pure(Tally.__call__)(changed, 1.0)
        assert (new.seen.value, model.seen.value) == (11, 3)
    trained = ps.pure(ps.vmap2(network(), axis_name="batch"))(XS)[1]
    layer = eqx.nn.Linear(3, 2, key=jr.key(5))
    ys, _ = ps.pure(ps.vmap2(eqx.tree_at(lambda m: m[4], trained, layer), axis_name="batch"))(XS)
    assert ys.shape == (4, 2)
    scaled = eqx.tree_at(lambda m: m[1].layer.weight, trained, replace_fn=lambda w: w * 0)
    inference = eqx.nn.inference_mode(scaled)
    np.testing.assert_allclose(inference(XS[0]), trained[4](jax.nn.relu(trained[1].layer.bias)))


def test_tree_at_on_an_empty_state():
    """An empty state is replaced as a whole; its value cannot be pointed at, and the error says so."""
    empty = {"v": ps.HiddenState()}
    filled = eqx.tree_at(lambda tree: tree["v"], empty, ps.HiddenState(1.0))
    assert filled["v"].value == 1
    with pytest.raises(ps.UninitializedStateError, match=r"^`HiddenState\(\)` is empty and was read\."):
        eqx.tree_at(lambda tree: tree["v"].value, empty, 1.0, is_leaf=lambda x: x is None)


def test_tree_at_in_a_container():
    """Inside a container the arrays are replaced; the container itself only with its state."""
    trained = ps.pure(ps.vmap2(norm(), axis_name="batch"))(XS)[1]
    reset = eqx.tree_at(lambda m: m.state.value["BatchNorm.batch_counter"], trained, jnp.array(0))
    assert reset.state.value["BatchNorm.batch_counter"] == 0
    assert_same(reset.state.value["BatchNorm.batch_state_index"], _moments(trained))
    again = eqx.tree_at(lambda m: m.state, trained, norm().state)
    assert eqx.tree_equal(again, norm())
    with pytest.raises(ValueError, match="`where` does not specify an element"):
        eqx.tree_at(lambda m: m.state.value, trained, norm().state.value)


def _moments(model):
    return model.state.value["BatchNorm.batch_state_index"]


def test_partition_and_combine():
    """What either filter takes apart, `eqx.combine` puts together, states and flags included."""
    model = network()
    for spec in (eqx.is_array, eqx.is_inexact_array, ps.select(model), ps.select(model, ps.BatchState)):
        assert_same(eqx.combine(*eqx.partition(model, spec)), model)


# Transforms ---------------------------------------------------------------------------------------


def test_filter_jit():
    """A model with flags and names among its leaves compiles once, and trains as it does eagerly."""
    runs = []

    def step(model, xs):
        runs.append(None)
        return ps.vmap2(model, axis_name="batch")(xs)

    compiled = eqx.filter_jit(ps.pure(step))
    eager, model = network(), network()
    for _ in range(3):
        ys, model = compiled(model, XS)
    assert len(runs) == 1
    for _ in range(3):
        expected, eager = ps.pure(step)(eager, XS)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)
    assert model[3].rng.value == eager[3].rng.value
    np.testing.assert_allclose(
        model[1].state.value["BatchNorm.batch_state_index"],
        eager[1].state.value["BatchNorm.batch_state_index"],
        rtol=1e-5,
    )


def test_filter_jit_inside_a_recording():
    """A live tree crosses `eqx.filter_jit` through `pure`, and `update` writes what comes back."""

    @eqx.filter_jit
    def inner(tally, x):
        return ps.pure(Tally.__call__)(tally, x)

    def outer(tally, x):
        out, new = inner(tally, x)
        ps.update(tally, ps.states(new, ps.ShortTermState))
        return out

    out, new = ps.pure(outer)(Tally(), 3.0)
    assert (out, new.seen.value) == (6, 3)


def test_filter_vmap():
    """`eqx.filter_vmap` makes an ensemble and maps its pure calls, as `vmap2` does."""
    weights = jnp.arange(3.0)
    ensemble = eqx.filter_vmap(Tally)(weights)
    assert ensemble.seen.value.shape == (3,)
    outs, new = eqx.filter_vmap(ps.pure(Tally.__call__))(ensemble, jnp.ones(3))
    expected, by_ours = ps.pure(ps.vmap2(Tally.__call__))(ensemble, jnp.ones(3))
    np.testing.assert_array_equal(outs, expected)
    assert eqx.tree_equal(new, by_ours)


def test_filter_vmap_with_axes_by_kind():
    """`ps.axes` gives `in_axes` and `out_axes` that `eqx.filter_vmap` takes."""
    tally = eqx.tree_at(lambda m: m.seen.value, Tally(), jnp.zeros(3))
    axes = ps.axes(tally, {0: ps.ShortTermState})
    mapped = eqx.filter_vmap(ps.pure(Tally.__call__), in_axes=(axes, 0), out_axes=(0, axes))
    outs, new = mapped(tally, jnp.arange(3.0))
    np.testing.assert_array_equal(outs, [0, 2, 4])
    np.testing.assert_array_equal(new.seen.value, [0, 1, 2])
    assert new.weight.value.shape == ()


def test_filter_vmap_of_layers_of_equinox():
    """An ensemble of `from_equinox` layers by Equinox's own map has a state per member."""
    ensemble = eqx.filter_vmap(lambda _: norm(), axis_size=2)(None)
    member = eqx.filter_vmap(lambda m, xs: ps.pure(ps.vmap2(m, axis_name="batch"))(xs))
    _, new = member(ensemble, jnp.stack([XS, 2 * XS]))
    _, alone = ps.pure(ps.vmap2(norm(), axis_name="batch"))(2 * XS)
    for got, expected in zip(jtu.tree_leaves(new.state), jtu.tree_leaves(alone.state), strict=True):
        np.testing.assert_allclose(got[1], expected, rtol=1e-5)


def test_filter_grad():
    """Gradients are a tree of the model's form; what is not differentiated is an empty state."""

    def loss(tally, x):
        return tally(x) ** 2

    grads, new = eqx.filter_grad(ps.pure(loss), has_aux=True)(Tally(), 3.0)
    assert (type(grads), grads.weight.value, new.seen.value) == (Tally, 36, 3)
    frozen = eqx.tree_at(lambda m: m.seen.value, Tally(), jnp.int32(0))
    grads, new = eqx.filter_grad(ps.pure(loss), has_aux=True)(frozen, 3)
    assert jtu.tree_leaves(grads.seen) == []
    stepped = eqx.apply_updates(new, jtu.tree_map(lambda g: -0.01 * g, grads))
    np.testing.assert_allclose(stepped.weight.value, 2 - 0.36, rtol=1e-6)
    assert stepped.seen.value == 3


def test_statistics_are_no_parameters():
    """`ps.select` keeps running statistics out of an update that a plain gradient would make to them."""
    model = ps.nn.from_equinox(eqx.nn.BatchNorm, 3, axis_name="batch", mode="ema")
    _, model = ps.pure(ps.vmap2(model, axis_name="batch"))(XS)
    params, rest = eqx.partition(model, ps.select(model))

    def loss(params):
        ys, new = ps.pure(ps.vmap2(eqx.combine(params, rest), axis_name="batch"))(XS)
        return jnp.sum(ys**3), new

    grads, new = eqx.filter_grad(loss, has_aux=True)(params)
    stepped = eqx.apply_updates(new, jtu.tree_map(lambda g: -g, grads))
    assert_same(stepped.state, new.state)
    assert not np.array_equal(stepped.layer.weight, new.layer.weight)


# Saving -------------------------------------------------------------------------------------------


def test_serialise_without_random_states():
    """Equinox's defaults save and load trees of states bit for bit, where no typed key is among them."""
    _, model = ps.pure(ps.vmap2(norm(), axis_name="batch"))(XS)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, norm())
    assert eqx.tree_equal(again, model)
