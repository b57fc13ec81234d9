"""`shard_map2`: how states go into shards and come back. That it nests with all transforms is a law."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import pstate as ps
from shard_map.meshes import in_context, mesh


X = jnp.arange(8.0)
both_kinds = pytest.mark.parametrize("kind", ["Auto", "Explicit"])


class Norm(eqx.Module):
    """A model with a state that shards share, one that is cut, a stream, and one that nobody touches."""

    mean: ps.BatchState
    hidden: ps.HiddenState
    rng: ps.RandomState
    weight: ps.ParamState

    def __call__(self, x: Any) -> Any:
        self.mean.value = 0.5 * self.mean.value + 0.5 * jax.lax.pmean(x.mean(), "data")
        self.hidden.value = self.hidden.value + x
        return (x - self.mean.value) * self.weight.value


def norm() -> Norm:
    return Norm(
        ps.BatchState(jnp.float32(0)),
        ps.HiddenState(jnp.zeros(8)),
        ps.RandomState(0),
        ps.ParamState(jnp.float32(2)),
    )


def norm_by_hand(mean: Any, hidden: Any, weight: Any, x: Any) -> Any:
    mean = 0.5 * mean + 0.5 * x.mean()
    return (x - mean) * weight, mean, hidden + x


HIDDEN = {P("data"): ps.HiddenState}


# Specs ----------------------------------------------------------------------------------------------


@both_kinds
def test_a_bound_module(kind: str):
    """Its states are the same in all shards but where a filter cuts them; unwritten leaves come back."""
    model = norm()
    mapped = ps.shard_map2(
        model, mesh=mesh(4, kind=kind), in_specs=P("data"), out_specs=P("data"), state_in_specs=HIDDEN
    )
    y, updated = ps.pure(mapped)(X)
    expected, mean, hidden = norm_by_hand(0.0, jnp.zeros(8), 2.0, X)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(updated.mean.value, mean, rtol=1e-6)
    np.testing.assert_array_equal(updated.hidden.value, hidden)
    assert updated.weight.value is model.weight.value
    assert updated.rng.value is model.rng.value


@both_kinds
def test_written_states_live_where_they_are_said_to(kind: str):
    """A cut state is spread over the devices, a shared one is on all; later calls compile nothing."""
    runs = []

    def step(model: Norm, x: Any) -> Any:
        runs.append(None)
        return model(x)

    mapped = ps.shard_map2(
        step,
        mesh=mesh(4, kind=kind),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        state_in_specs=HIDDEN,
    )
    model = norm()
    for _ in range(4):
        y, model = ps.pure(mapped)(model, X)
    assert model.hidden.value.sharding.spec == P("data")
    assert model.mean.value.sharding.is_fully_replicated
    assert len(model.mean.value.devices()) == 4
    assert y.sharding.spec == P("data")
    assert len(runs) <= 2  # on an explicit mesh the second call has operands of another type
    before = len(runs)
    ps.pure(mapped)(model, X)
    assert len(runs) == before


def test_specs_by_argument():
    """A prefix for each argument, by position and by name, with `None` for what all share."""

    def step(tree: Any, x: Any, scale: Any, *, shift: Any = 0.0) -> Any:
        tree["n"].value = tree["n"].value + 1
        return {"y": x["a"] * scale + x["b"] + shift}

    tree = {"n": ps.State(jnp.zeros((2, 4)))}
    x = {"a": jnp.ones((4, 3)), "b": jnp.arange(12.0).reshape(3, 4).T}
    by_position = (P(None, "data"), {"a": P("data"), "b": P("data", None)}, None)
    by_name = {"tree": P(None, "data"), "x": P("data"), "scale": None, "shift": P()}
    expected = 2 * x["a"] + x["b"] + 1
    for in_specs in (by_position, list(by_position), by_name):
        mapped = ps.shard_map2(step, mesh=mesh(4), in_specs=in_specs, out_specs={"y": P("data")})
        out, new = ps.pure(mapped)(tree, x, jnp.float32(2), shift=jnp.float32(1))
        np.testing.assert_array_equal(out["y"], expected)
        np.testing.assert_array_equal(new["n"].value, np.ones((2, 4)))


def test_a_function_of_the_leaf_for_a_spec():
    """It is asked about each leaf of an argument."""
    by_rank = lambda leaf: P("data") if leaf.ndim else P()
    mapped = ps.shard_map2(
        lambda tree: tree["x"] + tree["c"], mesh=mesh(4), in_specs=(by_rank,), out_specs=P("data")
    )
    np.testing.assert_array_equal(mapped({"x": X, "c": jnp.float32(1)}), X + 1)


def test_two_mesh_axes():
    """Arrays are cut over both axes, and a collective over one leaves the other alone."""

    def step(total: Any, x: Any) -> Any:
        total.value = total.value + jax.lax.psum(x.sum(axis=0), "data")
        return x * 2

    mapped = ps.shard_map2(
        step, mesh=mesh(2, 2), in_specs=(P("model"), P("data", "model")), out_specs=P("data", "model")
    )
    x = jnp.arange(16.0).reshape(4, 4)
    y, total = ps.pure(mapped)(ps.State(jnp.zeros(4)), x)
    np.testing.assert_array_equal(y, x * 2)
    np.testing.assert_array_equal(total.value, x.sum(axis=0))


@both_kinds
def test_some_axes_only(kind: str):
    """`axis_names` leaves the other axes alone: arrays stay whole along them."""
    shapes = []

    def step(total: Any, x: Any) -> Any:
        shapes.append(x.shape)
        total.value = total.value + jax.lax.psum(x.sum(), "data")
        return x + 1

    mapped = ps.shard_map2(
        step,
        mesh=mesh(2, 2, kind=kind),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        axis_names="data",
    )
    x = jnp.arange(8.0).reshape(4, 2)
    y, total = ps.pure(mapped)(ps.State(jnp.float32(0)), x)
    assert shapes[0] == (2, 2)
    np.testing.assert_array_equal(y, x + 1)
    assert total.value == x.sum()


def test_the_mesh_of_the_context():
    """Without `mesh` it is that of the context, also where that changes; eagerly and in a `jax.jit`."""
    mapped = ps.shard_map2(
        lambda s, x: x * s.value * jax.lax.psum(1, "data"),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    for n in (2, 4):
        with in_context(mesh(n)):
            np.testing.assert_array_equal(mapped(ps.State(jnp.float32(3)), X), 3 * n * X)
            compiled = jax.jit(lambda x: mapped(ps.State(jnp.float32(3)), x))(X)
            np.testing.assert_array_equal(compiled, 3 * n * X)


def test_lanes_on_the_devices_of_a_shard():
    """`vmap2` in a shard maps the lanes there; a collective may go over lanes and shards together."""

    def lane(mean: Any, x: Any) -> Any:
        mean.value = jax.lax.pmean(x, ("lanes", "data"))
        return x - mean.value

    lanes = ps.vmap2(lane, in_axes=(None, 0), axis_name="lanes")
    mapped = ps.shard_map2(lanes, mesh=mesh(4), in_specs=(P(), P("data")), out_specs=P("data"))
    y, mean = ps.pure(mapped)(ps.BatchState(jnp.float32(0)), X)
    np.testing.assert_allclose(y, X - X.mean())
    assert mean.value == X.mean()


def test_states_in_the_output():
    """They leave by `state_out_specs`, then as their kind says, then by `out_specs`."""

    def make(x: Any) -> Any:
        return {
            "own": ps.HiddenState(x),
            "steps": ps.NonBatchState(jnp.int32(3)),
            "mean": ps.BatchState(jax.lax.pmean(x.mean(), "data")),
        }

    mapped = ps.shard_map2(
        make,
        mesh=mesh(4),
        in_specs=P("data"),
        out_specs=P("data"),
        state_out_specs={P(): ps.BatchState},
    )
    out = mapped(X)
    np.testing.assert_array_equal(out["own"].value, X)
    assert out["steps"].value == 3
    assert out["mean"].value == X.mean()


def test_a_reducer_by_rule():
    """A callable in `state_out_specs` runs in each shard, before the value leaves as the same in all."""

    def step(seen: Any, x: Any) -> Any:
        seen["sum"].value = seen["sum"].value + x.sum()
        seen["max"].value = jnp.maximum(seen["max"].value, x.max())

    mapped = ps.shard_map2(
        step,
        mesh=mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P(),
        state_out_specs={
            ft.partial(jax.lax.psum, axis_name="data"): ps.BatchState,
            lambda x: jax.lax.pmax(x, "data"): ps.LongTermState,
        },
    )
    seen = {"sum": ps.BatchState(jnp.float32(0)), "max": ps.LongTermState(jnp.float32(-1))}
    _, seen = ps.pure(mapped)(seen, X)
    assert seen["sum"].value == X.sum()
    assert seen["max"].value == 7


def test_a_value_changes_its_spec_by_rule():
    """What came in the same in all shards leaves in parts where a rule says so."""

    def step(last: Any, x: Any) -> Any:
        last.value = x

    mapped = ps.shard_map2(
        step,
        mesh=mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P(),
        state_out_specs={P("data"): ps.State},
    )
    _, last = ps.pure(mapped)(ps.State(jnp.zeros(2)), X)
    np.testing.assert_array_equal(last.value, X)


# Random streams -------------------------------------------------------------------------------------


def draws_of_lanes(rng: ps.RandomState, n: int) -> Any:
    lane = lambda rng, _: rng.normal(size=3)
    return ps.pure(ps.vmap2(lane, in_axes=(None, 0)))(rng, jnp.arange(n))


def draw(rng: Any, _: Any) -> Any:
    return rng.normal(size=3)[None]


def same_key(a: ps.RandomState, b: ps.RandomState) -> bool:
    return bool((jr.key_data(a.value) == jr.key_data(b.value)).all())


@pytest.mark.parametrize("make", [lambda: ps.RandomState(3), lambda: ps.RandomState(jr.PRNGKey(3))])
@both_kinds
def test_draws_are_those_of_lanes(make: Any, kind: str):
    """Bit for bit, for typed keys and raw ones; and the stream goes on as after lanes."""
    mapped = ps.shard_map2(draw, mesh=mesh(4, kind=kind), in_specs=(P(), P("data")), out_specs=P("data"))
    ys, rng = ps.pure(mapped)(make(), jnp.arange(4))
    expected, of_lanes = draws_of_lanes(make(), 4)
    np.testing.assert_array_equal(ys, expected)
    np.testing.assert_array_equal(jr.key_data(rng.value), jr.key_data(of_lanes.value))


def test_draws_over_two_axes():
    """A key for each place along the axes that `in_specs` name, in that order."""
    expected, _ = draws_of_lanes(ps.RandomState(3), 4)
    both = ps.shard_map2(
        lambda rng, _: rng.normal(size=3)[None, None],
        mesh=mesh(2, 2),
        in_specs=(P(), P("data", "model")),
        out_specs=P("data", "model"),
    )
    ys, _ = ps.pure(both)(ps.RandomState(3), jnp.ones((2, 2)))
    np.testing.assert_array_equal(ys.reshape(4, 3), expected)
    turned = P(("model", "data"))
    as_named = ps.shard_map2(draw, mesh=mesh(2, 2), in_specs=(P(), turned), out_specs=turned)
    ys, _ = ps.pure(as_named)(ps.RandomState(3), jnp.ones(4))
    np.testing.assert_array_equal(ys, expected)
    # Shards at the same place along `data` share a key, so that what they draw is the same.
    one = ps.shard_map2(draw, mesh=mesh(2, 2), in_specs=(P(), P("data")), out_specs=P("data"))
    ys, _ = ps.pure(one)(ps.RandomState(3), jnp.ones(2))
    np.testing.assert_array_equal(ys, draws_of_lanes(ps.RandomState(3), 2)[0])


def test_a_rule_says_over_which_axes_a_key_is_split():
    """Its order is that of the lanes; `P()` shares the key, and what is drawn is the same in all."""
    expected, _ = draws_of_lanes(ps.RandomState(3), 4)

    def drawing(rule: P, out: P) -> Any:
        mapped = ps.shard_map2(
            lambda rng, _: rng.normal(size=3)[None],
            mesh=mesh(2, 2),
            in_specs=(P(), P("data")),
            out_specs=out,
            state_in_specs={rule: ps.RandomState},
        )
        return ps.pure(mapped)(ps.RandomState(3), jnp.ones(2))

    ys, _ = drawing(P(("model", "data")), P(("model", "data")))
    np.testing.assert_array_equal(ys, expected)
    ys, rng = drawing(P(), P())
    alone = ps.RandomState(3)
    by_hand, alone = ps.pure(lambda rng: rng.normal(size=3))(alone)
    np.testing.assert_array_equal(ys[0], by_hand)
    assert same_key(rng, alone)


def test_a_batch_of_keys():
    """One that the shards share is split, a key of each per shard; one that is cut stays what it is."""
    keys = jr.split(jr.key(1), 4)
    cut = ps.shard_map2(
        lambda rng, x: ps.vmap2(lambda rng, x: rng.normal())(rng, x),
        mesh=mesh(4),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    ys, rng = ps.pure(cut)(ps.RandomState(keys), jnp.arange(4))
    expected, of_lanes = ps.pure(ps.vmap2(lambda rng, x: rng.normal()))(
        ps.RandomState(keys), jnp.arange(4)
    )
    np.testing.assert_array_equal(ys, expected)
    assert same_key(rng, of_lanes)
    shared = ps.shard_map2(
        lambda rng, _: ps.vmap2(lambda rng: rng.normal())(rng)[None],
        mesh=mesh(2),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    lane = lambda rng, _: ps.vmap2(lambda rng: rng.normal())(rng)
    ys, rng = ps.pure(shared)(ps.RandomState(keys), jnp.arange(2))
    expected, of_lanes = ps.pure(ps.vmap2(lane, in_axes=(None, 0)))(ps.RandomState(keys), jnp.arange(2))
    np.testing.assert_array_equal(ys, expected)
    assert same_key(rng, of_lanes)


def test_a_stream_that_nobody_draws_from():
    """It comes back as the same array object, also where the program was compiled before."""
    mapped = ps.shard_map2(
        lambda tree, x: x, mesh=mesh(4), in_specs=(P(), P("data")), out_specs=P("data")
    )
    rng = ps.RandomState(0)
    for _ in range(2):
        _, updated = ps.pure(mapped)({"rng": rng}, X)
        assert updated["rng"].value is rng.value


def test_a_first_draw_under_a_raw_transform():
    """A key that is first read inside `jax.lax.scan` is the shard's own, as it is a lane's."""

    def lane(rng: Any, x: Any) -> Any:
        step = lambda total, i: (total + jr.normal(jr.fold_in(rng.value, i)), None)
        return jax.lax.scan(step, x, jnp.arange(2))[0]

    mapped = ps.shard_map2(
        lambda rng, x: lane(rng, x[0])[None],
        mesh=mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    ys, rng = ps.pure(mapped)(ps.RandomState(0), jnp.zeros(4))
    expected, of_lanes = ps.pure(ps.vmap2(lane, in_axes=(None, 0)))(ps.RandomState(0), jnp.zeros(4))
    np.testing.assert_allclose(ys, expected, rtol=1e-6)
    assert same_key(rng, of_lanes)


# Programs -------------------------------------------------------------------------------------------


def test_it_is_compiled_once_also_through_a_new_wrapper():
    """A warm call runs the body zero times; options that are equal are the same."""
    runs = []

    def step(s: Any, x: Any) -> Any:
        runs.append(None)
        s.value = s.value + jax.lax.psum(x.sum(), "data")

    for _ in range(3):
        mapped = ps.shard_map2(
            step,
            mesh=mesh(4),
            in_specs=(P(), P("data")),
            out_specs=P(),
            state_out_specs={ft.partial(jax.lax.pmean, axis_name="data"): ps.State},
        )
        ps.pure(mapped)(ps.State(jnp.float32(0)), X)
    assert len(runs) == 1


def test_it_has_the_collectives_of_its_body_and_no_others():
    """The compiled program has as many of each as that of the twin."""

    def twin(mean: Any, hidden: Any, weight: Any, x: Any) -> Any:
        mean = 0.5 * mean + 0.5 * jax.lax.pmean(x.mean(), "data")
        return (x - mean) * weight, mean, hidden + x

    here = mesh(4)
    by_hand = jax.jit(
        jax.shard_map(
            twin,
            mesh=here,
            in_specs=(P(), P("data"), P(), P("data")),
            out_specs=(P("data"), P(), P("data")),
        )
    )
    mapped = ps.shard_map2(
        Norm.__call__,
        mesh=here,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        state_in_specs=HIDDEN,
    )
    model = norm()
    ours = ps.pure(mapped).lower(model, X).compile().as_text()
    theirs = by_hand.lower(0.0, jnp.zeros(8), 2.0, X).compile().as_text()
    kinds = ("all-reduce(", "all-gather(", "reduce-scatter(", "collective-permute(", "all-to-all(")
    assert {k: ours.count(k) for k in kinds} == {k: theirs.count(k) for k in kinds}


def test_donation():
    """A written state gives up its buffer; one that is read does not."""

    def step(model: Any, x: Any) -> Any:
        model["h"].value = model["h"].value + x
        return x * model["w"].value.sum()

    mapped = ps.shard_map2(
        step,
        mesh=mesh(4),
        in_specs=P("data"),
        out_specs=P("data"),
        donate=ps.State,
    )
    model = {"h": ps.State(jnp.zeros(8)), "w": ps.State(jnp.ones(8))}
    _, model = ps.pure(mapped)(model, X)  # now they live on the mesh
    model = {"h": model["h"], "w": ps.State(jax.device_put(jnp.ones(8), model["h"].value.sharding))}
    old = model
    _, model = ps.pure(mapped)(model, X)
    assert old["h"].value.is_deleted()
    assert not old["w"].value.is_deleted()
    np.testing.assert_array_equal(model["h"].value, 2 * X)


def test_ahead_of_time():
    """`lower(...).compile()` gives a stateful function, called like the mapping."""
    mapped = ps.shard_map2(
        Norm.__call__,
        mesh=mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        state_in_specs=HIDDEN,
    )
    compiled = ps.pure(mapped).lower(norm(), X).compile()
    y, updated = compiled(norm(), X)
    expected, again = ps.pure(mapped)(norm(), X)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(updated.hidden.value, again.hidden.value)


def test_as_a_decorator_of_a_method():
    """`self` is not counted, and its states are the same in all shards."""

    class Model(eqx.Module):
        total: ps.State

        @ps.shard_map2(mesh=mesh(4), in_specs=P("data"), out_specs=P("data"))
        def add(self, x: Any) -> Any:
            self.total.value = self.total.value + jax.lax.psum(x.sum(), "data")
            return x + 1

    y, model = ps.pure(Model(ps.State(jnp.float32(0))).add)(X)
    np.testing.assert_array_equal(y, X + 1)
    assert model.total.value == X.sum()


def test_live_states():
    """In a recording the written states go where they belong; a live state keeps being live."""
    mapped = ps.shard_map2(
        Norm.__call__,
        mesh=mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        state_in_specs=HIDDEN,
    )
    with ps.record(norm()) as model:
        mapped(model, X)
        mapped(model, X)
        frozen = ps.freeze(model)
    np.testing.assert_array_equal(frozen.hidden.value, 2 * X)


def test_gradients_through_it_and_in_it():
    """From outside as through one device; inside, those of a shard, to be averaged."""
    loss = lambda w, x: ((w.value * x) ** 2).sum()
    mapped = ps.shard_map2(
        lambda w, x: jax.lax.psum(loss(w, x), "data"),
        mesh=mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    w = ps.ParamState(jnp.float32(3))
    expected = ps.grad(loss)(w, X).value
    np.testing.assert_allclose(ps.grad(lambda w, x: mapped(w, x))(w, X).value, expected, rtol=1e-6)

    def inside(w: Any, x: Any) -> Any:
        gradient = ps.grad(loss)(w, x).value
        w.value = w.value - 0.1 * jax.lax.psum(gradient, "data")

    step = ps.shard_map2(inside, mesh=mesh(4), in_specs=(P(), P("data")), out_specs=P())
    _, new = ps.pure(step)(w, X)
    np.testing.assert_allclose(new.value, 3 - 0.1 * expected, rtol=1e-6)


def test_it_is_a_pytree_and_pickles():
    """As every transform: the callable is its child, and by its public name it comes back."""
    import pickle

    mapped = ps.shard_map2(norm(), mesh=mesh(4), in_specs=P("data"), out_specs=P("data"))
    assert len(jtu.tree_leaves(mapped)) == 4
    doubled = jtu.tree_map(lambda x: x, mapped)
    assert repr(doubled) == repr(mapped)
    free = ps.shard_map2(draw, in_specs=P("data"), out_specs=P("data"))
    again = pickle.loads(pickle.dumps(free))
    assert repr(again) == "ps.shard_map2(draw, in_specs=P('data'), out_specs=P('data'))"
