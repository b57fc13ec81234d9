"""`spiking_ensemble.py` runs and does what it says. It is run short here, not at full length."""

import dataclasses
import importlib
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import install_import_hook
from matplotlib.image import imread

import pstate as ps


pytestmark = pytest.mark.once


EXAMPLES = Path(__file__).parents[2] / "examples"
DRAWS, TRIALS, MILLISECONDS = 3, 4, 300
DRAW, TRIAL, SHORT = 1, 2, 30  # what is simulated by hand, and for how many milliseconds


@pytest.fixture(scope="module")
def spiking():
    """The example as a module. Its annotations, shapes and kinds of states included, are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        with install_import_hook(("spiking_ensemble", "plotting"), "beartype.beartype"):
            yield importlib.import_module("spiking_ensemble")
    del sys.modules["spiking_ensemble"], sys.modules["plotting"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the short run draws: a folder that it has to make."""
    return tmp_path_factory.mktemp("spiking") / "pictures"


@pytest.fixture(scope="module")
def report(spiking, folder):
    """What a short run of `main` returns."""
    options = {"draws": DRAWS, "trials": TRIALS, "milliseconds": MILLISECONDS, "out": folder}
    return spiking.main([text for name, x in options.items() for text in (f"--{name}", str(x))])


@pytest.fixture(scope="module")
def make(spiking):
    """Makes the ensemble that the tests simulate, always the same."""
    return lambda: spiking.make_ensemble(jnp.linspace(5, 7, DRAWS), TRIALS, jr.key(1))


@pytest.fixture(scope="module")
def simulated(spiking, make):
    """An ensemble, and its spikes in the first milliseconds."""
    ensemble = make()
    spikes, _ = ps.pure(spiking.simulate_block)(ensemble)
    return ensemble, np.asarray(spikes[: round(SHORT / spiking.STEP)])


def the_same(a, b):
    """Whether spikes agree, but for a few: rounding can move a voltage over the threshold."""
    return a.shape == b.shape and a.sum() > 100 and (a != b).sum() <= 0.01 * a.sum()


def keys_of(ensemble, steps):
    """The key that `TRIAL` of `DRAW` gets in each step: the mapping over trials splits the draw's."""

    def step(key, _):
        keys = jr.split(key, TRIALS + 1)
        return keys[0], keys[1 + TRIAL]

    return jax.lax.scan(step, ensemble.rng.value[DRAW], length=steps)[1]


def test_it_fires(spiking, report):
    """Neurons fire at plausible rates, never while refractory, and less with stronger inhibition."""
    spikes = report.simulation.spikes
    steps = round(MILLISECONDS / spiking.STEP)
    assert spikes.shape == (steps, DRAWS, TRIALS, spiking.NEURONS)
    assert report.inhibition.shape == (DRAWS,)
    assert (np.diff(report.inhibition) > 0).all()
    assert report.inhibition.min() >= spiking.WEAKEST
    assert report.inhibition.max() <= spiking.STRONGEST
    assert report.rates.shape == report.irregularity.shape == (DRAWS, TRIALS)
    assert ((report.rates > 5) & (report.rates < 60)).all()
    assert (np.diff(report.rates.mean(axis=1)) < 0).all()
    assert ((report.irregularity > 0.2) & (report.irregularity < 1.2)).all()
    assert spikes.any(axis=0).mean() > 0.9
    step, *train = np.nonzero(np.moveaxis(spikes, 0, -1))[::-1]
    same = np.all([np.diff(x) == 0 for x in train], axis=0)
    assert np.diff(step)[same].min() * spiking.STEP > spiking.REFRACTORY_TIME
    assert 0 < report.simulation.seconds_per_block < report.simulation.seconds_to_compile


def test_draws_and_trials_differ(report):
    """No two trials spike alike, in one draw or in two."""
    trains = np.moveaxis(report.simulation.spikes, 0, -1).reshape(DRAWS * TRIALS, -1)
    assert len(np.unique(trains, axis=0)) == DRAWS * TRIALS
    together = np.corrcoef(trains)[~np.eye(DRAWS * TRIALS, dtype=bool)]
    assert np.abs(together).max() < 0.1


def test_states_have_their_layouts(spiking, report):
    """Each kind has its axes, before and after; the parameters are those it began with."""
    n = spiking.NEURONS
    shapes = {
        "inhibition": (DRAWS,),
        "weights": (DRAWS, n, n),
        "rng": (DRAWS,),
        "voltage": (TRIALS, DRAWS, n),
        "refractory": (TRIALS, DRAWS, n),
        "trace": (DRAWS, n, TRIALS),
    }
    after = report.simulation.ensemble
    before = spiking.make_ensemble(after.inhibition.value, TRIALS, jr.split(jr.key(0))[1])
    for ensemble in (before, after):
        assert {name: getattr(ensemble, name).value.shape for name in shapes} == shapes
    np.testing.assert_array_equal(before.weights.value, after.weights.value)
    assert len(np.unique(np.asarray(before.voltage.value).reshape(-1, n), axis=0)) == DRAWS * TRIALS
    assert (before.voltage.value != after.voltage.value).mean() > 0.9


def test_neurons_are_wired_as_said(spiking, make):
    """Each neuron hears a quarter of each kind; inhibition is as strong as drawn; wirings differ."""
    ensemble = make()
    weights = np.asarray(ensemble.weights.value)
    excitation, inhibition = np.split(weights, [spiking.EXCITATORY], axis=2)
    assert ((excitation > 0).sum(axis=2) == spiking.EXCITATORY // 4).all()
    assert ((inhibition < 0).sum(axis=2) == spiking.INHIBITORY // 4).all()
    assert set(np.unique(excitation)) == {0, np.float32(spiking.KICK)}
    strength = -inhibition.min(axis=(1, 2)) / spiking.KICK
    np.testing.assert_allclose(strength, ensemble.inhibition.value, rtol=1e-6)
    assert len(np.unique(excitation > 0, axis=0)) == DRAWS


def test_a_trial_by_hand(spiking, simulated):
    """A simulation in NumPy of one trial of one draw, with the same input, gives the same spikes."""
    ensemble, spikes = simulated
    lam = spiking.INPUT_RATE * spiking.STEP / 1000
    draw = lambda key: jr.poisson(jr.split(key)[1], lam, (spiking.NEURONS,))
    counts = np.asarray(jax.lax.map(draw, keys_of(ensemble, len(spikes))))
    weights = np.asarray(ensemble.weights.value[DRAW], float)
    voltage = np.asarray(ensemble.voltage.value[TRIAL, DRAW], float)
    last_spike = np.full(len(voltage), -np.inf)
    trace = np.zeros(len(voltage))
    by_hand = np.zeros((len(spikes), len(voltage)), bool)
    for i, count in enumerate(counts):
        # The current tends to its own value and the voltage with it; see the example for the formula.
        current = weights @ trace * spiking.MEMBRANE_TIME / spiking.SYNAPSE_TIME
        voltage = current + (voltage - current) * math.exp(-spiking.STEP / spiking.MEMBRANE_TIME)
        voltage += spiking.KICK * count
        refractory = (i - last_spike) * spiking.STEP <= spiking.REFRACTORY_TIME
        by_hand[i] = ~refractory & (voltage >= spiking.THRESHOLD)
        voltage[refractory | by_hand[i]] = spiking.RESET
        last_spike[by_hand[i]] = i
        trace = trace * math.exp(-spiking.STEP / spiking.SYNAPSE_TIME) + by_hand[i]
    assert the_same(by_hand, spikes[:, DRAW, TRIAL])


def test_the_layout_does_not_matter(spiking, make, simulated, monkeypatch):
    """With other axes in `TRIALS` and `DRAWS`, and nothing else changed, the spikes are the same."""
    monkeypatch.setattr(spiking, "TRIALS", {1: spiking.Membrane, 0: spiking.Trace})
    monkeypatch.setattr(spiking, "DRAWS", {2: spiking.Membrane, 1: spiking.Trace})
    monkeypatch.setattr(spiking, "BLOCK", SHORT)
    _, spikes = simulated
    ensemble = make()
    assert ensemble.voltage.value.shape == (spiking.NEURONS, TRIALS, DRAWS)
    assert ensemble.trace.value.shape == (TRIALS, DRAWS, spiking.NEURONS)
    ours, after = ps.pure(spiking.simulate_block)(ensemble)
    assert the_same(np.asarray(ours), spikes)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, ensemble)


def test_a_spike_lifts_the_voltage_as_said(spiking, monkeypatch):
    """Over time a spike of the network adds what `KICK` added at once would; the voltage then decays."""
    monkeypatch.setattr(ps.RandomState, "poisson", lambda rng, lam, size: jnp.zeros(size))
    network = spiking.Network(jnp.float32(5), jr.key(0)).init_all_states()
    zeros = jnp.zeros(spiking.NEURONS)
    network = ps.update(network, {("voltage",): zeros, ("trace",): zeros.at[0].set(1.0)})

    def step(network, _):
        _, network = ps.pure(network)()
        return network, network.voltage.value

    _, voltage = jax.jit(lambda network: jax.lax.scan(step, network, length=400))(network)
    area = np.asarray(voltage).sum(axis=0) * spiking.STEP
    expected = spiking.MEMBRANE_TIME * np.asarray(network.weights.value)[:, 0]
    np.testing.assert_allclose(area, expected, rtol=0.06)
    assert np.abs(voltage[-1]).max() < 1e-3


def test_irregularity(spiking):
    """It is 0 for a clock and near 1 for a Poisson process; neurons with few spikes do not count."""
    clock = np.zeros((1000, 3), bool)
    clock[::20] = True
    poisson = np.random.default_rng(0).random((20000, 50)) < 0.01
    silent = np.zeros((1000, 2), bool)
    silent[[3, 50]] = True
    assert spiking.irregularity(clock) == 0
    assert spiking.irregularity(np.hstack([clock, silent])) == 0
    assert 0.95 < spiking.irregularity(poisson) < 1.05
    assert math.isnan(spiking.irregularity(silent))


def test_the_pictures_are_drawn(report, folder):
    """The raster has points of both colours in each panel; the other picture has points and a mean."""
    raster, rates = (imread(folder / f"spiking_{name}.png")[..., :3] for name in ("raster", "rates"))
    for image in (raster, rates):
        height, width, _ = image.shape
        assert height > 500
        assert width > 1000
        assert 0.01 < (image.min(axis=-1) < 0.9).mean() < 0.4
    for panel in np.split(raster[: 3 * (len(raster) // 4)], 3):
        assert (panel[..., 2] - panel[..., 0] > 0.2).sum() > 500
        assert (panel[..., 0] - panel[..., 2] > 0.2).sum() > 100
    for panel in np.split(rates[:, : 2 * (rates.shape[1] // 2)], 2, axis=1):
        assert (panel[..., 2] - panel[..., 0] > 0.1).sum() > 100
        assert (panel.max(axis=-1) < 0.1).sum() > 500


def test_correlation(spiking):
    """It is 1 for two trials that spike alike, and next to nothing for two that are independent."""
    spikes = np.random.default_rng(0).random((500, 2, 40)) < 0.05
    assert abs(spiking.plotting.correlation(spikes)) < 0.03
    assert spiking.plotting.correlation(spikes[:, [0, 0]]) == pytest.approx(1)


def test_the_table_has_everyone(spiking, report):
    """A row for each draw, then the time; all rows of the same width."""
    lines = spiking.table(report).splitlines()
    for i in range(DRAWS):
        row = next(line for line in lines if line.startswith(f"draw {i + 1:>2} "))
        assert f" {report.inhibition[i]:.2f} " in row
        assert f" {report.rates[i].mean():.1f} Hz" in row
        assert f" {report.rates[i].std():.1f} Hz" in row
        assert row.endswith(f" {report.irregularity[i].mean():.2f}")
    times = [line for line in lines if line.endswith(" s")]
    assert times[0].startswith("time for 100 ms of 3 x 4 networks ")
    assert {len(line) for line in lines} == {len(lines[1])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draws", "0"], "at least one draw and one trial are needed"),
        (["--trials", "0"], "at least one draw and one trial are needed"),
        (
            ["--milliseconds", "150"],
            "the time is simulated in blocks: --milliseconds is a multiple of 100",
        ),
    ],
)
def test_too_little_to_do_is_refused(spiking, options, message, capsys):
    """Options that leave nothing to simulate, or part of a block, end with a message."""
    with pytest.raises(SystemExit):
        spiking.main(options)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_one_of_each_is_enough(spiking, report, tmp_path):
    """One trial of one draw is measured and drawn as well."""
    ensemble = ps.update(report.simulation.ensemble, {("inhibition",): report.inhibition[:1]})
    spikes = report.simulation.spikes[:, :1, :1]
    one = spiking.evaluate(dataclasses.replace(report.simulation, ensemble=ensemble, spikes=spikes))
    raster, rates = tmp_path / "raster.png", tmp_path / "rates.png"
    spiking.plotting.draw_raster(raster, spikes[:, 0], spiking.STEP, spiking.EXCITATORY)
    spiking.plotting.draw_rates(rates, one.inhibition, one.rates, one.irregularity)
    assert len(list(tmp_path.iterdir())) == 2
    assert one.rates == report.rates[0, 0]
    assert one.irregularity == report.irregularity[0, 0]
    assert "time for 100 ms of 1 x 1 networks" in spiking.table(one)
