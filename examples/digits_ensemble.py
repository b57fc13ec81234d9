"""Sixteen small networks, trained together on handwritten digits.

The network below is written for one member and one minibatch: it normalises by running statistics,
drops features at random and scales its input, and it keeps what these need in states. `ps.vmap2` makes
an ensemble of it, each state in its own way:

| in the network | is | in the ensemble |
|---|---|---|
| weights of Equinox's layers | arrays | a set for each member |
| running mean and variance | `ps.BatchState` | a set for each member |
| stream of dropout masks | `ps.RandomState` | a key for each member |
| scale of the input | `ps.NonBatchState` | one, shared by all members |

Training is one compiled step for all members: `ps.pure` takes the mapped loss to a pure function, which
Equinox differentiates and Optax descends. Testing writes no state, so it needs no `pure`.

    pip install -e ".[examples]"
    python examples/digits_ensemble.py --steps 1500 --members 16 --out digits_ensemble.png

prints the accuracy of each member and of the ensemble, and draws the training curves and the digits on
which the members disagree most.
"""

import argparse
import dataclasses
import functools as ft
import itertools as it
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import pstate as ps


PIXELS, HIDDEN, CLASSES = 64, 32, 10
BATCH = 64
LEARNING_RATE = 3e-3
WINDOW = 50  # how many steps a loss is averaged over to be shown


# The network of one member --------------------------------------------------------------------------


class BatchNorm(eqx.Module):
    """Normalise features: by the minibatch in training, by the running statistics in inference."""

    weight: Float[Array, " features"]
    bias: Float[Array, " features"]
    mean: ps.BatchState[Float[Array, " features"]]
    variance: ps.BatchState[Float[Array, " features"]]
    momentum: float = eqx.field(static=True)
    inference: bool

    def __init__(self, features: int, momentum: float = 0.9):
        self.weight = jnp.ones(features)
        self.bias = jnp.zeros(features)
        self.mean = ps.BatchState(jnp.zeros(features))
        self.variance = ps.BatchState(jnp.ones(features))
        self.momentum = momentum
        self.inference = False

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        if self.inference:
            mean, variance = self.mean.value, self.variance.value
        else:
            mean, variance = x.mean(axis=0), x.var(axis=0)
            self.mean.value = self._moved(self.mean.value, mean)
            self.variance.value = self._moved(self.variance.value, variance)
        return self.weight * (x - mean) * jax.lax.rsqrt(variance + 1e-5) + self.bias

    def _moved(
        self, running: Float[Array, " features"], new: Float[Array, " features"]
    ) -> Float[Array, " features"]:
        return self.momentum * running + (1 - self.momentum) * new


class Dropout(eqx.Module):
    """Zero features at random in training, from a random stream of its own."""

    rng: ps.RandomState
    rate: float = eqx.field(static=True)
    inference: bool

    def __init__(self, rate: float, key: PRNGKeyArray):
        self.rng = ps.RandomState(key)
        self.rate = rate
        self.inference = False

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        if self.inference:
            return x
        kept = self.rng.bernoulli(1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


class Block(eqx.Module):
    """A hidden layer."""

    linear: eqx.nn.Linear
    norm: BatchNorm
    dropout: Dropout

    def __init__(self, features_in: int, features: int, key: PRNGKeyArray):
        linear_key, dropout_key = jr.split(key)
        # The normalisation has a bias, and would subtract another one before it.
        self.linear = eqx.nn.Linear(features_in, features, use_bias=False, key=linear_key)
        self.norm = BatchNorm(features)
        self.dropout = Dropout(0.2, dropout_key)

    def __call__(self, x: Float[Array, "batch features_in"]) -> Float[Array, "batch features"]:
        return self.dropout(jax.nn.relu(self.norm(jax.vmap(self.linear)(x))))


class Network(eqx.Module):
    """One member: from a minibatch of images to the logits of the ten digits."""

    scale: ps.NonBatchState[Float[Array, ""]]
    blocks: list[Block]
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray, scale: Float[Array, ""]):
        key1, key2, key3 = jr.split(key, 3)
        self.scale = ps.NonBatchState(scale)
        self.blocks = [Block(PIXELS, HIDDEN, key1), Block(HIDDEN, HIDDEN, key2)]
        self.readout = eqx.nn.Linear(HIDDEN, CLASSES, key=key3)

    def __call__(self, images: Float[Array, "batch 64"]) -> Float[Array, "batch 10"]:
        x = images * self.scale.value
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.readout)(x)


def loss(
    network: Network, images: Float[Array, "batch 64"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The mean cross-entropy of one member on one minibatch."""
    logits = network(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# The ensemble ---------------------------------------------------------------------------------------


def make_ensemble(members: int, scale: Float[Array, ""], key: PRNGKeyArray) -> Network:
    """A `Network` whose leaves have a leading axis of members, but for the shared scale."""
    return ps.vmap2(Network, in_axes=(0, None))(jr.split(key, members), scale)


@eqx.filter_jit
def train_step(
    ensemble: Network,
    opt_state: optax.OptState,
    optim: optax.GradientTransformation,
    images: Float[Array, "images 64"],
    labels: Int[Array, " images"],
    index: Int[Array, "members batch"],
) -> tuple[Network, optax.OptState, Float[Array, " members"]]:
    """One step of every member, on the minibatch that its row of `index` picks; and their losses."""
    parameters, rest = eqx.partition(ensemble, ps.select(ensemble))

    @ft.partial(eqx.filter_value_and_grad, has_aux=True)
    def total_loss(parameters: Network) -> tuple[Float[Array, ""], Any]:
        ensemble = eqx.combine(parameters, rest)
        losses, ensemble = ps.pure(ps.vmap2(loss))(ensemble, images[index], labels[index])
        # A member's loss depends on its own parameters only, so the gradient of the sum is each
        # member's own gradient. A mean would make it depend on the number of members.
        return losses.sum(), (losses, ensemble)

    (_, (losses, ensemble)), grads = total_loss(parameters)
    updates, opt_state = optim.update(grads, opt_state, parameters)
    # The loss has given the ensemble back with new statistics and keys, and the parameters it had.
    return eqx.apply_updates(ensemble, updates), opt_state, losses


def minibatches(members: int, images: int) -> Iterator[Int[Array, "members batch"]]:
    """Minibatches without end, as indices: each member goes through the images in orders of its own."""
    rng = np.random.default_rng(0)
    batches = images // BATCH
    while True:
        orders = rng.permuted(np.tile(np.arange(images), (members, 1)), axis=1)
        yield from map(jnp.asarray, np.split(orders[:, : batches * BATCH], batches, axis=1))


@dataclasses.dataclass(frozen=True)
class Training:
    """What training gives."""

    ensemble: Network
    losses: Float[np.ndarray, "steps members"]
    seconds_to_compile: float
    seconds_per_step: float


def train(
    images: Float[np.ndarray, "images 64"], labels: Int[np.ndarray, " images"], members: int, steps: int
) -> Training:
    """Train all members together, for at least two steps: the first one compiles and is timed apart."""
    ensemble = make_ensemble(members, jnp.float32(1 / images.max()), jr.key(0))
    optim = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    opt_state = optim.init(ps.trainable(ensemble))
    data = jnp.asarray(images), jnp.asarray(labels)
    losses: list[Float[Array, " members"]] = []
    start = compiled = time.perf_counter()
    with tqdm(total=steps, desc=f"training {members} members", unit="step", mininterval=0.25) as bar:
        for index in it.islice(minibatches(members, len(images)), steps):
            ensemble, opt_state, loss = train_step(ensemble, opt_state, optim, *data, index)
            losses.append(loss)
            if len(losses) == 1:
                jax.block_until_ready(loss)
                compiled = time.perf_counter()
            # JAX runs ahead of Python, and reading a loss waits for it. So one is read only when the bar
            # is drawn, a few times a second, and the others stay on the device until the end.
            if bar.update():
                bar.set_postfix(loss=f"{loss.mean():.4f}")
        jax.block_until_ready(ensemble)
    end = time.perf_counter()
    return Training(ensemble, np.stack(losses), compiled - start, (end - compiled) / (steps - 1))


def predict(
    ensemble: Network, images: Float[np.ndarray, "images 64"]
) -> Float[np.ndarray, "members images 10"]:
    """Each member's probabilities. Inference writes no state, so nothing has to be made pure."""
    ensemble = eqx.nn.inference_mode(ensemble)
    logits = ps.vmap2(Network.__call__, in_axes=(0, None))(ensemble, images)
    return np.asarray(jax.nn.softmax(logits))


# What came of it ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Report:
    """How the members and the ensemble, which averages their probabilities, did on the test images."""

    training: Training
    predictions: Int[np.ndarray, " images"]
    votes: Int[np.ndarray, "images 10"]
    member_accuracy: Float[np.ndarray, " members"]
    ensemble_accuracy: float


def evaluate(
    training: Training, images: Float[np.ndarray, "images 64"], labels: Int[np.ndarray, " images"]
) -> Report:
    """Test what was trained."""
    probabilities = predict(training.ensemble, images)
    predictions = probabilities.mean(axis=0).argmax(axis=-1)
    ballots = probabilities.argmax(axis=-1)
    return Report(
        training,
        predictions,
        votes=np.stack([(ballots == digit).sum(axis=0) for digit in range(CLASSES)], axis=-1),
        member_accuracy=(ballots == labels).mean(axis=1),
        ensemble_accuracy=float((predictions == labels).mean()),
    )


def smooth(losses: Float[np.ndarray, "steps members"]) -> Float[np.ndarray, "windows members"]:
    """Means over `WINDOW` steps, or over all where there are fewer."""
    window = min(WINDOW, len(losses))
    return np.lib.stride_tricks.sliding_window_view(losses, window, axis=0).mean(axis=-1)


def table(report: Report) -> str:
    """The figures, to print."""
    training, accuracy = report.training, 100 * report.member_accuracy
    final = smooth(training.losses)[-1]
    members = [
        f"member {i:>2}  {accuracy[i - 1]:14.2f} %{final[i - 1]:16.4f}" for i in range(1, len(final) + 1)
    ]
    rule = "-" * 43
    return "\n".join(
        [
            f"{'':11}{'test accuracy':>16}{'training loss':>16}",
            rule,
            *members,
            rule,
            f"{'mean':11}{accuracy.mean():14.2f} %{final.mean():16.4f}",
            f"{'best':11}{accuracy.max():14.2f} %",
            f"{'ensemble':11}{100 * report.ensemble_accuracy:14.2f} %",
            rule,
            f"{'time per step, all members':27}{1e3 * training.seconds_per_step:13.2f} ms",
            f"{'first step, with compiling':27}{training.seconds_to_compile:13.2f} s",
        ]
    )


def draw(
    report: Report,
    images: Float[np.ndarray, "images 64"],
    labels: Int[np.ndarray, " images"],
    path: Path,
) -> None:
    """Draw the training curves, and the test images on which the members disagree most."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(5, 7), wspace=0.03)[0]
    draw_curves(left, report.training.losses)
    draw_disputed(right, report, images, labels)
    figure.savefig(path, dpi=150)


def draw_curves(figure: SubFigure, losses: Float[np.ndarray, "steps members"]) -> None:
    """A thin curve for each member, and their mean."""
    steps, members = losses.shape
    curves = smooth(losses)
    window = steps - len(curves) + 1
    ends = np.arange(window, steps + 1)
    ax = figure.subplots()
    thin = ax.plot(ends, curves, color="tab:blue", linewidth=0.7, alpha=0.6)
    thin[0].set_label("each member")
    ax.plot(ends, curves.mean(axis=1), color="black", linewidth=2.2, label="mean of the members")
    ax.set(xlabel="step", ylabel=f"training loss, mean of {window} steps", yscale="log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.suptitle(f"{members} networks trained together")


def draw_disputed(
    figure: SubFigure,
    report: Report,
    images: Float[np.ndarray, "images 64"],
    labels: Int[np.ndarray, " images"],
) -> None:
    """The images with the most divided votes: what they are, what the ensemble says, and the votes."""
    axes = figure.subplots(3, 4, squeeze=False).flat
    for ax, i in zip(axes, most_disputed(report.votes), strict=False):
        true, said = labels[i], report.predictions[i]
        ax.imshow(images[i].reshape(8, 8), cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        ax.set_title(
            f"true {true}, ensemble {said}", fontsize=10, color="k" if true == said else "tab:red"
        )
        ax.set_xlabel(in_words(report.votes[i]), fontsize=9)
    figure.suptitle("Test digits on which the members disagree most (red: the ensemble is wrong)")


def in_words(votes: Int[np.ndarray, " 10"]) -> str:
    """The two digits with the most votes, and how many members chose another one."""
    first, second = np.argsort(-votes, kind="stable")[:2]
    others = votes.sum() - votes[first] - votes[second]
    said = [f"{votes[digit]} say {digit}" for digit in (first, second) if votes[digit]]
    return ", ".join([*said, f"{others} other"] if others else said)


def most_disputed(votes: Int[np.ndarray, "images 10"]) -> Int[np.ndarray, " images"]:
    """The images in order of the entropy of their votes, from the most divided."""
    shares = votes / votes.sum(axis=1, keepdims=True)
    entropy = -np.sum(shares * np.log(np.where(votes, shares, 1)), axis=1)
    return np.argsort(-entropy, kind="stable")


def main(argv: Sequence[str] | None = None) -> Report:
    """Run the example with command line options."""
    parser = argparse.ArgumentParser(description="An ensemble of networks on handwritten digits.")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: 1500)")
    parser.add_argument("--members", type=int, default=16, help="networks (default: 16)")
    parser.add_argument("--out", type=Path, default=Path("digits_ensemble.png"), help="where to draw")
    options = parser.parse_args(argv)
    if options.steps < 2 or options.members < 1:
        parser.error("at least two steps (the first one compiles) and one member are needed")

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(np.asarray, split)
    training = train(train_images, train_labels, options.members, options.steps)
    report = evaluate(training, test_images, test_labels)
    draw(report, test_images, test_labels, options.out)
    print(f"{len(train_images)} digits to train on, {len(test_images)} to test on\n")
    print(table(report))
    print(f"\nwritten: {options.out}")
    return report


if __name__ == "__main__":
    main()
