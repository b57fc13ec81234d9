"""A recurrent policy that learns to balance poles in 256 environments at once.

The agent below is written for one environment: a cart with a pole on it, which gusts push about, and a
policy that sees where they are but not how fast they move. To balance the pole it has to remember. The
agent keeps all that changes in states, the environment's own state included, and one `ps.vmap2` says
what the environments have apart and what they have in common:

| in the agent | is | over the environments |
|---|---|---|
| weights of Equinox's layers | arrays | shared |
| position, velocity, whether the pole is up | `Body`, a `ps.ShortTermState` | one for each |
| hidden state of the recurrent cell | `ps.HiddenState` | one for each |
| sums over observations, to normalise | `ps.BatchState` | shared: the mean of what lanes make of it |
| streams of gusts and of choices | `ps.RandomState` | one key each, split when lanes draw |

An episode is a `ps.for_loop` over time within a lane, and `ps.value_and_grad` differentiates through
it: an actor and a critic learn from all episodes in one step, which `ps.jit` compiles. The same agent is
trained twice, with its memory and without: the second forgets its hidden state in each step.

    pip install -e ".[examples]"
    python examples/actor_rollouts.py --updates 200 --environments 256 --out actor_rollouts.png --seed 0

prints for how many steps the pole stays up, before training and after, and draws the learning curves and
how many poles still stand as an episode goes on.

Sources: for the cart and the pole, Barto, Sutton and Anderson, "Neuronlike adaptive elements that can
solve difficult learning control problems", 1983, without friction; for the advantages, Schulman, Moritz,
Levine, Jordan and Abbeel, "High-dimensional continuous control using generalized advantage estimation",
2016.
"""

import argparse
import dataclasses
import functools as ft
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import plotting
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from tqdm import tqdm

import pstate as ps


STEPS = 200  # of an episode
STEP = 0.03  # s

GRAVITY = 9.8  # m/s^2
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # m, of the pole
PUSH = 10.0  # N, to the right or to the left
GUST = 4.0  # N, standard deviation
LIMITS = (2.4, 0.21)  # m from the middle and rad from upright: beyond either, the episode has failed
START = 0.05  # the largest position, angle and velocities to begin with

HIDDEN = 32
LEARNING_RATE = 2e-2
DISCOUNT, TRACE = 0.98, 0.95  # gamma and lambda of the advantages
CRITIC_COST, ENTROPY_GAIN = 0.005, 0.001
KEPT = 0.95  # part of the sums over observations that an episode keeps
WINDOW = 10  # how many updates a mean return is taken over to be shown


V = TypeVar("V")


class Body(ps.ShortTermState[V]):
    """What the environment is in: where things are, and how they move."""


# What the environments have apart, and how the sums over observations come together again. All lanes
# begin with the same sums, and each adds what it has seen. So the mean of the lanes is the old sums and
# the mean of the additions, and a ratio of sums is the ratio for the observations of all lanes together.
EACH = {0: ps.ShortTermState}
TOGETHER = {ft.partial(jnp.mean, axis=0): ps.BatchState}


# The agent: one environment -------------------------------------------------------------------------


class CartPole(eqx.Module):
    """A pole on a cart, both in a plane."""

    rng: ps.RandomState
    position: Body[Float[Array, " 2"]]  # of the cart (m), and the pole's angle (rad)
    velocity: Body[Float[Array, " 2"]]  # of both, per second
    upright: Body[Bool[Array, ""]]

    def __init__(self, key: PRNGKeyArray):
        key1, key2 = jr.split(key)
        start = jr.uniform(key2, (2, 2), minval=-START, maxval=START)
        self.rng = ps.RandomState(key1)
        self.position, self.velocity = Body(start[0]), Body(start[1])
        self.upright = Body(jnp.array(True))

    def reset(self) -> None:
        """Begin an episode, as a new cart would, and keep the stream of random numbers."""
        fresh = CartPole(self.rng.key())
        ps.update(self, ps.states(fresh, ps.ShortTermState))

    def __call__(self, push: Bool[Array, ""]) -> Float[Array, ""]:
        """Push the cart to the right, or to the left; and the reward: 1 if the pole is up, else 0."""
        force = jnp.where(push, PUSH, -PUSH) + self.rng.normal(0, GUST)
        (_, angle), (_, turning) = self.position.value, self.velocity.value
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        mass, lever = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
        forward = (force + lever * turning**2 * sin) / mass
        inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / mass)
        tipping = (GRAVITY * sin - cos * forward) / inertia
        acceleration = jnp.stack([forward - lever * tipping * cos / mass, tipping])
        velocity = self.velocity.value + STEP * acceleration
        position = self.position.value + STEP * velocity
        within = (jnp.abs(position) < jnp.array(LIMITS)).all()
        self.position.value, self.velocity.value = position, velocity
        self.upright.value = self.upright.value & within
        return self.upright.value.astype(position.dtype)


class Normaliser(eqx.Module):
    """Bring observations to mean 0 and variance 1, by sums over those that were seen lately."""

    count: ps.BatchState[Float[Array, ""]]
    total: ps.BatchState[Float[Array, " features"]]
    squares: ps.BatchState[Float[Array, " features"]]

    def __init__(self, features: int):
        # As if there had been one observation of mean 0 and variance 1.
        self.count = ps.BatchState(jnp.ones(()))
        self.total = ps.BatchState(jnp.zeros(features))
        self.squares = ps.BatchState(jnp.ones(features))

    def __call__(self, x: Float[Array, " features"]) -> Float[Array, " features"]:
        mean = self.total.value / self.count.value
        variance = self.squares.value / self.count.value - mean**2
        return (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 1e-8))

    def see(self, xs: Float[Array, "steps features"], counted: Bool[Array, " steps"]) -> None:
        """Add those observations that count, and let the old ones fade."""
        weights = counted.astype(xs.dtype)
        self.count.value = KEPT * self.count.value + weights.sum()
        self.total.value = KEPT * self.total.value + weights @ xs
        self.squares.value = KEPT * self.squares.value + weights @ xs**2


class Policy(eqx.Module):
    """An actor and a critic that share a recurrent cell."""

    rng: ps.RandomState
    normaliser: Normaliser
    cell: eqx.nn.GRUCell
    actor: eqx.nn.Linear
    critic: eqx.nn.Linear
    hidden: ps.HiddenState[Float[Array, " hidden"]]
    memory: bool = eqx.field(static=True)

    def __init__(self, memory: bool, key: PRNGKeyArray):
        key1, key2, key3, key4 = jr.split(key, 4)
        self.rng = ps.RandomState(key1)
        self.normaliser = Normaliser(2)
        self.cell = eqx.nn.GRUCell(2, HIDDEN, key=key2)
        self.actor = eqx.nn.Linear(HIDDEN, "scalar", key=key3)
        self.critic = eqx.nn.Linear(HIDDEN, "scalar", key=key4)
        self.hidden = ps.HiddenState(jnp.zeros(HIDDEN))
        self.memory = memory

    def reset(self) -> None:
        """Remember nothing."""
        self.hidden.value = jnp.zeros(HIDDEN)

    def __call__(
        self, observation: Float[Array, " 2"]
    ) -> tuple[Bool[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """Choose where to push; and the logit of the right, and what the critic expects."""
        if not self.memory:
            self.reset()
        hidden = self.cell(self.normaliser(observation), self.hidden.value)
        self.hidden.value = hidden
        logit = self.actor(hidden)
        return self.rng.bernoulli(jax.nn.sigmoid(logit)), logit, self.critic(hidden)


class Steps(eqx.Module):
    """What is kept of each step. `counted` says whether the pole was up before it."""

    observation: Float[Array, "*axes 2"]
    counted: Bool[Array, "*axes"]
    push: Bool[Array, "*axes"]
    logit: Float[Array, "*axes"]
    expected: Float[Array, "*axes"]
    reward: Float[Array, "*axes"]


class Agent(eqx.Module):
    """A policy and its environment."""

    world: CartPole
    policy: Policy

    def __init__(self, memory: bool, key: PRNGKeyArray):
        key1, key2 = jr.split(key)
        self.world = CartPole(key1)
        self.policy = Policy(memory, key2)

    def step(self) -> Steps:
        """Look, push, and see what comes of it."""
        observation, counted = self.world.position.value, self.world.upright.value
        push, logit, expected = self.policy(observation)
        reward = self.world(push)
        return Steps(observation, counted, push, logit, expected, reward)

    def episode(self) -> Steps:
        """Start afresh, go on for `STEPS` steps, and only then add the observations to the sums."""
        self.world.reset()
        self.policy.reset()
        steps = ps.for_loop(self.step, length=STEPS)
        self.policy.normaliser.see(steps.observation, steps.counted)
        return steps


# All environments -----------------------------------------------------------------------------------


def make_agent(memory: bool, environments: int, key: PRNGKeyArray) -> Agent:
    """An `Agent` with one policy, and a body and a hidden state for each environment."""
    make = ps.vmap2(Agent, in_axes=None, out_axes=None, axis_size=environments, state_out_axes=EACH)
    return make(memory, key)


def episodes(agent: Agent) -> Steps:
    """An episode in each environment; leaves have shapes (environments, steps, ...)."""
    return ps.vmap2(agent.episode, state_in_axes=EACH, state_out_axes=TOGETHER)()


def advantages(
    reward: Float[Array, " steps"], expected: Float[Array, " steps"]
) -> Float[Array, " steps"]:
    """How much better than expected each step of an episode went, by what came after it."""

    def back(
        later: Float[Array, ""],
        now: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        reward, expected, expected_next = now
        # The reward is 0 where the pole falls, and nothing comes after that.
        surprise = reward * (1 + DISCOUNT * expected_next) - expected
        advantage = surprise + DISCOUNT * TRACE * reward * later
        return advantage, advantage

    # The last step only ends the episode, not the balance: what is expected then stays the same.
    expected_next = jnp.append(expected[1:], expected[-1])
    _, found = ps.scan(back, jnp.zeros(()), (reward, expected, expected_next), reverse=True)
    return found


def loss(agent: Agent) -> tuple[Float[Array, ""], Float[Array, " environments"]]:
    """The loss of actor and critic on an episode in each environment; and the returns."""
    steps = episodes(agent)
    weights = steps.counted / steps.counted.sum()
    expected = jax.lax.stop_gradient(steps.expected)
    advantage = ps.vmap2(advantages)(steps.reward, expected)
    critic = jnp.sum(weights * (expected + advantage - steps.expected) ** 2)
    mean = jnp.sum(weights * advantage)
    spread = jnp.sqrt(jnp.sum(weights * (advantage - mean) ** 2))
    log_chance = -jax.nn.softplus(jnp.where(steps.push, -steps.logit, steps.logit))
    actor = -jnp.sum(weights * log_chance * (advantage - mean) / (spread + 1e-8))
    surprise = jax.nn.softplus(steps.logit) - steps.logit * jax.nn.sigmoid(steps.logit)
    entropy = jnp.sum(weights * surprise)
    return actor + CRITIC_COST * critic - ENTROPY_GAIN * entropy, steps.reward.sum(axis=1)


@ps.jit
def update(
    agent: Agent, opt_state: optax.OptState, optim: optax.GradientTransformation
) -> tuple[Agent, optax.OptState, Float[Array, " environments"]]:
    """Play an episode in each environment and learn from them; and their returns."""
    ((_, returns), grads), agent = ps.pure(ps.value_and_grad(loss, has_aux=True))(agent)
    updates, opt_state = optim.update(grads, opt_state)
    # The loss has given the agent back with new states, and the weights it had.
    return eqx.apply_updates(agent, updates), opt_state, returns


def make_optimiser(updates: int) -> optax.GradientTransformation:
    """Adam with clipped gradients, slowing down to a stop after so many updates."""
    rate = optax.linear_schedule(LEARNING_RATE, 0, updates)
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class Training:
    """What training gives. A return is the number of steps that a pole stayed up."""

    agent: Agent
    returns: Float[np.ndarray, "updates environments"]
    seconds_to_compile: float
    seconds_per_update: float

    @property
    def steps_per_second(self) -> float:
        """How many steps of an environment are played and learned from in a second."""
        return STEPS * self.returns.shape[1] / self.seconds_per_update

    @property
    def before(self) -> float:
        """The mean return of the untrained agent."""
        return float(self.returns[0].mean())

    @property
    def after(self) -> float:
        """The mean return over the last updates."""
        return float(self.returns[-WINDOW:].mean())


def train(memory: bool, environments: int, updates: int, seed: int) -> Training:
    """Train an agent, for at least two updates: the first one compiles and is timed apart."""
    agent = make_agent(memory, environments, jr.key(seed))
    optim = make_optimiser(updates)
    opt_state = optim.init(ps.trainable(agent))
    returns: list[Float[Array, " environments"]] = []
    start = compiled = time.perf_counter()
    with tqdm(total=updates, desc=in_words(memory), unit="update", mininterval=0.25) as bar:
        for _ in range(updates):
            agent, opt_state, returned = update(agent, opt_state, optim)
            returns.append(returned)
            if len(returns) == 1:
                jax.block_until_ready(returned)
                compiled = time.perf_counter()
            # JAX runs ahead of Python, and reading a return waits for it: once for each drawing.
            if bar.update():
                bar.set_postfix(mean_return=f"{returned.mean():.1f}")
        jax.block_until_ready(agent)
    end = time.perf_counter()
    return Training(agent, np.stack(returns), compiled - start, (end - compiled) / (updates - 1))


# Results --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Report:
    """The same agent, trained with its memory and without."""

    remembering: Training
    forgetting: Training


def in_words(memory: bool) -> str:
    """The name of an agent."""
    return "with memory" if memory else "without memory"


def table(report: Report) -> str:
    """The figures, to print."""
    both = (report.remembering, report.forgetting)
    rows = {
        "mean return, untrained": [f"{training.before:.1f}" for training in both],
        "mean return, trained": [f"{training.after:.1f}" for training in both],
        "steps per second, in thousands": [
            f"{training.steps_per_second / 1e3:.0f}" for training in both
        ],
        "time per update": [f"{1e3 * training.seconds_per_update:.0f} ms" for training in both],
        "first update, with compiling": [f"{training.seconds_to_compile:.1f} s" for training in both],
    }
    head = f"{'':32}{in_words(True):>18}{in_words(False):>18}"
    lines = [f"{name:32}{first:>18}{second:>18}" for name, (first, second) in rows.items()]
    return "\n".join([head, "-" * len(head), *lines])


def main(argv: Sequence[str] | None = None) -> Report:
    """Run the example with command line options."""
    parser = argparse.ArgumentParser(
        description="A recurrent policy that balances poles in many environments.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--updates", type=int, default=200, help="updates of each agent")
    parser.add_argument("--environments", type=int, default=256, help="environments")
    parser.add_argument("--out", type=Path, default=Path("actor_rollouts.png"), help="where to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn")
    options = parser.parse_args(argv)
    if options.updates < 2 or options.environments < 1:
        parser.error("at least two updates (the first one compiles) and one environment are needed")

    remembering, forgetting = (
        train(memory, options.environments, options.updates, options.seed) for memory in (True, False)
    )
    report = Report(remembering, forgetting)
    returns = remembering.returns, forgetting.returns
    plotting.draw_poles(options.out, *returns, STEPS, STEP, WINDOW)
    print(
        f"{options.environments} environments, episodes of {STEPS} steps: a return is at most {STEPS}\n"
    )
    print(table(report))
    print(f"\nwritten: {options.out}")
    return report


if __name__ == "__main__":
    main()
