"""The recipes of docs/recipes, threaded by hand: raw JAX on plain arrays, with the same keys and data.

A *twin* takes parameters as lists and dicts of arrays, and everything that changes as an argument, which
it gives back. `draw` and `deal` are the documented rules for random numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm


def draw(key: Any) -> tuple[Any, Any]:
    """The stream after a draw, and the key that is drawn with."""
    kept, own = jr.split(key)
    return kept, own


def deal(key: Any, n: int) -> tuple[Any, Any]:
    """The stream after a mapping over `n` lanes that draw, and the key of each lane."""
    keys = jr.split(key, n + 1)
    return keys[0], keys[1:]


def affine(layer: Any, x: Any) -> Any:
    """A layer of weight and bias."""
    weight, bias = layer
    return weight @ x + bias


def mlp(layers: Any, x: Any) -> Any:
    """Affine layers with rectifiers in between."""
    for layer in layers[:-1]:
        x = jax.nn.relu(affine(layer, x))
    return affine(layers[-1], x)


# A recurrent network --------------------------------------------------------------------------------


def gru(p: dict[str, Any], x: Any, h: Any) -> Any:
    """A step of a gated recurrent unit."""
    size = len(h)
    of_x, of_h = p["ih"] @ x + p["bias"], p["hh"] @ h
    reset = jax.nn.sigmoid(of_x[:size] + of_h[:size])
    keep = jax.nn.sigmoid(of_x[size : 2 * size] + of_h[size : 2 * size])
    new = jnp.tanh(of_x[2 * size :] + reset * (of_h[2 * size :] + p["bias_n"]))
    return new + keep * (h - new)


def recurrent_loss(p: Any, hidden: Any, xs: Any, starts: Any, ys: Any) -> Any:
    """The loss of one chunk of all streams, and the hidden states after it."""

    def step(hidden: Any, now: Any) -> Any:
        x, start = now
        first, second = (jnp.where(start, 0.0, h) for h in hidden)
        first = gru(p["cells"][0], x, first)
        second = gru(p["cells"][1], first, second)
        return (first, second), affine(p["readout"], second)[0]

    def stream(hidden: Any, xs: Any, starts: Any) -> Any:
        return jax.lax.scan(step, hidden, (xs, starts))

    hidden, outputs = jax.vmap(stream)(hidden, xs, starts)
    return jnp.mean((outputs - ys) ** 2), hidden


# Decoding -------------------------------------------------------------------------------------------


def decoder(p: Any, tokens: Any) -> tuple[Any, Any]:
    """The logits after each token of a text, and all keys and values, without a cache."""
    xs = p["embed"][tokens]
    projected = jax.vmap(lambda x: affine(p["attention"], x))(xs)
    queries, keys, values = jnp.split(projected, 3, axis=1)
    scores = queries @ keys.T / jnp.sqrt(xs.shape[1])
    causal = jnp.tril(jnp.ones(scores.shape, bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=1)
    logits = jax.vmap(lambda x: affine(p["readout"], x))(xs + weights @ values)
    return logits, jnp.concatenate([keys, values], axis=1)


def decoded(p: Any, prompt: list[int], end: int, longest: int) -> list[int]:
    """A text, for each token of which everything is computed again."""
    text = list(prompt)
    while text[-1] != end and len(text) <= longest:
        text.append(int(decoder(p, jnp.array(text))[0][-1].argmax()))
    return text


def decoder_loss(p: Any, texts: Any, end: int) -> Any:
    """The mean cross entropy of what follows each token but the end."""
    logits = jax.vmap(lambda text: decoder(p, text)[0])(texts[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, texts[:, 1:])
    counted = texts[:, :-1] != end
    return jnp.sum(losses * counted) / jnp.sum(counted)


# A mean teacher -------------------------------------------------------------------------------------


def noisy(layers: Any, key: Any, xs: Any) -> tuple[Any, Any]:
    """A network on noisy inputs, and its stream after that."""

    def one(key: Any, x: Any) -> Any:
        return mlp(layers, x + 0.15 * jr.normal(draw(key)[1], (2,)))[0]

    key, keys = deal(key, len(xs))
    return jax.vmap(one)(keys, xs), key


def teacher_loss(student: Any, teacher: Any, keys: Any, xs: Any, labels: Any, weight: Any) -> Any:
    """The student's loss, and both streams."""
    logits, key = noisy(student, keys[0], xs)
    expected, teacher_key = noisy(teacher, keys[1], xs)
    supervised = optax.sigmoid_binary_cross_entropy(logits[: len(labels)], labels).mean()
    agreement = jnp.mean((jax.nn.sigmoid(logits) - jax.nn.sigmoid(expected)) ** 2)
    return supervised + weight * agreement, (key, teacher_key)


# A codebook -----------------------------------------------------------------------------------------


def codebook_loss(p: Any, counts: Any, sums: Any, xs: Any) -> Any:
    """The loss of a batch; its error, the codes that were chosen, and the new averages."""
    zs = jax.vmap(lambda x: mlp(p["encoder"], x))(xs)
    codes = sums / counts[:, None]
    indices = jnp.argmin(((zs[:, None] - codes) ** 2).sum(axis=-1), axis=1)
    chosen = codes[indices]
    ys = jax.vmap(lambda z: mlp(p["decoder"], z))(zs + jax.lax.stop_gradient(chosen - zs))
    error, commitment = jnp.mean((ys - xs) ** 2), jnp.mean(((zs - chosen) ** 2).sum(axis=1))
    one_hot = jax.nn.one_hot(indices, len(codes))
    counts = 0.95 * counts + 0.05 * one_hot.mean(axis=0)
    sums = 0.95 * sums + 0.05 * jax.lax.stop_gradient(one_hot.T @ zs / len(zs))
    return error + 0.25 * commitment, (error, indices, counts, sums)


# Running normalisation ------------------------------------------------------------------------------


def merged(moments: Any, seen: Any) -> Any:
    """Count, mean and squared differences, with those of a batch."""
    count, mean, squares = moments
    total, delta = count + len(seen), seen.mean(axis=0) - mean
    squares = squares + ((seen - seen.mean(axis=0)) ** 2).sum(axis=0)
    squares = squares + delta**2 * count * len(seen) / total
    return total, mean + delta * len(seen) / total, squares


def actor_critic_loss(p: Any, moments: Any, key: Any, n: int, length: int) -> Any:
    """The loss of an episode in each environment; rewards, observations, and what has changed."""
    key, keys = deal(key, n)
    keys, own = jax.vmap(draw)(keys)
    start = jax.vmap(jr.normal)(own), jnp.zeros(n)

    def step(carry: Any, _: Any) -> Any:
        x, v, keys, moments = carry
        seen = jnp.stack([5000 + 1000 * x, v / 100], axis=1)
        count, mean, squares = moments = merged(moments, seen)
        normal = (seen - mean) / jnp.sqrt(squares / count + 1e-8)
        logits = jax.vmap(lambda x: affine(p["actor"], x)[0])(normal)
        values = jax.vmap(lambda x: mlp(p["critic"], x)[0])(normal)
        keys, own = jax.vmap(draw)(keys)
        push = jax.vmap(jr.bernoulli)(own, jax.nn.sigmoid(logits))
        keys, own = jax.vmap(draw)(keys)
        reward = -(x**2)
        v = v + 0.2 * jnp.where(push, 1.0, -1.0) + 0.1 * jax.vmap(jr.normal)(own)
        x = x + 0.2 * v
        log_chance = jax.nn.log_sigmoid(jnp.where(push, logits, -logits))
        return (x, v, keys, moments), (seen, log_chance, values, reward)

    (x, v, _, moments), found = jax.lax.scan(step, (*start, keys, moments), length=length)
    seen, log_chances, values, rewards = found
    total, totals = jnp.zeros(n), []
    for reward in rewards[::-1]:
        total = reward + 0.95 * total
        totals.append(total)
    advantages = jnp.stack(totals[::-1]) - values
    scaled = jax.lax.stop_gradient((advantages - advantages.mean()) / advantages.std())
    value = jnp.mean(0.1 * advantages**2 - scaled * log_chances)
    return value, (rewards.mean(), seen, moments, key, (x, v))


# Gradient accumulation ------------------------------------------------------------------------------


def batch_norm_loss(p: Any, running: Any, xs: Any, ys: Any) -> Any:
    """The loss of a micro-batch, and the running statistics after it."""
    hidden = jax.vmap(lambda x: affine(p["inner"], x))(xs)
    mean, var = hidden.mean(axis=0), hidden.var(axis=0)
    scale, shift = p["norm"]
    hidden = jax.nn.relu((hidden - mean) / jnp.sqrt(var + 1e-5) * scale + shift)
    outputs = jax.vmap(lambda x: affine(p["outer"], x)[0])(hidden)
    count, (old_mean, old_var) = running
    running = count + 1, (0.99 * old_mean + 0.01 * mean, 0.99 * old_var + 0.01 * var)
    return jnp.mean((outputs - ys) ** 2), running


# MC dropout -----------------------------------------------------------------------------------------


def dropped_out(layers: Any, keys: Any, x: Any) -> Any:
    """A network of three layers whose hidden units are dropped by the keys of two streams."""
    for layer, key in zip(layers[:-1], keys, strict=True):
        x = jax.nn.relu(affine(layer, x))
        x = jnp.where(jr.bernoulli(draw(key)[1], 0.9, x.shape), x / 0.9, 0.0)
    return affine(layers[-1], x)[0]


def dropout_loss(layers: Any, keys: Any, xs: Any, ys: Any) -> Any:
    """The loss, with masks of its own for each example; and the streams."""
    keys, lanes = zip(*(deal(key, len(xs)) for key in keys), strict=True)
    outputs = jax.vmap(lambda keys, x: dropped_out(layers, keys, x))(lanes, xs)
    return jnp.mean((outputs - ys) ** 2), keys


def dropout_samples(layers: Any, keys: Any, xs: Any, n: int) -> Any:
    """Samples of the network, each with one mask for all inputs."""
    lanes = [deal(key, n)[1] for key in keys]
    return jax.vmap(lambda keys: jax.vmap(lambda x: dropped_out(layers, keys, x))(xs))(lanes)


# A particle filter ----------------------------------------------------------------------------------


def particle_filter(xs: Any, key: Any, ys: Any) -> Any:
    """Positions and stream at the end; log evidence and mean of each step."""
    n = len(xs)

    def step(carry: Any, y: Any) -> Any:
        xs, key = carry
        key, keys = deal(key, n)
        xs = 0.9 * xs + 0.5 * jax.vmap(lambda key: jr.normal(draw(key)[1]))(keys)
        log_weights = norm.logpdf(y, xs)
        weights = jax.nn.softmax(log_weights)
        key, own = draw(key)
        points = (jnp.arange(n) + jr.uniform(own)) / n
        parents = jnp.minimum(jnp.searchsorted(jnp.cumsum(weights), points), n - 1)
        return (xs[parents], key), (logsumexp(log_weights) - jnp.log(n), weights @ xs)

    return jax.lax.scan(step, (xs, key), ys)


# Surrogate gradients --------------------------------------------------------------------------------


@jax.custom_vjp
def fires(x: Any) -> Any:
    """One above zero, else zero."""
    return (x > 0).astype(x.dtype)


fires.defvjp(lambda x: (fires(x), x), lambda x, g: (g / (1 + 10 * jnp.abs(x)) ** 2,))


def spiking_loss(layers: Any, xs: Any, labels: Any) -> Any:
    """The loss of all trials; output counts, and voltages and counts of both layers at the end."""

    def step(carry: Any, x: Any) -> Any:
        new = []
        for layer, (voltage, count) in zip(layers, carry, strict=True):
            voltage = 0.9 * voltage + affine(layer, x)
            x = fires(voltage - 1)
            new.append((voltage - jax.lax.stop_gradient(x), count + x))
        return new, x

    def trial(xs: Any) -> Any:
        start = [(jnp.zeros_like(bias), jnp.zeros_like(bias)) for _, bias in layers]
        after, fired = jax.lax.scan(step, start, xs)
        return fired.sum(axis=0), after

    counts, after = jax.vmap(trial)(xs)
    return optax.softmax_cross_entropy_with_integer_labels(counts, labels).mean(), (counts, after)


def gated(cells: Any, hidden: Any, xs: Any) -> Any:
    """Gated cells over sequences: outputs, hidden states, and for each step the gates and the norm."""

    def step(hidden: Any, x: Any) -> Any:
        new, gates = [], []
        for layer, h in zip(cells, hidden, strict=True):
            gate, candidate = jnp.split(affine(layer, jnp.concatenate([x, h])), 2)
            gate = jax.nn.sigmoid(gate)
            x = gate * h + (1 - gate) * jnp.tanh(candidate)
            new.append(x)
            gates.append(gate)
        return jnp.stack(new), (x, jnp.stack(gates), jnp.linalg.norm(x))

    over_time = lambda hidden, xs: jax.lax.scan(step, hidden, xs)
    hidden, (ys, gates, norms) = jax.vmap(over_time, (1, 0), (1, 0))(hidden, xs)
    return ys, hidden, jnp.moveaxis(gates, 2, 0), norms
