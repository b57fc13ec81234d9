"""The pictures of the examples say what the data say. The data are made up: nothing is trained."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook


pytestmark = pytest.mark.once


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def plotting():
    """The helper that draws, with its annotations checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        with install_import_hook("plotting", "beartype.beartype"):
            yield importlib.import_module("plotting")
    del sys.modules["plotting"]


@pytest.fixture
def saved(plotting, monkeypatch):
    """The figures that are saved, with their paths. None of them is written."""
    found = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: found.append(figure))
    return found


def legend(ax):
    """The words of a legend."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_poles(plotting, saved):
    """Both panels have a legend, curves differ in style too, and titles have the numbers of the end."""
    remembering = np.array([[1, 2], [190, 200], [200, 200]], np.float32)
    forgetting = np.array([[1, 2], [40, 60], [50, 70]], np.float32)
    plotting.draw_poles(Path("p.png"), remembering, forgetting, 200, 0.03, 2)
    (figure,) = saved
    left, right = figure.axes
    assert legend(left) == ["with memory", "without memory"]
    assert legend(right) == ["with memory", "without memory", "untrained"]
    assert len({line.get_linestyle() for line in right.lines}) == 3
    assert left.get_title(loc="left") == "Learning: 198 of 200 steps, without memory 55"
    expected = "Once trained: 75% are up after 6 s, without memory 0%"
    assert right.get_title(loc="left") == expected
    assert right.lines[0].get_ydata()[-1] == 0.75


def test_rates(plotting, saved):
    """No line joins draws, in whatever order they come; titles go from the weakest to the strongest."""
    inhibition = np.array([7.0, 5.0, 6.0], np.float32)
    rates = np.array([[10, 12], [20, 22], [15, 17]], float)
    plotting.draw_rates(Path("r.png"), inhibition, rates, rates / 100)
    (figure,) = saved
    left, right = figure.axes
    assert legend(left) == ["a trial", "mean ± standard deviation of 2 trials"]
    assert left.get_title(loc="left") == "Firing rate: from 21.0 to 11.0 Hz"
    assert right.get_title(loc="left") == "Irregularity: from 0.21 to 0.11"
    assert "5.0 to 7.0 times" in figure.get_suptitle()
    assert {line.get_linestyle() for ax in figure.axes for line in ax.lines} == {"None"}


def test_raster(plotting, saved):
    """The title has the rate of all trials, also of those not shown; a single trial has a title too."""
    spikes = np.zeros((200, 4, 5), bool)
    spikes[::20, :2], spikes[5::10, 2:] = True, True
    plotting.draw_raster(Path("r.png"), spikes, 0.5, 4)
    plotting.draw_raster(Path("r.png"), spikes[:, :1], 0.5, 4)
    many, one = saved
    assert many.get_suptitle().startswith("4 trials of one network: 150.0 ± 50.0 Hz, with spikes at")
    assert one.get_suptitle() == "A trial of a network: 100.0 Hz"
    assert [len(figure.axes) for figure in saved] == [4, 2]
    names = [label.get_text() for label in many.axes[0].get_yticklabels()]
    assert names == ["4 excitatory", "1 inhibitory"]


def test_digits(plotting, saved):
    """Titles count what is right, for one member and for the ensemble; what is wrong is in bold."""
    labels = np.arange(10)
    ballots = np.tile(labels, (3, 1))
    ballots[:2, 0] = 9
    images, losses = np.zeros((10, 64), np.float32), np.linspace(2, 1, 11)[:, None] * np.ones(3)
    plotting.draw_digits(Path("d.png"), losses, np.eye(10)[ballots], images, labels, 1)
    (figure,) = saved
    found = "on average one reads 93.3% of the test digits, the ensemble 90.0%"
    assert figure.get_suptitle() == f"3 networks trained together: {found}"
    left, right = figure.subfigs
    assert left.axes[0].get_title(loc="left") == "Training loss: from 2.00 to 1.00"
    assert right.get_suptitle() == "The 9 most disputed digits: the ensemble gets 8 right"
    weights = {ax.get_title(): ax.title.get_weight() for ax in right.axes}
    assert len(weights) == 9
    assert [title for title, weight in weights.items() if weight == "bold"] == ["0, read as 9"]
    assert right.axes[0].get_xlabel() == "2 say 9, 1 say 0"
