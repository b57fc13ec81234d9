"""An ensemble of spiking networks, mapped over draws of their parameters and over trials.

The network below is written for one draw, one trial and one time step: excitatory and inhibitory leaky
integrate-and-fire neurons, wired at random, each with Poisson input of its own. Its states have kinds,
and two nested `ps.vmap2` say by kind along which axis a state is mapped:

| in the network | is | over draws and trials |
|---|---|---|
| strength of inhibition, weights | `ps.ParamState` | (draws, ...): the trials of a draw share them |
| voltage, time left of refractoriness | `Membrane` | (trials, draws, neurons) |
| spike trace | `Trace` | (draws, neurons, trials) |
| stream of Poisson input | `ps.RandomState` | (draws,): one key for a draw, which its trials split |

The layouts are those in which one reads the states: `voltage.value[trial]` is one trial of all draws,
and `trace.value[draw]` a matrix with a column for each trial, which the weights of the draw multiply. To
choose others, change `TRIALS` and `DRAWS` and nothing else: the spikes stay the same, up to rounding.
JAX transposes in each step what does not fit together, which took up to a third of the time when it was
measured.

    pip install -e ".[examples]"
    python examples/spiking_ensemble.py --draws 10 --trials 12 --milliseconds 1000 --out .

prints how fast and how irregularly each draw fires, and draws `spiking_raster.png`, with the spikes of a
few trials, and `spiking_rates.png`, with the firing rate against the strength of inhibition.

Sources: for the neuron and its input, Gerstner, Kistler, Naud and Paninski, "Neuronal dynamics", 2014,
sections 1.3 and 8.2; for the network, Brunel, "Dynamics of sparsely connected networks of excitatory and
inhibitory spiking neurons", 2000. It is smaller here, with fewer and stronger synapses, whose currents
decay where Brunel's come as pulses with a delay.
"""

import argparse
import dataclasses
import functools as ft
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import plotting
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from tqdm import tqdm

import pstate as ps


STEP = 0.5  # ms
BLOCK = 100  # ms that one compiled call simulates

EXCITATORY, INHIBITORY = 320, 80
NEURONS = EXCITATORY + INHIBITORY
HEARD = 0.25  # part of the excitatory, and of the inhibitory neurons that a neuron has synapses from

MEMBRANE_TIME = 20.0  # ms
SYNAPSE_TIME = 5.0  # ms
REFRACTORY_TIME = 2.0  # ms
THRESHOLD, RESET = 20.0, 10.0  # mV above rest
KICK = 0.6  # mV by which a spike of the input, or of an excitatory neuron, lifts the voltage

# The input, in spikes per second: three tenths more than would hold a lone neuron at its threshold.
INPUT_RATE = 1.3 * 1e3 * THRESHOLD / (KICK * MEMBRANE_TIME)  # Hz

# An inhibitory spike counts so many times as much as an excitatory one. A neuron hears four times fewer
# inhibitory neurons, so inhibition prevails above 4.
WEAKEST, STRONGEST = 4.5, 8.0


class Membrane(ps.HiddenState):
    """What a membrane remembers from step to step."""


class Trace(ps.ShortTermState):
    """What synapses remember of a neuron's spikes."""


# Where the states of a draw have their trials, and where those of the ensemble have their draws. Draws
# are mapped outside, so they go first: membranes (trials, draws, neurons) lose axis 1 to the draws, and
# then (trials, neurons) lose axis 0 to the trials. States that are not named here go with the network as
# an argument: along axis 0 over draws, and shared by trials, but for the random stream, which is split.
TRIALS = {0: Membrane, 1: Trace}
DRAWS = {1: Membrane, 0: Trace}


# The network: one draw, one trial, one time step -----------------------------------------------------


class Network(ps.nn.Module):
    """Leaky integrate-and-fire neurons, the excitatory ones first."""

    inhibition: ps.ParamState[Float[Array, ""]]
    weights: ps.ParamState[Float[Array, "neurons neurons"]]  # mV, to a row's neuron from a column's
    rng: ps.RandomState
    voltage: Membrane  # mV above rest
    refractory: Membrane  # ms
    trace: Trace

    def __init__(self, inhibition: Float[Array, ""], key: PRNGKeyArray):
        key1, key2, key3 = jr.split(key, 3)
        excitation, inhibitory = synapses(EXCITATORY, key1), synapses(INHIBITORY, key2)
        self.inhibition = ps.ParamState(inhibition)
        self.weights = ps.ParamState(KICK * jnp.hstack([excitation, -inhibition * inhibitory]))
        self.rng = ps.RandomState(key3)
        # Every trial has its own, which `init_state` makes.
        self.voltage, self.refractory, self.trace = Membrane(), Membrane(), Trace()

    def init_state(self) -> None:
        """Start a trial: each voltage somewhere below the threshold, and no spike before."""
        self.voltage.value = self.rng.uniform(0, THRESHOLD, NEURONS)
        self.refractory.value = jnp.zeros(NEURONS)
        self.trace.value = jnp.zeros(NEURONS)

    def __call__(self) -> Bool[Array, " neurons"]:
        """Advance by a time step and say which neurons spike.

        The voltage follows `MEMBRANE_TIME * dV/dt = -V + current` (in mV, the resistance included), and
        is solved exactly for a current that is constant within a step. A spike of the input comes as a
        pulse, one of the network as a current that decays with `SYNAPSE_TIME` and adds up to as much.
        """
        current = MEMBRANE_TIME / SYNAPSE_TIME * (self.weights.value @ self.trace.value)
        kicks = KICK * self.rng.poisson(INPUT_RATE * 1e-3 * STEP, NEURONS)
        leak = math.exp(-STEP / MEMBRANE_TIME)
        voltage = leak * self.voltage.value + (1 - leak) * current + kicks
        voltage = jnp.where(self.refractory.value > 0, RESET, voltage)
        spikes = voltage >= THRESHOLD
        self.voltage.value = jnp.where(spikes, RESET, voltage)
        self.refractory.value = jnp.where(
            spikes, REFRACTORY_TIME, jnp.maximum(self.refractory.value - STEP, 0)
        )
        self.trace.value = math.exp(-STEP / SYNAPSE_TIME) * self.trace.value + spikes
        return spikes


def synapses(sources: int, key: PRNGKeyArray) -> Bool[Array, "neurons sources"]:
    """Which sources each neuron has synapses from: always as many, drawn at random."""
    orders = jnp.argsort(jr.uniform(key, (NEURONS, sources)), axis=1)
    return orders < HEARD * sources


# Trials and draws -----------------------------------------------------------------------------------


def draw_inhibition(draws: int, key: PRNGKeyArray) -> Float[Array, " draws"]:
    """Strengths from the weakest to the strongest: one from each of as many equal parts of the range."""
    part = (jnp.arange(draws) + jr.uniform(key, (draws,))) / draws
    return WEAKEST + (STRONGEST - WEAKEST) * part


def make_draw(inhibition: Float[Array, ""], key: PRNGKeyArray, trials: int) -> Network:
    """A `Network` that is about to begin its trials: it has a membrane and a trace for each of them."""
    network = Network(inhibition, key)
    network, _ = ps.vmap2_new_states(network, {}, axis_size=trials, state_out_axes=TRIALS)
    return network


def make_ensemble(inhibition: Float[Array, " draws"], trials: int, key: PRNGKeyArray) -> Network:
    """A `Network` for each strength of inhibition, about to begin its trials."""
    make_draws = ps.vmap2(make_draw, in_axes=(0, 0, None), state_out_axes=DRAWS)
    return make_draws(inhibition, jr.split(key, len(inhibition)), trials)


@ps.jit
def simulate_block(ensemble: Network) -> Bool[Array, "steps draws trials neurons"]:
    """Advance all trials of all draws by `BLOCK` milliseconds, and return their spikes."""
    one_draw = ps.vmap2(Network.__call__, in_axes=None, state_in_axes=TRIALS)
    all_draws = ps.vmap2(one_draw, state_in_axes=DRAWS)
    return ps.for_loop(ft.partial(all_draws, ensemble), length=round(BLOCK / STEP))


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What a simulation gives."""

    ensemble: Network
    spikes: Bool[np.ndarray, "steps draws trials neurons"]
    seconds_to_compile: float
    seconds_per_block: float


def simulate(ensemble: Network, blocks: int) -> Simulation:
    """Simulate so many blocks, after one that compiles and lets the networks forget how they began."""
    advance = ps.pure(simulate_block)
    start = time.perf_counter()
    _, ensemble = jax.block_until_ready(advance(ensemble))
    compiled = time.perf_counter()
    spikes: list[Bool[np.ndarray, "steps draws trials neurons"]] = []
    for _ in tqdm(range(blocks), desc="simulating", unit=f" x {BLOCK} ms"):
        block, ensemble = advance(ensemble)
        spikes.append(np.asarray(block))
    seconds = (time.perf_counter() - compiled) / blocks
    return Simulation(ensemble, np.concatenate(spikes), compiled - start, seconds)


# Results --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Report:
    """How fast the neurons of each draw fire in each trial, and how irregularly."""

    simulation: Simulation
    inhibition: Float[np.ndarray, " draws"]
    rates: Float[np.ndarray, "draws trials"]  # Hz, mean over neurons
    irregularity: Float[np.ndarray, "draws trials"]  # mean coefficient of variation


def evaluate(simulation: Simulation) -> Report:
    """Measure what was simulated."""
    spikes = simulation.spikes
    _, draws, trials, _ = spikes.shape
    return Report(
        simulation,
        inhibition=np.asarray(simulation.ensemble.inhibition.value),
        rates=spikes.mean(axis=(0, 3)) * 1e3 / STEP,
        irregularity=np.array(
            [[irregularity(spikes[:, d, t]) for t in range(trials)] for d in range(draws)]
        ),
    )


def irregularity(spikes: Bool[np.ndarray, "steps neurons"], at_least: int = 5) -> float:
    """The coefficient of variation of a neuron's inter-spike intervals, mean over neurons.

    It is 0 for a clock and 1 for a Poisson process ("Neuronal dynamics", section 7.3). Neurons with
    fewer than `at_least` intervals are left out; if that leaves none, it is not a number.
    """
    neuron, step = np.nonzero(spikes.T)
    same = neuron[1:] == neuron[:-1]
    owner, intervals = neuron[1:][same], np.diff(step)[same]
    count = np.bincount(owner)
    enough = count >= at_least
    if not enough.any():
        return math.nan
    mean, square = (np.bincount(owner, intervals**k)[enough] / count[enough] for k in (1, 2))
    return float(np.mean(np.sqrt(np.maximum(square - mean**2, 0)) / mean))


def table(report: Report) -> str:
    """The figures, to print."""
    draws, trials = report.rates.shape
    rule = "-" * 62
    rows = [
        f"draw {d + 1:>2}{report.inhibition[d]:13.2f}{report.rates[d].mean():13.1f} Hz"
        f"{report.rates[d].std():10.1f} Hz{report.irregularity[d].mean():13.2f}"
        for d in range(draws)
    ]
    simulation = report.simulation
    networks = f"{draws} x {trials} networks"
    return "\n".join(
        [
            f"{'':7}{'inhibition':>13}{'firing rate':>16}{'± trials':>13}{'CV':>13}",
            rule,
            *rows,
            rule,
            f"{f'time for {BLOCK} ms of {networks}':47}{simulation.seconds_per_block:13.2f} s",
            f"{'the first time, with compiling':47}{simulation.seconds_to_compile:13.2f} s",
        ]
    )


def main(argv: Sequence[str] | None = None) -> Report:
    """Run the example with command line options."""
    parser = argparse.ArgumentParser(description="An ensemble of spiking networks.")
    parser.add_argument("--draws", type=int, default=10, help="draws of the parameters (default: 10)")
    parser.add_argument("--trials", type=int, default=12, help="trials of each draw (default: 12)")
    parser.add_argument(
        "--milliseconds", type=int, default=1000, help="time to simulate (default: 1000)"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder to draw in")
    options = parser.parse_args(argv)
    if options.draws < 1 or options.trials < 1:
        parser.error("at least one draw and one trial are needed")
    if options.milliseconds < 1 or options.milliseconds % BLOCK:
        parser.error(f"the time is simulated in blocks: --milliseconds is a multiple of {BLOCK}")

    key1, key2 = jr.split(jr.key(0))
    ensemble = make_ensemble(draw_inhibition(options.draws, key1), options.trials, key2)
    report = evaluate(simulate(ensemble, options.milliseconds // BLOCK))
    raster, rates = options.out / "spiking_raster.png", options.out / "spiking_rates.png"
    middle = report.simulation.spikes[:, options.draws // 2]
    plotting.draw_raster(raster, middle, STEP, EXCITATORY)
    plotting.draw_rates(rates, report.inhibition, report.rates, report.irregularity)
    print(table(report))
    print(f"\nwritten: {raster}, {rates}")
    return report


if __name__ == "__main__":
    main()
