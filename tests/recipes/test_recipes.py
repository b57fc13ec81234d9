"""Each recipe of docs/recipes gives what its twin gives: outputs, states, draws and gradients.

A test runs the blocks of a page, and takes what they define. It makes the page's model again, trains it
for a few steps, and does the same with the twin. After one step, the first moment that Adam keeps is a
tenth of the gradient.
"""

import contextlib
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import pstate as ps
from pages.blocks import checked
from pages.repository import DOCS
from recipes import twins


pytestmark = pytest.mark.once


@contextlib.contextmanager
def page(name: str) -> Iterator[SimpleNamespace]:
    """What the blocks of a recipe define, after they have run and done what the page shows."""
    with checked(DOCS / "recipes" / f"{name}.md") as names:
        yield SimpleNamespace(**names)


def assert_close(found: Any, expected: Any, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    """Two trees of arrays agree to rounding, keys to the bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b, rtol, atol = jr.key_data(a), jr.key_data(b), 0, 0
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def gradient(opt_state: Any) -> Any:
    """The gradient of the first step, from what Adam keeps of it."""
    return jax.tree.map(lambda moment: 10 * moment, opt_state[0].mu)


def affine(linear: Any) -> Any:
    """A layer of Equinox as plain arrays."""
    return linear.weight, linear.bias


def layers(net: Any) -> Any:
    """A perceptron of Equinox, or a sequence of layers, as plain arrays."""
    return [affine(layer) for layer in net.layers if isinstance(layer, eqx.nn.Linear)]


def stepped(optim: Any, p: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
    """Parameters and optimiser after an update."""
    updates, opt_state = optim.update(grads, opt_state, p)
    return optax.apply_updates(p, updates), opt_state


def test_every_recipe_is_listed_and_compared():
    """The table of recipes has every page of the folder, and each page has its test here."""
    index = (DOCS / "recipes" / "index.md").read_text()
    listed = re.findall(r"^\| \[.*\]\((\w+)\.md\) \|", index, re.MULTILINE)
    names = {path.stem for path in (DOCS / "recipes").glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(names)
    assert {f"test_{name}" for name in names} <= set(globals())


def test_recurrent():
    """Chunk by chunk, losses, gradients, parameters and hidden states are those of a scan in a vmap."""

    def plain(model: Any) -> Any:
        cells = [layer.cell for layer in model.layers]
        cells = [
            {"ih": c.weight_ih, "hh": c.weight_hh, "bias": c.bias, "bias_n": c.bias_n} for c in cells
        ]
        return {"cells": cells, "readout": affine(model.readout)}

    with page("recurrent") as r:
        model = ps.broadcast(r.Network(jr.key(3)), {0: ps.HiddenState}, 16)
        opt_state, p = r.optim.init(ps.trainable(model)), plain(model)
        hidden = tuple(layer.hidden.value for layer in model.layers)
        twin_state, grad = (
            r.optim.init(p),
            jax.jit(jax.value_and_grad(twins.recurrent_loss, has_aux=True)),
        )
        for i in range(0, 60, 20):
            chunk = [data[:, i : i + 20] for data in (r.xs, r.starts, r.ys)]
            model, opt_state, value = r.train_step(model, opt_state, *chunk)
            (expected, hidden), grads = grad(p, hidden, *chunk)
            if i == 0:
                assert_close(plain(gradient(opt_state)), grads)
            p, twin_state = stepped(r.optim, p, twin_state, grads)
            assert_close(value, expected)
            assert_close(tuple(layer.hidden.value for layer in model.layers), hidden)
        assert_close(plain(model), p, atol=2e-4)
        assert r.starts[:, :60].any()

        # Several chunks in one function: the mean of the chunks' gradients, each cut at its start.
        grads, after = ps.pure(ps.jit(ps.grad(r.loss_of_chunks)))(model, *r.chunks)
        parts = []
        for i in range(5):
            (_, hidden), part = grad(p, hidden, *(chunk[:, i] for chunk in r.chunks))
            parts.append(part)
        assert_close(plain(grads), jax.tree.map(lambda *g: sum(g) / 5, *parts), atol=5e-4)
        assert_close(tuple(layer.hidden.value for layer in after.layers), hidden, atol=5e-4)


def test_decoding():
    """With the cache, texts, lengths, logits, cached keys and gradients are those without one."""

    def plain(model: Any) -> Any:
        attention, readout = affine(model.attention), affine(model.readout)
        return {"embed": model.embed.weight, "attention": attention, "readout": readout}

    with page("decoding") as r:
        p = plain(r.model)
        for i, prompt in enumerate([[3, 4], [0, 1], [7, 8]]):
            text = twins.decoded(p, prompt, r.END, r.LONGEST)
            assert r.written[i].tolist() == text + [r.END] * (r.LONGEST + 1 - len(text))
            assert r.after.length.value[i] == len(text) - 1
            _, kept = twins.decoder(p, jnp.array(text[:-1]))
            assert_close(r.after.kept.value[i, : len(kept)], kept, atol=1e-4)
            assert not r.after.kept.value[i, len(kept) :].any()
        assert_close(r.at_once, twins.decoder(p, r.text)[0], atol=1e-4)
        fresh = r.Decoder(jr.key(1))
        _, opt_state = r.train_step(fresh, r.optim.init(ps.trainable(fresh)))
        grads = jax.jit(jax.grad(twins.decoder_loss), static_argnums=2)(plain(fresh), r.texts, r.END)
        assert_close(plain(gradient(opt_state)), grads)


def test_mean_teacher():
    """Student, teacher, gradient and both streams are those of two trees of arrays and two keys."""
    with page("mean_teacher") as r:
        student, teacher = r.Noisy(jr.key(1)), r.Noisy(jr.key(2))
        teacher = eqx.combine(ps.trainable(student), teacher)
        keys = student.rng.value, teacher.rng.value
        opt_state, weight = r.optim.init(ps.trainable(student)), jnp.array(10.0)
        p = average = layers(student.net)
        twin_state, grad = r.optim.init(p), jax.jit(jax.grad(twins.teacher_loss, has_aux=True))
        for i in range(3):
            data = r.xs, r.labels[:8], weight
            student, teacher, opt_state = r.train_step(student, teacher, opt_state, *data)
            grads, keys = grad(p, average, keys, *data)
            if i == 0:
                assert_close(layers(gradient(opt_state).net), grads)
            p, twin_state = stepped(r.optim, p, twin_state, grads)
            average = jax.tree.map(lambda new, old: 0.05 * new + 0.95 * old, p, average)
        assert_close(layers(student.net), p, atol=2e-4)
        assert_close(layers(teacher.net), average, atol=2e-4)
        assert_close((student.rng.value, teacher.rng.value), keys)


def test_codebook():
    """Codes, averages, errors and gradients are those of a function of the whole batch."""

    def plain(model: Any) -> Any:
        return {"encoder": layers(model.encoder), "decoder": layers(model.decoder)}

    with page("codebook") as r:
        model = r.Autoencoder(r.xs[:16], jr.key(3))
        opt_state, p = r.optim.init(ps.trainable(model)), plain(model)
        counts, sums = model.codebook.counts.value, model.codebook.sums.value
        twin_state, grad = r.optim.init(p), jax.jit(jax.grad(twins.codebook_loss, has_aux=True))
        for i in range(3):
            model, opt_state, (error, indices) = r.train_step(model, opt_state, r.xs)
            grads, (expected, chosen, counts, sums) = grad(p, counts, sums, r.xs)
            if i == 0:
                assert_close(plain(gradient(opt_state)), grads)
            p, twin_state = stepped(r.optim, p, twin_state, grads)
            assert_close((error, indices), (expected, chosen))
        assert_close((model.codebook.counts.value, model.codebook.sums.value), (counts, sums))
        assert_close(plain(model), p, atol=2e-4)


def test_observation_normalisation():
    """Rewards, gradients and bodies are those of a scan; the moments, those of all that was observed."""

    def plain(agent: Any) -> Any:
        return {"actor": affine(agent.actor), "critic": layers(agent.critic)}

    with page("observation_normalisation") as r:
        agent = ps.broadcast(r.Agent(jr.key(0)), {0: ps.ShortTermState}, 64)
        opt_state, p = r.optim.init(ps.trainable(agent)), plain(agent)
        moments, key = agent.normaliser.moments.value, agent.rng.value
        grad = jax.jit(jax.grad(twins.actor_critic_loss, has_aux=True), static_argnums=(3, 4))
        seen = []
        twin_state = r.optim.init(p)
        for i in range(2):
            agent, opt_state, reward = r.train_step(agent, opt_state)
            grads, (expected, observed, moments, key, body) = grad(p, moments, key, 64, 50)
            if i == 0:
                assert_close(plain(gradient(opt_state)), grads, rtol=1e-3, atol=1e-4)
            p, twin_state = stepped(r.optim, p, twin_state, grads)
            assert_close(reward, expected)
            seen.append(np.float64(observed).reshape(-1, 2))
        assert_close((agent.position.value, agent.velocity.value), body, rtol=1e-3)
        assert_close(agent.rng.value, key)
        assert_close(agent.normaliser.moments.value, moments, rtol=1e-3)
        count, mean, squares = agent.normaliser.moments.value
        seen = np.concatenate(seen)
        assert count == len(seen) == 2 * 50 * 64
        np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(squares / count, seen.var(axis=0), rtol=1e-3)


def test_gradient_accumulation():
    """The gradient is the mean of the micro-batches', and the statistics go from one to the next."""

    def plain(model: Any) -> Any:
        inner, norm, _, outer = model.layers
        return {"inner": affine(inner), "norm": affine(norm.layer), "outer": affine(outer)}

    with page("gradient_accumulation") as r:
        model = r.make(jr.key(1))
        opt_state, p = r.optim.init(ps.trainable(model)), plain(model)
        count, (mean, var) = model[1].state.value.values()
        running = count, (mean, var)
        model, opt_state, value = r.train_step(model, opt_state, r.xs[0], r.ys[0])
        grad, values, parts = jax.value_and_grad(twins.batch_norm_loss, has_aux=True), [], []
        for x, y in zip(r.xs[0], r.ys[0], strict=True):
            (expected, running), part = jax.jit(grad)(p, running, x, y)
            values.append(expected)
            parts.append(part)
        assert_close(value, jnp.stack(values).mean())
        assert_close(plain(gradient(opt_state)), jax.tree.map(lambda *g: sum(g) / 4, *parts))
        assert_close(tuple(model[1].state.value.values()), running)
        assert running[0] == 4


def test_mc_dropout():
    """Masks are an example's own in training, and a sample's own when predicting; streams move on."""
    with page("mc_dropout") as r:
        model = r.make(jr.key(2))
        opt_state, p = r.optim.init(ps.trainable(model)), layers(model)
        keys = tuple(state.value for state in ps.states(model, ps.RandomState).values())
        trained, opt_state = r.train_step(model, opt_state, r.xs, r.ys)
        grads, moved = jax.jit(jax.grad(twins.dropout_loss, has_aux=True))(p, keys, r.xs, r.ys)
        assert_close(layers(gradient(opt_state)), grads)
        assert_close(tuple(s.value for s in ps.states(trained, ps.RandomState).values()), moved)
        xs = jnp.array([[-0.5], [2.0]])
        samples = jax.jit(twins.dropout_samples, static_argnums=3)(p, keys, xs, 200)
        assert_close(r.predict(model, xs), (samples.mean(axis=0), samples.std(axis=0)))


def test_particle_filter():
    """Evidence, means, particles and stream are those of a scan over positions and a key."""
    with page("particle_filter") as r:
        twin = jax.jit(twins.particle_filter)
        (xs, key), (evidence, means) = twin(jnp.zeros(1000), jr.key(2), r.ys)
        assert_close(r.evidence, evidence.sum())
        assert_close(r.means, means, atol=1e-4)
        assert_close(r.particles.position.value, xs, atol=1e-4)
        assert_close(r.particles.rng.value, key)


def test_surrogate_gradients():
    """Counts, voltages and gradients are those of a scan with a rule of its own for the spike."""

    def plain(model: Any) -> Any:
        return [affine(model.hidden.synapses), affine(model.output.synapses)]

    with page("surrogate_gradients") as r:
        fresh = ps.broadcast(r.Network(jr.key(2)), {0: ps.ShortTermState}, 64)
        (value, counts), after = ps.pure(ps.jit(r.loss))(fresh, r.xs, r.labels)
        _, opt_state, *_ = r.train_step(fresh, r.optim.init(ps.trainable(fresh)), r.xs, r.labels)
        grad = jax.jit(jax.value_and_grad(twins.spiking_loss, has_aux=True))
        (expected, (twin_counts, states)), grads = grad(plain(fresh), r.xs, r.labels)
        assert_close((value, counts), (expected, twin_counts))
        found = [(layer.voltage.value, layer.spikes.value) for layer in (after.hidden, after.output)]
        assert_close(found, states, atol=1e-4)
        assert_close(plain(gradient(opt_state)), grads)
        assert jnp.abs(grads[0][0]).max() > 1e-3


def test_intermediate_values():
    """Outputs, hidden states, gates and norms are those that a scan in a vmap returns on the side."""
    with page("intermediate_values") as r:
        cells = [affine(cell.gates) for cell in r.net.cells]
        ys, hidden, gates, norms = jax.jit(twins.gated)(cells, jnp.zeros((2, 3, 4)), r.xs)
        assert_close(r.ys, ys)
        assert_close([cell.hidden.value for cell in r.net.cells], list(hidden))
        assert list(r.seen) == [("cells", 0, "gate"), ("cells", 1, "gate"), ("norm",)]
        assert_close(list(r.seen.values()), [gates[0], gates[1], norms])
