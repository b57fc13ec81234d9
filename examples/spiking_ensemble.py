"""An ensemble of spiking networks, mapped over parameter draws and over trials.

The network below is written for one draw of its parameters, one trial and one time step: excitatory and
inhibitory leaky integrate-and-fire neurons, wired at random, each driven by Poisson input of its own. Its
states are given kinds, and two nested `ps.vmap2` say by kind which state has its lanes where:

| in the network | is | with draws and trials |
|---|---|---|
| strength of inhibition, weights | `ps.ParamState` | (draws, ...): one set for a draw, shared by its trials |
| voltage, time still refractory | `Membrane` | (trials, draws, neurons) |
| spike traces, which the synapses pass on | `Trace` | (draws, neurons, trials) |
| stream of Poisson input | `ps.RandomState` | a key for each draw, which the trials split |

No layout is right for every state. The traces stand in columns, one for each trial, so that the synapses of
a draw are one product of two matrices as they lie in memory. Of the membranes one rather takes a trial, of
all draws: with the trials in front that is `voltage.value[trial]`. Changing one's mind is a change to
`DRAWS` and `TRIALS`, and to nothing else: the spikes stay the same.

    pip install -e ".[examples]"
    python examples/spiking_ensemble.py --draws 8 --trials 16 --milliseconds 1000 --out .

prints how fast and how regularly the networks fire, and draws `spiking_raster.png`, the spikes of a few
trials, and `spiking_rates.png`, the firing rate against the strength of inhibition.

The neuron is that of Gerstner, Kistler, Naud and Paninski, "Neuronal Dynamics", 2014, section 1.3, with the
Poisson input of section 8.2. The network is that of Brunel, "Dynamics of sparsely connected networks of
excitatory and inhibitory spiking neurons", 2000, made smaller, and with synapses that decay in place of a
delay.
"""

import math

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

import pstate as ps


STEP = 0.5  # ms
BLOCK = 100  # ms that one compiled call simulates
EXCITATORY, INHIBITORY = 320, 80
NEURONS = EXCITATORY + INHIBITORY
CONNECTED = 0.25  # probability that one neuron projects to another

TAU_MEMBRANE = 20.0  # ms
TAU_SYNAPSE = 5.0  # ms
REFRACTORY = 2.0  # ms
THRESHOLD, RESET = 20.0, 10.0  # mV above rest
KICK = 0.3  # mV that a spike adds to the voltage of an excited neuron, all in all

# The rate of input spikes that would bring a neuron without noise or network just to its threshold, and
# the rate that each neuron gets.
THRESHOLD_RATE = 1e3 * THRESHOLD / (KICK * TAU_MEMBRANE)  # Hz
INPUT_RATE = 1.3 * THRESHOLD_RATE  # Hz

WEAKEST, STRONGEST = 4.5, 8.0  # inhibition that is drawn, in units of excitation; above 4 it balances


# One network, one trial, one time step --------------------------------------------------------------


class Membrane(ps.HiddenState):
    """What a neuron's membrane remembers."""


class Trace(ps.ShortTermState):
    """What a synapse remembers of the spikes that came."""


class Network(ps.nn.Module):
    """Integrate-and-fire neurons, the excitatory ones first."""

    inhibition: ps.ParamState[Float[Array, ""]]
    weights: ps.ParamState[
        Float[Array, "neurons neurons"]
    ]  # mV, to a neuron (row) from a neuron (column)
    input: ps.RandomState[Shaped[PRNGKeyArray, ""]]
    voltage: Membrane[Float[Array, " neurons"]]  # mV above rest
    refractory: Membrane[Float[Array, " neurons"]]  # ms
    trace: Trace[Float[Array, " neurons"]]

    def __init__(self, inhibition: Float[Array, ""], key: PRNGKeyArray):
        wiring_key, input_key = jr.split(key)
        connected = jr.bernoulli(wiring_key, CONNECTED, (NEURONS, NEURONS))
        excites = jnp.arange(NEURONS) < EXCITATORY
        self.inhibition = ps.ParamState(inhibition)
        self.weights = ps.ParamState(KICK * connected * jnp.where(excites, 1, -inhibition))
        self.input = ps.RandomState(input_key)
        self.voltage, self.refractory, self.trace = Membrane(), Membrane(), Trace()

    def init_state(self) -> None:
        """Begin a trial: somewhere below the threshold, and with nothing on the way."""
        self.voltage.value = self.input.uniform(0, THRESHOLD, NEURONS)
        self.refractory.value = jnp.zeros(NEURONS)
        self.trace.value = jnp.zeros(NEURONS)

    def __call__(self) -> Bool[Array, " neurons"]:
        """Go on by `STEP`, and tell who spikes.

        The voltage obeys `tau dV/dt = -V + RI`. It is integrated exactly, with the current `I` of the
        synapses constant within a step, as in Rotter and Diesmann, "Exact digital simulation of
        time-invariant linear systems with applications to neuronal modeling", 1999.
        """
        decay = math.exp(-STEP / TAU_MEMBRANE)
        current = TAU_MEMBRANE / TAU_SYNAPSE * (self.weights.value @ self.trace.value)  # R I, in mV
        kicks = KICK * self.input.poisson(1e-3 * STEP * INPUT_RATE, NEURONS)
        voltage = decay * self.voltage.value + (1 - decay) * current + kicks
        voltage = jnp.where(self.refractory.value > 0, RESET, voltage)
        spikes = voltage >= THRESHOLD
        self.voltage.value = jnp.where(spikes, RESET, voltage)
        self.refractory.value = jnp.where(spikes, REFRACTORY, self.refractory.value - STEP)
        self.trace.value = math.exp(-STEP / TAU_SYNAPSE) * self.trace.value + spikes
        return spikes
