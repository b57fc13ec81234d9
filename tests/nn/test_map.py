"""`nn.Map`: a module, many times over."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pstate as ps


runs: list[None] = []


class Cell(ps.nn.Module):
    weight: ps.ParamState = ps.ParamState()
    hidden: ps.HiddenState = ps.HiddenState()

    def init_state(self, size):
        self.weight.value = jnp.ones(size)
        self.hidden.value = jnp.zeros(size)

    def update(self, x):
        runs.append(None)
        self.hidden.value = self.hidden.value + x * self.weight.value
        return self.hidden.value.sum()

    def predict(self, x):
        return x @ self.weight.value

    def centred(self, x):
        return x - jax.lax.pmean(x, "lanes")

    def pair(self, x, y):
        return x + y, x * y


BEHAVIORS = pytest.mark.parametrize("behavior", ["vmap", "pmap"])


def mapper(behavior: str = "vmap", **options) -> ps.nn.Map:
    return ps.nn.Map(Cell(), 4, behavior=behavior, **options).init_all_states(size=3)


@BEHAVIORS
def test_update(behavior):
    """States are made for each lane, `update` runs in each, and the map comes back."""
    made = mapper(behavior)
    assert set(made.dict_vmap_states) == {0}
    assert made.dict_vmap_states[0][("weight",)] is made.module.weight
    out, after = ps.pure(made.update)(jnp.arange(4.0))
    np.testing.assert_array_equal(out, [0.0, 3.0, 6.0, 9.0])
    assert isinstance(after, ps.nn.Map)
    np.testing.assert_array_equal(after.module.hidden.value[:, 0], [0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(made.module.hidden.value, np.zeros((4, 3)))
    assert after.module.weight.value is made.module.weight.value


@BEHAVIORS
def test_a_warm_update_traces_nothing(behavior):
    """The mapped functions are built once."""
    made = mapper(behavior)
    ps.pure(made.update)(jnp.ones(4))
    runs.clear()
    for _ in range(3):
        _, made = ps.pure(made.update)(jnp.ones(4))
    assert runs == []
    np.testing.assert_array_equal(made.module.hidden.value, np.full((4, 3), 3.0))


@BEHAVIORS
def test_map(behavior):
    """Methods by name, functions that get the module first, axes of their own, the inherited name."""
    made = mapper(behavior, axis_name="lanes")
    x = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(made.map("predict")(x), x.sum(1))
    scaled = made.map(lambda module, x, scale: module.predict(x) * scale, in_axes=(0, None))
    np.testing.assert_array_equal(scaled(x, 2.0), x.sum(1) * 2)
    np.testing.assert_array_equal(made.map("centred")(jnp.arange(4.0)), [-1.5, -0.5, 0.5, 1.5])
    total, product = made.map("pair", in_axes=(0, None), out_axes=(0, 0))(x, jnp.ones(3))
    np.testing.assert_array_equal(total, x + 1)
    np.testing.assert_array_equal(product, x)
    out, after = ps.pure(made.map("update"))(jnp.ones(4))
    assert isinstance(after, ps.nn.Map)
    np.testing.assert_array_equal(out, np.full(4, 3.0))


def test_the_name_can_be_another():
    """`axis_name` of `map` comes before the map's own."""
    made = mapper(axis_name="other")
    np.testing.assert_array_equal(made.map("centred", axis_name="lanes")(jnp.ones(4)), np.zeros(4))
    with pytest.raises(NameError, match="lanes"):
        made.map("centred")(jnp.ones(4))


def test_state_axes():
    """`state_axes` says how states are fed; those made for lanes are written back along their axis."""

    class Buffer(ps.nn.Module):
        weight: ps.ParamState = ps.ParamState()
        last: ps.State = ps.State()

        def init_state(self, size):
            self.weight.value = jnp.ones(size)
            self.last.value = jnp.zeros(size)

        def update(self, x):
            self.last.value = x
            return x @ self.weight.value

    made = ps.nn.Map(Buffer(), 4).init_all_states(size=3)
    x = jnp.arange(12.0).reshape(4, 3)
    out, after = ps.pure(made.map("update", state_axes={0: ps.ParamState}))(x)
    np.testing.assert_array_equal(out, x.sum(1))
    np.testing.assert_array_equal(after.module.last.value, x)
    shared = ps.nn.Map(Buffer(), 4, call_state_axes={None: ps.ParamState}).init_all_states(size=3)
    shared = eqx.tree_at(lambda m: m.module.weight, shared, ps.ParamState(jnp.full(3, 2.0)))
    out, _ = ps.pure(shared.update)(x)
    np.testing.assert_array_equal(out, 2 * x.sum(1))


def test_init_state_axes():
    """States are made, fed and written back along the axis that a filter gives them."""
    made = ps.nn.Map(Cell(), 4, init_state_axes={1: ps.HiddenState}, state_tag="lane")
    made = made.init_all_states(size=3)
    assert made.module.hidden.value.shape == (3, 4)
    assert made.module.hidden.tag == ("lane",)
    out, after = ps.pure(made.update)(jnp.arange(4.0))
    assert after.module.hidden.value.shape == (3, 4)
    np.testing.assert_array_equal(out, [0.0, 3.0, 6.0, 9.0])


def test_compiled_differentiated_serialised():
    """`jax.jit`, gradients with optax, and Equinox's serialisation take a map."""
    made = mapper()
    x = jnp.arange(4.0)
    out, _ = eqx.filter_jit(ps.pure(made.update))(x)
    np.testing.assert_array_equal(out, [0.0, 3.0, 6.0, 9.0])

    @jax.jit
    def step(made, opt_state):
        diff, rest = eqx.partition(made, ps.select(made))

        def loss(diff):
            out, new = ps.pure(ps.nn.Map.update)(eqx.combine(diff, rest), x)
            return out.sum(), new

        grads, new = jax.grad(loss, has_aux=True)(diff)
        updates, opt_state = optim.update(grads, opt_state)
        return eqx.apply_updates(new, updates), opt_state

    optim = optax.sgd(0.1)
    trained, _ = step(made, optim.init(ps.trainable(made)))
    np.testing.assert_allclose(trained.module.weight.value[:, 0], 1 - 0.1 * np.arange(4.0), rtol=1e-6)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, trained)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, made)
    np.testing.assert_array_equal(again.module.weight.value, trained.module.weight.value)


def test_in_a_module_in_a_mapping():
    """A map is a field of another module, and runs inside `vmap2`."""

    class Outer(eqx.Module):
        inner: ps.nn.Map

        def __call__(self, x):
            return self.inner.update(x)

    outer = Outer(mapper())
    out, after = ps.pure(outer)(jnp.ones(4))
    assert isinstance(after, Outer)
    batched = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), outer)
    out, after = ps.pure(ps.vmap2(Outer.__call__))(batched, jnp.ones((2, 4)))
    assert out.shape == (2, 4)
    assert after.inner.module.hidden.value.shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_map_size": 0}, r"init_map_size is the number of lanes.*got 0\. Write init_map_size=10"),
        ({"init_map_size": 2.0}, r"init_map_size is the number of lanes.*got 2\.0"),
        ({"init_map_size": 2, "behavior": "map"}, r"'vmap', 'pmap'; got 'map'\. Write behavior='vmap'"),
        (
            {"init_map_size": 2, "behavior": "pmap", "spmd_axis_name": "x"},
            "spmd_axis_name='x' is an option of jax.vmap",
        ),
    ],
)
def test_bad_arguments(options, message):
    """Arguments that do not fit are refused when the map is made."""
    with pytest.raises(ValueError, match=message):
        ps.nn.Map(Cell(), **options)


def test_bad_calls():
    """A function is not a module; a call before the states are made; an unknown method."""
    with pytest.raises(ValueError, match=r"Map maps an Equinox module.*ps\.vmap2\(f\)"):
        ps.nn.Map(lambda x: x, 2)
    with pytest.raises(ValueError, match=r"mapper = mapper\.init_all_states"):
        ps.nn.Map(Cell(), 2).update(jnp.ones(2))
    with pytest.raises(ValueError, match="has no states yet"):
        ps.nn.Map(Cell(), 2).map("predict")
    with pytest.raises(AttributeError, match=r"Cell has no method 'predit'; it has .*predict"):
        mapper().map("predit")
    with pytest.raises(ValueError, match="maps 8 lanes, one per device"):
        ps.nn.Map(Cell(), 8, behavior="pmap").init_all_states(size=3)
