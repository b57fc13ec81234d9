"""`actor_rollouts.py` runs and does what it says. It is run short here, not at full length."""

import dataclasses
import functools as ft
import importlib
import math
import re
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
UPDATES, ENVIRONMENTS = 50, 24


@pytest.fixture(scope="module")
def actor():
    """The example as a module. Its annotations, shapes and kinds of states included, are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        with install_import_hook(("actor_rollouts", "plotting"), "beartype.beartype"):
            module = importlib.import_module("actor_rollouts")
        # An optimiser is made of functions. One that is made again would be another program to compile.
        patch.setattr(module, "make_optimiser", ft.cache(module.make_optimiser))
        yield module
    del sys.modules["actor_rollouts"], sys.modules["plotting"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Where the short run draws."""
    return tmp_path_factory.mktemp("actor") / "picture.png"


@pytest.fixture(scope="module")
def report(actor, picture):
    """What a short run of `main` returns."""
    options = {"updates": UPDATES, "environments": ENVIRONMENTS, "out": picture}
    return actor.main([text for name, x in options.items() for text in (f"--{name}", str(x))])


@pytest.fixture(scope="module")
def play(actor):
    """An episode in each environment, compiled: `steps, agent = play(agent)`, with NumPy steps."""
    compiled = ps.pure(ps.jit(actor.episodes))

    def play(agent):
        steps, agent = compiled(agent)
        return jax.tree.map(np.asarray, steps), agent

    return play


@pytest.fixture(scope="module")
def played(report, play):
    """A trained agent, an episode of it in each environment, and the agent after that."""
    agent = report.remembering.agent
    return agent, *play(agent)


def leaves_equal(a, b):
    """Whether two trees have the same leaves, to the bit."""
    return [bool((x == y).all()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(cell, x, hidden):
    """A step of a gated recurrent unit, in NumPy: Cho et al., 2014, with two biases of the new value."""
    weight_ih, weight_hh, bias, bias_n = (
        np.asarray(w, float) for w in (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)
    )
    in_reset, in_keep, in_new = np.split(weight_ih @ x + bias, 3)
    of_reset, of_keep, of_new = np.split(weight_hh @ hidden, 3)
    new = np.tanh(in_new + sigmoid(in_reset + of_reset) * (of_new + bias_n))
    keep = sigmoid(in_keep + of_keep)
    return keep * hidden + (1 - keep) * new


def normalised(normaliser, x):
    """An observation by the sums of a normaliser, in NumPy."""
    count, total, squares = (
        np.asarray(s.value, float) for s in (normaliser.count, normaliser.total, normaliser.squares)
    )
    mean = total / count
    return (x - mean) / np.sqrt(squares / count - mean**2)


def test_it_learns(report):
    """Both agents begin alike, and in a few updates keep the pole up for much longer."""
    for training in (report.remembering, report.forgetting):
        returns = training.returns
        assert returns.shape == (UPDATES, ENVIRONMENTS)
        assert (returns == np.round(returns)).all()
        assert ((returns >= 1) & (returns <= 200)).all()
        assert training.before == returns[0].mean()
        assert training.before < 20
        assert training.after == pytest.approx(returns[-10:].mean(), rel=1e-5)
        assert training.after > 1.8 * training.before
        assert 0 < training.seconds_per_update < training.seconds_to_compile
        expected = 200 * ENVIRONMENTS / training.seconds_per_update
        assert training.steps_per_second == pytest.approx(expected)


def test_an_episode_by_hand(actor, played):
    """A loop in NumPy over one environment, its keys threaded by hand, takes the same steps."""
    agent, steps, _ = played
    lane = int(steps.counted.sum(axis=1).argmax())
    policy = agent.policy
    # A mapping over n lanes splits a key into n + 1, and a draw splits one into two; the first stays.
    world_key, policy_key = (
        jr.split(rng.value, ENVIRONMENTS + 1)[1 + lane] for rng in (agent.world.rng, policy.rng)
    )
    world_key, key = jr.split(world_key)
    start = jr.uniform(jr.split(key)[1], (2, 2), minval=-0.05, maxval=0.05)
    (cart, angle), (speed, turning) = np.asarray(start, float)
    hidden = np.zeros(actor.HIDDEN)
    up, t = True, 0
    while up and t < actor.STEPS:
        at = jax.tree.map(lambda x: x[lane, t], steps)  # noqa: B023
        assert at.counted
        np.testing.assert_allclose(at.observation, [cart, angle], rtol=1e-3, atol=1e-4)
        hidden = gru(policy.cell, normalised(policy.normaliser, np.array([cart, angle])), hidden)
        logit, value = (
            (np.asarray(layer.weight, float) @ hidden + np.asarray(layer.bias, float)).item()
            for layer in (policy.actor, policy.critic)
        )
        np.testing.assert_allclose([at.logit, at.expected], [logit, value], rtol=5e-3, atol=5e-3)
        policy_key, key = jr.split(policy_key)
        push = bool(jr.bernoulli(key, sigmoid(logit)))
        assert at.push == push
        world_key, key = jr.split(world_key)
        force = (10 if push else -10) + 4 * float(jr.normal(key))
        # The two equations of motion, solved for both accelerations at once: of the cart and the pole.
        sin, cos = math.sin(angle), math.cos(angle)
        inertia = [[1.1, 0.05 * cos], [0.05 * cos, 4 / 3 * 0.1 * 0.25]]
        forces = [force + 0.05 * turning**2 * sin, 0.05 * 9.8 * sin]
        forward, tipping = np.linalg.solve(inertia, forces)
        speed, turning = speed + 0.03 * forward, turning + 0.03 * tipping
        cart, angle = cart + 0.03 * speed, angle + 0.03 * turning
        up = abs(cart) < 2.4 and abs(angle) < 0.21
        assert at.reward == up
        t += 1
    assert t > 20
    assert not steps.counted[lane, t:].any()
    assert not steps.reward[lane, t:].any()


def test_a_lane_by_itself(actor, played):
    """One lane of the mapping, run without the others, takes the steps that it takes among them."""
    agent, steps, after = played
    mapped = ps.vmap2(agent.episode, state_in_axes=actor.EACH, state_out_axes=actor.TOGETHER)
    alone, lane = ps.pure(mapped.lane(3))()
    counted = steps.counted[3]
    for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(steps), strict=True):
        np.testing.assert_allclose(ours[counted], theirs[3][counted], rtol=1e-3, atol=1e-3)
    assert lane.policy.hidden.value.shape == (actor.HIDDEN,)
    # What it adds to the sums is its own, and the reducer has not seen it.
    assert lane.policy.normaliser.count.value != after.policy.normaliser.count.value


def test_observations_are_normalised(actor, played):
    """The sums are those over the recorded observations, of poles that were up, by NumPy."""
    agent, steps, after = played
    seen = steps.observation.reshape(-1, 2).astype(float)[steps.counted.ravel()]
    assert 20 * ENVIRONMENTS < len(seen) < actor.STEPS * ENVIRONMENTS
    powers = {"count": np.ones(len(seen)), "total": seen, "squares": seen**2}
    for name, xs in powers.items():
        old, new = (getattr(a.policy.normaliser, name).value for a in (agent, after))
        expected = 0.95 * np.asarray(old, float) + xs.sum(axis=0) / ENVIRONMENTS
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-5)


def test_the_sums_hold_all_updates(actor, play):
    """From the first observation on, mean and variance are what NumPy finds, with old ones faded."""
    agent = actor.make_agent(True, ENVIRONMENTS, jr.key(3))
    xs, weights = [np.array([[1.0, 1.0], [-1.0, -1.0]])], [np.full(2, ENVIRONMENTS / 2)]
    for _ in range(3):
        steps, agent = play(agent)
        xs.append(steps.observation[steps.counted])
        weights = [*(0.95 * w for w in weights), np.ones(len(xs[-1]))]
    xs, weights = np.concatenate(xs).astype(float), np.concatenate(weights)
    mean = np.average(xs, axis=0, weights=weights)
    spread = np.sqrt(np.average((xs - mean) ** 2, axis=0, weights=weights))
    found = jax.vmap(agent.policy.normaliser)(jnp.array([[0.0, 0.0], [0.1, 0.1]]))
    expected = (np.array([[0.0], [0.1]]) - mean) / spread
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_states_go_their_own_ways(actor, played):
    """Each environment has a body and a hidden state of its own; the rest is shared, keys too."""
    agent, steps, after = played
    shapes = {
        ("world", "rng"): (),
        ("world", "position"): (ENVIRONMENTS, 2),
        ("world", "velocity"): (ENVIRONMENTS, 2),
        ("world", "upright"): (ENVIRONMENTS,),
        ("policy", "rng"): (),
        ("policy", "normaliser", "count"): (),
        ("policy", "normaliser", "total"): (2,),
        ("policy", "normaliser", "squares"): (2,),
        ("policy", "hidden"): (ENVIRONMENTS, actor.HIDDEN),
    }
    for each in (actor.make_agent(True, ENVIRONMENTS, jr.key(0)), agent, after):
        assert {path: s.value.shape for path, s in ps.states(each).items()} == shapes
    for path in [("world", "position"), ("world", "velocity"), ("policy", "hidden")]:
        value = np.asarray(ps.states(after)[path].value)
        assert len(np.unique(value, axis=0)) == ENVIRONMENTS
    assert len(np.unique(steps.observation[:, 0], axis=0)) == ENVIRONMENTS
    assert len(np.unique(steps.push, axis=0)) == ENVIRONMENTS
    for path, state in ps.states(agent, ps.RandomState).items():
        # The lanes have split it once, whatever they drew.
        assert ps.states(after)[path].value == jr.split(state.value, ENVIRONMENTS + 1)[0]


def test_episodes_begin_anew(actor, played, play):
    """Where a body was and what was remembered before an episode has no part in it."""
    agent, steps, after = played
    elsewhere = ps.update(agent, ps.states(after, ps.ShortTermState))
    assert not all(leaves_equal(elsewhere.policy.hidden, agent.policy.hidden))
    again, then = play(elsewhere)
    assert all(leaves_equal(again, steps))
    assert all(leaves_equal(then, after))
    assert (np.abs(steps.observation[:, 0]) <= actor.START).all()
    assert steps.counted[:, 0].all()


def test_memory_is_what_differs(report, played, play):
    """Without memory a logit follows from what is seen now; with memory it does not."""
    forgetting = report.forgetting.agent
    for agent, steps, forgets in [(forgetting, play(forgetting)[0], True), (*played[:2], False)]:
        policy, counted = agent.policy, steps.counted
        hidden = np.stack(
            [
                gru(policy.cell, normalised(policy.normaliser, x), np.zeros(policy.cell.hidden_size))
                for x in steps.observation[counted][:100]
            ]
        )
        weight, bias = (np.asarray(w, float) for w in (policy.actor.weight, policy.actor.bias))
        logit = (hidden @ weight.T + bias)[:, 0]
        assert np.allclose(logit, steps.logit[counted][:100], rtol=1e-3, atol=1e-3) == forgets


def test_advantages(actor):
    """They are the weighted sum of later surprises, up to the fall, as in the paper."""
    rng = np.random.default_rng(0)
    expected = rng.normal(size=12).astype(np.float32)
    reward = (np.arange(12) < 8).astype(np.float32)
    found = actor.advantages(jnp.asarray(reward), jnp.asarray(expected))
    after = np.append(expected[1:], expected[-1])
    surprise = reward * (1 + 0.98 * after) - expected
    for t in range(9):
        by_hand = sum((0.98 * 0.95) ** (s - t) * surprise[s] for s in range(t, 9))
        np.testing.assert_allclose(found[t], by_hand, rtol=1e-4)
    standing = actor.advantages(jnp.ones(12), jnp.asarray(expected))
    surprise = 1 + 0.98 * after - expected
    by_hand = sum((0.98 * 0.95) ** s * surprise[s] for s in range(12))
    np.testing.assert_allclose(standing[0], by_hand, rtol=1e-4)


def test_the_gradient_by_hand(actor, played):
    """JAX's gradient of the loss, threaded by hand over the recorded steps, is the example's."""
    agent, steps, after = played
    (_, returns), gradient = jax.jit(
        lambda agent: ps.pure(ps.value_and_grad(actor.loss, has_aux=True))(agent)[0]
    )(agent)
    np.testing.assert_array_equal(returns, steps.reward.sum(axis=1))
    policy = agent.policy
    xs = jnp.asarray(normalised(policy.normaliser, steps.observation), jnp.float32)
    weights = steps.counted / steps.counted.sum()
    advantage = np.asarray(jax.vmap(actor.advantages)(*map(jnp.asarray, (steps.reward, steps.expected))))
    mean = (weights * advantage).sum()
    scaled = (advantage - mean) / np.sqrt((weights * (advantage - mean) ** 2).sum())

    def by_hand(layers):
        cell, to_logit, to_value = layers

        def step(hidden, x):
            hidden = jax.vmap(cell)(x, hidden)
            return hidden, (jax.vmap(to_logit)(hidden), jax.vmap(to_value)(hidden))

        start = jnp.zeros((ENVIRONMENTS, actor.HIDDEN))
        hidden, outputs = jax.lax.scan(step, start, xs.swapaxes(0, 1))
        logit, value = (x.T for x in outputs)
        right = jax.nn.sigmoid(logit)
        chance = jnp.where(steps.push, right, 1 - right)
        entropy = -(right * jnp.log(right) + (1 - right) * jnp.log(1 - right))
        critic = (advantage + steps.expected - value) ** 2
        terms = -jnp.log(chance) * scaled + 0.005 * critic - 0.001 * entropy
        return jnp.where(steps.counted, weights * terms, 0).sum(), hidden

    layers = (policy.cell, policy.actor, policy.critic)
    ours, hidden = jax.jit(jax.grad(by_hand, has_aux=True))(layers)
    theirs = (gradient.policy.cell, gradient.policy.actor, gradient.policy.critic)
    assert len(jax.tree.leaves(ours)) == len(jax.tree.leaves(theirs)) == 8
    assert len(jax.tree.leaves(gradient)) == 8
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-4)
    np.testing.assert_allclose(hidden, after.policy.hidden.value, rtol=1e-2, atol=1e-3)


def test_a_seed_decides_everything(actor, report):
    """An update made twice gives the same bits; and `main` began with the seed that is its default."""
    optim = actor.make_optimiser(UPDATES)

    def updated(seed):
        agent = actor.make_agent(True, ENVIRONMENTS, jr.key(seed))
        opt_state = optim.init(ps.trainable(agent))
        return actor.update(agent, opt_state, optim)

    once, twice, other = updated(0), updated(0), updated(1)
    assert all(leaves_equal(once, twice))
    np.testing.assert_array_equal(once[2], report.remembering.returns[0])
    assert (once[2] != other[2]).any()


def test_the_picture_is_drawn(report, picture):
    """Both halves of the file have a curve of each colour; the right one a grey curve as well."""
    image = imread(picture)[..., :3]
    height, width, _ = image.shape
    assert height > 500
    assert width > 1000
    for panel in np.split(image[:, : 2 * (width // 2)], 2, axis=1):
        assert (panel[..., 2] - panel[..., 0] > 0.4).sum() > 500
        assert (panel[..., 0] - panel[..., 2] > 0.4).sum() > 500


def test_standing(actor):
    """All poles are up at first, and a pole that stayed up for n steps is up after the n-th."""
    up = actor.plotting.standing(np.array([1, 3, 3, 200], np.float32), 200)
    assert up.shape == (201,)
    assert up[[0, 1, 2, 3, 4, 200]].tolist() == [1, 1, 0.75, 0.75, 0.25, 0.25]


def test_the_table_has_both(actor, report):
    """A column for each agent, with returns and times; all rows of the same width."""
    lines = actor.table(report).splitlines()
    assert lines[0].split("  ")[-1].strip() == "without memory"
    assert {len(line) for line in lines} == {len(lines[1])}
    both = (report.remembering, report.forgetting)
    shown = {line[:32].strip(): line[32:].split() for line in lines[2:]}
    assert shown["mean return, untrained"] == [f"{t.before:.1f}" for t in both]
    assert shown["mean return, trained"] == [f"{t.after:.1f}" for t in both]
    thousands = [f"{t.steps_per_second / 1000:.0f}" for t in both]
    assert shown["steps per second, in thousands"] == thousands
    assert shown["first update, with compiling"][1::2] == ["s", "s"]


def test_the_full_run_is_as_described(actor, report, tmp_path, monkeypatch, capsys):
    """The command line in the docstring is the default one, and what it prints names its size."""
    (command,) = re.findall(r"python examples/actor_rollouts\.py (.*)", actor.__doc__)
    asked = []

    def train(*args):
        asked.append(args)
        returns = np.full((2, args[1]), 100.0, np.float32)
        return dataclasses.replace(report.remembering, returns=returns)

    monkeypatch.setattr(actor, "train", train)
    monkeypatch.chdir(tmp_path)
    for argv in ([], command.split()):
        actor.main(argv)
        assert asked == [(True, 256, 200, 0), (False, 256, 200, 0)]
        asked.clear()
        printed = capsys.readouterr().out
        assert printed.startswith("256 environments, episodes of 200 steps: a return is at most 200\n")
        assert printed.endswith("\nwritten: actor_rollouts.png\n")
        (tmp_path / "actor_rollouts.png").unlink()


@pytest.mark.parametrize("options", [["--updates", "1"], ["--environments", "0"]])
def test_too_little_to_do_is_refused(actor, options, capsys):
    """Options that leave nothing to train or to time end with a message, before any work."""
    with pytest.raises(SystemExit):
        actor.main(options)
    message = "error: at least two updates (the first one compiles) and one environment are needed\n"
    assert capsys.readouterr().err.endswith(message)
