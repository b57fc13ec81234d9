"""Equinox's own stateful layers: as right as threading their state by hand, under every transform."""

import copy
import functools as ft
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


STEPS = 4


class Trace(eqx.nn.StatefulLayer):
    """A user's layer: a running sum over the batch, in a container, and a count of calls."""

    total: eqx.nn.StateIndex
    calls: eqx.nn.StateIndex
    inference: bool

    def __init__(self, size):
        self.inference = False
        self.total = eqx.nn.StateIndex({"sum": jnp.zeros(size), "last": [jnp.ones(size)]})
        self.calls = eqx.nn.StateIndex(jnp.array(0))

    def __call__(self, x, state, *, key=None, inference=None):
        total = state.get(self.total)
        if self.inference if inference is None else inference:
            return x - total["sum"], state
        state = state.set(self.calls, state.get(self.calls) + 1)
        last = jax.lax.pmean(x, "batch")
        state = state.set(self.total, {"sum": total["sum"] + last, "last": [last]})
        return x - total["last"][0], state


def spectral(key):
    keys = jr.split(key)
    return eqx.nn.SpectralNorm(eqx.nn.Linear(3, 3, key=keys[0]), "weight", key=keys[1])


def sequence(key):
    keys = jr.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(3, 3, key=keys[0]),
            eqx.nn.BatchNorm(3, axis_name="batch", mode="batch", momentum=0.9),
            eqx.nn.Lambda(jax.nn.tanh),
            spectral(keys[1]),
            Trace(3),
        ]
    )


MAKERS = {
    "ema": lambda key: eqx.nn.BatchNorm(3, axis_name="batch", mode="ema"),
    "batch": lambda key: eqx.nn.BatchNorm(3, axis_name="batch", mode="batch"),
    "no affine": lambda key: eqx.nn.BatchNorm(3, "batch", channelwise_affine=False, mode="batch"),
    "spectral": spectral,
    "user": lambda key: Trace(3),
    "sequence": sequence,
}
every_layer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def batch_norm(**options):
    return ps.nn.from_equinox(eqx.nn.BatchNorm, 3, axis_name="batch", mode="batch", **options)


def data(*lead):
    return jr.normal(jr.key(1), (STEPS, *lead, 4, 3)) * 2 + 1


def as_dict(state):
    """An Equinox state as it stands in the `BatchState`: by marker."""
    values, markers = state.tree_flatten()
    return dict(zip(markers, values, strict=True))


def assert_close(got, expected, scale=1):
    """Equal to rounding, which counts from the largest entry of an array; types and structure equal.

    `scale` is the size of what was added up, if it is more.
    """
    assert jtu.tree_structure(got) == jtu.tree_structure(expected)
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(expected), strict=True):
        assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(scale, np.abs(b).max()))


def twin(layer):
    """A layer over a batch, with its state threaded by hand."""
    return jax.vmap(layer, in_axes=(0, None), out_axes=(0, None), axis_name="batch")


# As the twin ----------------------------------------------------------------------------------------


def mapped(model, xs):
    return ps.pure(ps.vmap2(model, axis_name="batch"))(xs)


def jitted(model, xs):
    # Equinox's layers have leaves that are no arrays (`inference`, `axis_name`), which raw `jax.jit`
    # takes as little as it takes the layers themselves.
    arrays, static = eqx.partition(model, eqx.is_array)

    @jax.jit
    def run(arrays, xs):
        ys, new = mapped(eqx.combine(arrays, static), xs)
        return ys, eqx.filter(new, eqx.is_array)

    ys, arrays = run(arrays, xs)
    return ys, eqx.combine(arrays, static)


def over_devices(model, xs):
    return ps.pure(ps.pmap2(model, axis_name="batch"))(xs)


def recorded(model, xs):
    with ps.record(model) as live:
        ys = ps.vmap2(live, axis_name="batch")(xs)
    return ys, ps.freeze(live)


def leak_checked(model, xs):
    with jax.checking_leaks():
        return mapped(model, xs)


@ps.pure
@ps.jit
def by_our_jit(model, xs):
    return ps.vmap2(model, axis_name="batch")(xs)


WAYS = {
    "pure": mapped,
    "filter_jit": eqx.filter_jit(mapped),
    "jit": jitted,
    "ps.jit": by_our_jit,
    "pmap2": over_devices,
    "record": recorded,
    "leaks": leak_checked,
}


@pytest.mark.once
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@every_layer
def test_as_threaded_by_hand(make, way):
    """Outputs, every state and its type, and then inference, are the twin's over several steps."""
    model = first = ps.nn.from_equinox(make, jr.key(0))
    layer, state = eqx.nn.make_with_state(make)(jr.key(0))
    assert_close(model.state.value, as_dict(state))
    for xs in data():
        ys, model = way(model, xs)
        expected, state = twin(layer)(xs, state)
        assert_close(ys, expected)
        assert_close(model.state.value, as_dict(state))
    inference = eqx.nn.inference_mode(layer)
    expected, _ = twin(inference)(data()[0], state)
    assert_close(ps.vmap2(eqx.nn.inference_mode(model), axis_name="batch")(data()[0]), expected)
    # The first tree can be used again.
    way(first, data()[0])
    assert_close(first.state.value, as_dict(eqx.nn.make_with_state(make)(jr.key(0))[1]))


@every_layer
def test_an_ensemble_has_a_state_per_member(make):
    """Members made by a mapping keep states of their own: each equals its twin trained alone."""
    keys = jr.split(jr.key(0), 2)
    model = ps.vmap2(lambda key: ps.nn.from_equinox(make, key))(keys)
    twins = [eqx.nn.make_with_state(make)(key) for key in keys]

    @eqx.filter_jit
    @ps.pure
    @ps.vmap2
    def step(member, xs):
        return ps.vmap2(member, axis_name="batch")(xs)

    for xs in data(2):
        ys, model = step(model, xs)
        results = [twin(layer)(x, state) for (layer, state), x in zip(twins, xs, strict=True)]
        twins = [(layer, new) for (layer, _), (_, new) in zip(twins, results, strict=True)]
        assert_close(ys, jnp.stack([y for y, _ in results]))
        states = [as_dict(state) for _, state in twins]
        assert_close(model.state.value, jtu.tree_map(lambda *leaves: jnp.stack(leaves), *states))


@every_layer
def test_gradients(make):
    """Gradients of the layer's arrays are the twin's, and the new state comes back beside them."""
    model = ps.nn.from_equinox(make, jr.key(0))
    layer, state = eqx.nn.make_with_state(make)(jr.key(0))
    targets = jr.normal(jr.key(2), (4, 3))

    def loss(model, xs):
        return jnp.sum((ps.vmap2(model, axis_name="batch")(xs) - targets) ** 2)

    def by_hand(layer, state, xs):
        ys, state = twin(layer)(xs, state)
        return jnp.sum((ys - targets) ** 2), state

    for xs in data():
        (value, new), grads = eqx.filter_value_and_grad(ps.pure(loss), has_aux=True)(model, xs)
        (expected, state), by = eqx.filter_value_and_grad(by_hand, has_aux=True)(layer, state, xs)
        # The bias before a normalisation has no gradient: terms as large as the loss cancel.
        assert_close((value, grads.layer), (expected, by), scale=float(expected))
        assert_close(new.state.value, as_dict(state))
        model = new


# The module -----------------------------------------------------------------------------------------


def test_two_that_are_built_alike_have_one_structure():
    """Structures are equal and hashable, before and after training, so nothing compiles twice."""
    runs = []

    @eqx.filter_jit
    def step(model, xs):
        runs.append(None)
        return mapped(model, xs)

    first, second = batch_norm(), batch_norm()
    _, trained = step(first, data()[0])
    step(second, data()[0])
    step(trained, data()[0])
    assert len(runs) == 1
    structures = {jtu.tree_structure(model) for model in (first, second, trained)}
    assert len(structures) == 1


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies(duplicate):
    """A trained layer copies and pickles, and the copy goes on where the original stands."""
    _, model = mapped(batch_norm(), data()[0])
    made = duplicate(model)
    assert jtu.tree_structure(made) == jtu.tree_structure(model)
    (ys, new), (expected, model) = mapped(made, data()[1]), mapped(model, data()[1])
    assert_close(ys, expected)
    assert_close(new.state.value, model.state.value)


def test_the_state_is_found_by_path_and_kind():
    """It is one `BatchState` whose dict tells what is what; the layer's arrays are trainable."""
    net = {"norm": batch_norm(), "bias": jnp.zeros(3)}
    [(path, state)] = ps.states(net, ps.BatchState).items()
    assert path == ("norm", "state")
    assert list(state.value) == ["BatchNorm.batch_counter", "BatchNorm.batch_state_index"]
    trained = ps.trainable(net)
    assert [x.shape for x in jtu.tree_leaves(trained)] == [(3,), (3,), (3,)]
    assert jtu.tree_leaves(trained["norm"].state) == []


def test_reading_writes_nothing():
    """In inference the same tree object comes back, and calls need no recording."""
    model = eqx.nn.inference_mode(mapped(batch_norm(), data()[0])[1])
    _, same = mapped(model, data()[0])
    assert all(a is b for a, b in zip(jtu.tree_leaves(same), jtu.tree_leaves(model), strict=True))
    with ps.record(model) as live:
        live(data()[0][0])
        assert ps.written(live) == {}
    assert model(data()[0][0]).shape == (3,)


def test_arguments_are_handed_on():
    """`inference=` and `key=` reach the layer, and the keys give the twin's draws."""
    layers = [eqx.nn.Dropout(0.5), MAKERS["batch"](None)]
    model = ps.nn.from_equinox(eqx.nn.Sequential, layers)
    layer, state = eqx.nn.make_with_state(eqx.nn.Sequential)(layers)
    xs, keys = data()[0], jr.split(jr.key(3), 4)
    ys, model = ps.pure(ps.vmap2(model, axis_name="batch"))(xs, key=keys)

    def by_hand(x, key):
        return layer(x, state, key=key)

    expected, _ = jax.vmap(by_hand, axis_name="batch")(xs, keys)
    assert_close(ys, expected)
    norm = batch_norm()
    assert_close(norm(xs[0], inference=True), eqx.nn.inference_mode(norm)(xs[0]))


class KeywordOnly(Trace):
    """A layer whose state has a place of its own in the signature."""

    def __call__(self, x, scale, *, state):
        out, state = super().__call__(x, state, inference=True)
        return out * scale, state


class Late(Trace):
    """A layer whose state comes third."""

    def __call__(self, x, scale, state, shift=0.0):
        out, state = super().__call__(x, state, inference=True)
        return out * scale + shift, state


class Renamed(Trace):
    """A layer that calls its state by another name."""

    def __call__(self, x, context, shift=0.0):
        out, context = super().__call__(x, context, inference=True)
        return 2 * out + shift, context


def test_the_state_goes_where_the_signature_has_it():
    """By the name `state`, positional or keyword-only; by any other name, second."""
    one = jnp.ones(3)
    assert ps.nn.from_equinox(KeywordOnly, 3)(one, 2.0).tolist() == [2, 2, 2]
    late = ps.nn.from_equinox(Late, 3)
    assert [late(*args).tolist()[0] for args in [(one, 2.0), (one, 2.0, 1.0)]] == [2, 3]
    assert late(one, scale=2.0).tolist() == late(x=one, scale=2.0).tolist() == [2, 2, 2]
    assert ps.nn.from_equinox(Renamed, 3)(one, 1.0).tolist() == [3, 3, 3]


def test_states_of_pstate_inside():
    """A layer may hold states of pstate's own: both kinds come back from one call."""
    layers = [ps.nn.Dropout(0.5, key=1), MAKERS["batch"](None), eqx.nn.Lambda(jnp.sin)]
    model = ps.nn.from_equinox(eqx.nn.Sequential, layers)
    _, new = mapped(model, data()[0])
    assert list(ps.states(new)) == [
        ("layer", "layers", 0, "rng"),
        ("state",),
    ]
    assert new.layer.layers[0].rng.value != model.layer.layers[0].rng.value
    assert new.state.value["Sequential.layers[1].batch_counter"] == 1


# Mistakes -------------------------------------------------------------------------------------------


def test_training_outside_a_recording():
    """A call that would update the state raises and shows the way, which works."""
    model = ps.nn.from_equinox(spectral, jr.key(0))
    with pytest.raises(
        ps.FrozenStateError,
        match=r"`BatchState\(\{'SpectralNorm.uv_index': \(f32\[3\], f32\[3\]\)\}\)` was written outside "
        r"a recording[\s\S]*    out, tree = ps.pure\(f\)\(tree, x\)",
    ):
        model(jnp.ones(3))
    out, _ = ps.pure(model)(jnp.ones(3))
    with pytest.raises(
        ps.FrozenStateError,
        match=r"`equinox_layer.state` \(BatchState\) was written[\s\S]*    out, equinox_layer = "
        r"ps.pure\(ps.vmap2\(equinox_layer",
    ):
        ps.vmap2(model)(jnp.ones((2, 3)))
    outs, _ = ps.pure(ps.vmap2(model))(jnp.ones((2, 3)))
    assert_close(outs, jnp.stack([out, out]))


def test_layers_without_state():
    """There is nothing to carry, and the message says what to write instead, which works."""
    with pytest.raises(
        ValueError,
        match=r"^Linear made a Linear without state: there is no eqx.nn.StateIndex in it. Use it as it "
        r"is: layer = Linear\(...\)\.$",
    ):
        ps.nn.from_equinox(eqx.nn.Linear, 2, 3, key=jr.key(0))
    with pytest.raises(ValueError, match=r"^Sequential made a Sequential without state"):
        ps.nn.from_equinox(eqx.nn.Sequential, [eqx.nn.Linear(2, 3, key=jr.key(0))])
    with pytest.raises(ValueError, match=r"^partial made a Identity without state"):
        ps.nn.from_equinox(ft.partial(eqx.nn.Identity))


def test_layers_that_are_built_already():
    """A layer instead of its class is refused, and both ways that the message shows work."""
    norm = MAKERS["batch"](None)
    with pytest.raises(
        TypeError,
        match=r"^from_equinox takes a class, or a function that makes a layer; got a BatchNorm that is "
        r"already built. Write ps.nn.from_equinox\(BatchNorm, ...\), or "
        r"ps.nn.from_equinox\(lambda: layer\)\.$",
    ):
        ps.nn.from_equinox(norm)
    assert eqx.tree_equal(ps.nn.from_equinox(lambda: norm), batch_norm())


class Forgetful(Trace):
    """A layer with a bug."""

    def __call__(self, x, state):
        return super().__call__(x, state, inference=True)[0]


def test_layers_that_return_no_state():
    """A layer that forgets to return its state is named, with the line that is missing."""
    with pytest.raises(
        TypeError,
        match=r"^Forgetful returned a \w+, but a stateful Equinox layer returns \(out, state\), "
        r"where `state` is the newest eqx.nn.State. End its __call__ with:\n    return out, state$",
    ):
        ps.nn.from_equinox(Forgetful, 3)(jnp.ones(3))
