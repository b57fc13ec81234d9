"""The examples run and do what they say. `digits_ensemble.py` is run short here, not at full length."""

import importlib
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
        with install_import_hook("digits_ensemble", "beartype.beartype"):
            yield importlib.import_module("digits_ensemble")
    del sys.modules["digits_ensemble"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Where the short run draws."""
    return tmp_path_factory.mktemp("digits") / "picture.png"


@pytest.fixture(scope="module")
def report(digits, picture):
    """What a short run of `main` returns."""
    return digits.main(["--steps", str(STEPS), "--members", str(MEMBERS), "--out", str(picture)])


def member(ensemble, i):
    """An ensemble of member `i` alone. The shared scale is the only array without an axis of members."""
    return jax.tree.map(lambda x: x[i : i + 1] if eqx.is_array(x) and x.ndim else x, ensemble)


def comparable(tree):
    """The arrays of a tree, with the data of keys in the place of keys."""
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
    assert (report.votes.sum(axis=1) == MEMBERS).all()
    assert 0 < report.training.seconds_per_step < report.training.seconds_to_compile


def test_states_go_their_own_ways(digits, report):
    """Statistics and keys have moved, a set for each member; the scale is the one that was given."""
    trained = report.training.ensemble
    fresh = digits.make_ensemble(MEMBERS, trained.scale.value, jr.key(0))
    before = ps.states(fresh, (ps.BatchState, ps.RandomState))
    assert len(before) == 2 * (2 + 1)
    for path, state in before.items():
        (old,), (new,) = comparable(state), comparable(ps.states(trained)[path])
        assert len(np.unique(new, axis=0)) == len(new) == MEMBERS
        assert (new != old).any(axis=1).all()
    assert trained.scale.value.shape == ()
    assert trained.scale.value == 1 / 16


def test_members_do_not_see_each_other(digits):
    """A member that is trained alone goes exactly where it goes within the ensemble."""
    images = jr.uniform(jr.key(1), (50, 64), maxval=16.0)
    labels = jr.randint(jr.key(2), (50,), 0, 10)
    index = jr.randint(jr.key(3), (MEMBERS, 8), 0, 50)
    optim = optax.adamw(1e-2)

    def trained(ensemble, index):
        opt_state = optim.init(ps.trainable(ensemble))
        for _ in range(2):
            ensemble, opt_state, losses = digits.train_step(
                ensemble, opt_state, optim, images, labels, index
            )
        return ensemble, losses

    start = digits.make_ensemble(MEMBERS, jnp.float32(1 / 16), jr.key(0))
    ensemble, losses = trained(start, index)
    alone, loss = trained(member(start, 1), index[1:2])
    assert jax.tree.structure(ensemble) == jax.tree.structure(start)
    for ours, theirs in zip(comparable(alone), comparable(member(ensemble, 1)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loss, losses[1:2], rtol=1e-4)


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
    curves, images = image[:, : int(0.4 * width)], image[:, int(0.45 * width) :]
    blue = curves[..., 2] - curves[..., 0]
    assert (blue > 0.2).sum() > 500
    assert 0.05 < (images.mean(axis=-1) < 0.5).mean() < 0.6


def test_the_table_has_everyone(digits, report):
    """A row for each member, then the ensemble and the time; all rows of the same width."""
    lines = digits.table(report).splitlines()
    for i, accuracy in enumerate(report.member_accuracy, 1):
        row = next(line for line in lines if line.startswith(f"member {i:>2} "))
        assert f"{100 * accuracy:.2f} %" in row
    assert any(
        line.startswith("ensemble") and f"{100 * report.ensemble_accuracy:.2f} %" in line
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
    assert digits.most_disputed(votes).tolist() == [2, 1, 0]
    assert [digits.in_words(v) for v in votes] == [
        "16 say 4",
        "9 say 8, 7 say 3",
        "6 say 5, 5 say 1, 5 other",
    ]


@pytest.mark.parametrize("options", [["--steps", "1"], ["--members", "0"]])
def test_too_little_to_do_is_refused(digits, options, capsys):
    """Options that leave nothing to train or to time end with a message, before any work."""
    with pytest.raises(SystemExit):
        digits.main(options)
    message = "error: at least two steps (the first one compiles) and one member are needed\n"
    assert capsys.readouterr().err.endswith(message)
