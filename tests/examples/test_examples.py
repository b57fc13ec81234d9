"""`digits_ensemble.py` runs and does what it says. It is run short here, not at full length."""

import importlib
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import install_import_hook
from matplotlib.image import imread

import pstate as ps


EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS, MEMBERS = 60, 3


@pytest.fixture(scope="module")
def digits():
    """The example as a module. Its annotations, shapes and kinds of states included, are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        with install_import_hook(("digits_ensemble", "plotting"), "beartype.beartype"):
            yield importlib.import_module("digits_ensemble")
    del sys.modules["digits_ensemble"], sys.modules["plotting"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Where the short run draws."""
    return tmp_path_factory.mktemp("digits") / "picture.png"


@pytest.fixture(scope="module")
def report(digits, picture):
    """What a short run of `main` returns."""
    return digits.main(["--steps", str(STEPS), "--members", str(MEMBERS), "--out", str(picture)])


@pytest.fixture(scope="module")
def optim():
    """One optimiser for all tests. It is made of functions, and another one would compile again."""
    return optax.sgd(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def data():
    """Two minibatches of eight images for each member, and their labels."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 16, (2, MEMBERS, 8, 64)).astype(np.float32)
    return images, rng.integers(0, 10, (2, MEMBERS, 8))


def member(ensemble, i):
    """An ensemble of member `i` alone. The shared scale is the only array without an axis of members."""
    return jax.tree.map(lambda x: x[i : i + 1] if eqx.is_array(x) and x.ndim else x, ensemble)


def comparable(tree):
    """The arrays of a tree, with the data of keys instead of keys."""
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in arrays]


def test_it_learns(report):
    """The members learn real digits in a few steps, each in its own way; so does the ensemble."""
    losses = report.training.losses
    assert losses.shape == (STEPS, MEMBERS)
    assert np.isfinite(losses).all()
    assert (losses[-5:].mean(axis=0) < 0.6 * losses[0]).all()
    assert len(np.unique(losses[-1])) == MEMBERS
    assert report.member_accuracy.shape == (MEMBERS,)
    assert ((report.member_accuracy > 0.7) & (report.member_accuracy <= 1)).all()
    assert 0.8 < report.ensemble_accuracy <= 1
    assert report.probabilities.shape == (MEMBERS, 450, 10)
    assert 0 < report.training.seconds_per_step < report.training.seconds_to_compile


def test_states_go_their_own_ways(digits, report):
    """Statistics and keys have moved, a set for each member; the scale is the one that was given."""
    trained = report.training.ensemble
    fresh = digits.make_ensemble(MEMBERS, trained.scale.value, jr.key(0))
    before = ps.states(fresh, (ps.BatchState, ps.RandomState))
    assert len(before) == 2 * (1 + 1)
    for path, state in before.items():
        for old, new in zip(comparable(state), comparable(ps.states(trained)[path]), strict=True):
            if new.ndim == 1:  # how many minibatches there have been
                assert new.tolist() == [STEPS] * MEMBERS
                continue
            assert len(np.unique(new, axis=0)) == len(new) == MEMBERS
            assert (new != old).any(axis=1).all()
    assert trained.scale.value.shape == ()
    assert trained.scale.value == 1 / 16


def test_members_do_not_see_each_other(digits, optim, data):
    """A member that is trained alone goes exactly where it goes within the ensemble."""

    def trained(ensemble, data):
        opt_state = optim.init(ps.trainable(ensemble))
        for images, labels in zip(*data, strict=True):
            ensemble, opt_state, losses = digits.train_step(ensemble, opt_state, optim, images, labels)
        return ensemble, losses

    start = digits.make_ensemble(MEMBERS, jnp.float32(1 / 16), jr.key(0))
    ensemble, losses = trained(start, data)
    alone, loss = trained(member(start, 1), [xs[:, 1:2] for xs in data])
    assert jax.tree.structure(ensemble) == jax.tree.structure(start)
    for ours, theirs in zip(comparable(alone), comparable(member(ensemble, 1)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loss, losses[1:2], rtol=1e-4)


def test_a_step_by_hand(digits, optim, data):
    """A step of one member is that of raw JAX, its dropout masks and its statistics included."""
    images, labels = (xs[0, :1] for xs in data)
    ensemble = member(digits.make_ensemble(MEMBERS, jnp.float32(1 / 16), jr.key(0)), 0)
    after, _, losses = digits.train_step(
        ensemble, optim.init(ps.trainable(ensemble)), optim, images, labels
    )
    *hidden, readout = ensemble.layers.layers
    parameters = (
        [(b.layers[0].weight, b.layers[1].layer.weight, b.layers[1].layer.bias) for b in hidden],
        (readout.weight, readout.bias),
    )

    def mask(key):
        # A mapping over 8 images splits a key into 9, and a draw splits one into two; the first stays.
        keys = jr.split(key, 9)[1:]
        return jax.vmap(lambda key: jr.bernoulli(jr.split(key)[1], 0.8, (digits.HIDDEN,)))(keys)

    @jax.jit
    def by_hand(parameters, keys):
        x, moments = images[0] / 16, []
        for (weight, scale, bias), kept in zip(parameters[0], map(mask, keys), strict=True):
            x = x @ weight[0].T
            mean, variance = x.mean(axis=0), x.var(axis=0)
            moments.append((mean, variance))
            x = scale[0] * (x - mean) / jnp.sqrt(variance + 1e-5) + bias[0]
            x = jnp.where(kept, jax.nn.relu(x) / 0.8, 0)
        weight, bias = parameters[1]
        chances = jax.nn.log_softmax(x @ weight[0].T + bias[0])
        return -chances[jnp.arange(8), labels[0]].mean(), moments

    keys = [block.layers[3].rng.value[0] for block in hidden]
    (value, moments), gradient = jax.value_and_grad(by_hand, has_aux=True)(parameters, keys)
    np.testing.assert_allclose(losses, [value], rtol=1e-5)
    expected = jax.tree.map(lambda old, slope: old - 0.1 * slope, parameters, gradient)
    found, expected = jax.tree.leaves(ps.trainable(after)), jax.tree.leaves(expected)
    assert len(found) == len(expected) == 8
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for block, (mean, variance) in zip(after.layers.layers, moments, strict=False):
        kept = block.layers[1].state.value["BatchNorm.batch_state_index"]
        np.testing.assert_allclose(kept[0][0], 0.1 * mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(kept[1][0], 0.9 + 0.1 * variance, rtol=1e-4)


def test_inference_is_repeatable(digits, report):
    """Predicting drops nothing, moves no statistics, and does not depend on the other images."""
    images = np.linspace(0, 16, 5 * 64).reshape(5, 64)
    once, twice = (digits.predict(report.training.ensemble, images) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(once.sum(axis=-1), 1, rtol=1e-5)
    part = digits.predict(report.training.ensemble, images[:2])
    np.testing.assert_allclose(part, once[:, :2], rtol=1e-4, atol=1e-6)


def test_the_picture_is_drawn(report, picture):
    """The file is a picture with curves on the left and digits on the right."""
    image = imread(picture)[..., :3]
    height, width, _ = image.shape
    assert height > 500
    assert width > 1000
    curves, images = image[:, : int(0.48 * width)], image[:, int(0.52 * width) :]
    blue = curves[..., 2] - curves[..., 0]
    assert (blue > 0.2).sum() > 500
    assert 0.05 < (images.mean(axis=-1) < 0.5).mean() < 0.6


def test_the_table_has_everyone(digits, report):
    """A row for each member, then the ensemble and the time; all rows of the same width."""
    lines = digits.table(report).splitlines()
    for i, accuracy in enumerate(report.member_accuracy, 1):
        row = next(line for line in lines if line.startswith(f"member {i:>2} "))
        assert f" {100 * accuracy:.2f}% " in row
    assert any(
        line.startswith("ensemble") and line.endswith(f" {100 * report.ensemble_accuracy:.2f}%")
        for line in lines
    )
    assert any(line.startswith("time per step") and line.endswith(" ms") for line in lines)
    assert max(map(len, lines)) == len(lines[1])


def test_the_most_divided_votes_come_first(digits):
    """Disputes are ordered by how divided the votes are, and told in words that count every vote."""
    votes = np.zeros((3, 10), int)
    votes[0, 4] = 16
    votes[1, [8, 3]] = 9, 7
    votes[2, [5, 1, 2, 7]] = 6, 5, 3, 2
    ballots = np.array([np.repeat(np.arange(10), v) for v in votes]).T
    np.testing.assert_array_equal(digits.plotting.count_votes(ballots), votes)
    assert digits.plotting.most_disputed(votes).tolist() == [2, 1, 0]
    assert [digits.plotting.in_words(v) for v in votes] == [
        "16 say 4",
        "9 say 8, 7 say 3",
        "6 say 5, 5 say 1, 5 other",
    ]


@pytest.mark.once
def test_it_runs_from_any_folder(tmp_path):
    """It finds the helper that draws wherever the command is given."""
    command = [sys.executable, EXAMPLES / "digits_ensemble.py", "--help"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.startswith("usage: digits_ensemble.py [-h] [--steps STEPS] [--members MEMBERS]")


@pytest.mark.parametrize("options", [["--steps", "1"], ["--members", "0"]])
def test_too_little_to_do_is_refused(digits, options, capsys):
    """Options that leave nothing to train or to time end with a message, before any work."""
    with pytest.raises(SystemExit):
        digits.main(options)
    message = "error: at least two steps (the first one compiles) and one member are needed\n"
    assert capsys.readouterr().err.endswith(message)
