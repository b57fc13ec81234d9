"""`minimal.py` runs and does what it says."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread

import pstate as ps


pytestmark = pytest.mark.once


EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the example is run."""
    return tmp_path_factory.mktemp("minimal")


@pytest.fixture(scope="module")
def names(folder):
    """The names of the example after it has run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MPLBACKEND", "Agg")
        yield runpy.run_path(str(EXAMPLE))
        plt.close("all")


@pytest.mark.slow
def test_it_learns_to_remember(names):
    """The output is on the side of the last pulse wherever there was one, on sequences never seen."""
    ys = names["ys"]
    assert jnp.mean((names["output"] - ys) ** 2) < 0.05
    right = jnp.sign(names["output"]) == ys
    assert right[ys != 0].mean() > 0.99
    assert set(np.unique(ys)) == {-1.0, 0.0, 1.0}


@pytest.mark.slow
def test_targets_are_the_last_pulses(names):
    """The targets are those of a loop in Python."""
    xs, ys = names["pulses"](jr.key(7))
    held = np.zeros_like(xs)
    for t in range(xs.shape[1]):
        held[:, t] = np.where(xs[:, t] != 0, xs[:, t], held[:, t - 1] if t else 0)
    np.testing.assert_array_equal(ys, held)


@pytest.mark.slow
def test_what_was_loaded_continues(names, folder):
    """Saved and loaded in between, the sequence goes as in one call: hidden states were in the file."""
    model = ps.update(names["model"], ps.states(names["fresh"], ps.HiddenState))
    whole, _ = names["predict"](model, names["xs"])
    np.testing.assert_allclose(names["output"], whole, rtol=1e-4, atol=1e-5)
    restarted, _ = names["predict"](model, names["xs"][:, 30:])
    assert abs(restarted - names["output"][:, 30:]).max() > 0.5
    assert (folder / "minimal.eqx").exists()


@pytest.mark.slow
def test_the_weights_are_shared(names):
    """There is a hidden state for each sequence, and one set of weights, which has moved."""
    model, fresh = names["model"], names["fresh"]
    assert model.hidden.value.shape == (16, 16)
    assert model.cell.weight_hh.shape == fresh.cell.weight_hh.shape == (48, 16)
    assert (model.cell.weight_hh != fresh.cell.weight_hh).any()


@pytest.mark.slow
def test_the_picture_is_drawn(names, folder):
    """The picture has grey targets, and coloured outputs."""
    image = imread(folder / "minimal.png")[..., :3]
    assert image.shape[0] > 300
    assert (np.ptp(image, axis=-1) > 0.3).sum() > 1000


def test_it_is_short():
    """The first example that people see fits on a screen."""
    assert 40 <= len(EXAMPLE.read_text().splitlines()) <= 60
