"""Sixteen small networks, trained together on handwritten digits.

The network below is written for one image and one member. Two nested `ps.vmap2` run it on a minibatch
of images, and make an ensemble of it. Each of its states takes part in its own way:

| in the network | is | over images | over members |
|---|---|---|---|
| weights of Equinox's layers | arrays | shared | a set each |
| running mean and variance of `eqx.nn.BatchNorm` | `ps.BatchState` | shared | a set each |
| stream of dropout masks | `ps.RandomState` | shared; split when it draws | a stream each |
| scale of the input | `ps.NonBatchState` | shared | shared |

Training is one compiled step for all members, in which `ps.value_and_grad` differentiates and Optax
descends. Testing writes no state, so it needs no `ps.pure`.

    pip install -e ".[examples]"
    python examples/digits_ensemble.py --steps 1500 --members 16 --out digits_ensemble.png

prints the accuracy of each member and of the ensemble, and draws the training curves and the digits on
which the members disagree most.
"""

import argparse
import dataclasses
import itertools as it
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import plotting
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import pstate as ps


PIXELS, HIDDEN, CLASSES = 64, 32, 10
BATCH = 64
LEARNING_RATE = 3e-3
WINDOW = 50  # how many steps a loss is averaged over to be shown


# The network: one image, one member -----------------------------------------------------------------


def hidden_layer(features_in: int, features: int, key: PRNGKeyArray) -> eqx.nn.Sequential:
    """Linear, normalised over the minibatch, rectified, and dropped out."""
    linear_key, dropout_key = jr.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(features_in, features, use_bias=False, key=linear_key),
            ps.nn.from_equinox(eqx.nn.BatchNorm, features, "batch", momentum=0.9, mode="batch"),
            eqx.nn.Lambda(jax.nn.relu),
            ps.nn.Dropout(0.2, key=dropout_key),
        ]
    )


class Network(eqx.Module):
    """From an image to the logits of the ten digits."""

    scale: ps.NonBatchState[Float[Array, ""]]
    layers: eqx.nn.Sequential

    def __init__(self, key: PRNGKeyArray, scale: Float[Array, ""]):
        key1, key2, key3 = jr.split(key, 3)
        self.scale = ps.NonBatchState(scale)
        self.layers = eqx.nn.Sequential(
            [
                hidden_layer(PIXELS, HIDDEN, key1),
                hidden_layer(HIDDEN, HIDDEN, key2),
                eqx.nn.Linear(HIDDEN, CLASSES, key=key3),
            ]
        )

    def __call__(self, image: Float[Array, " 64"]) -> Float[Array, " 10"]:
        return self.layers(self.scale.value * image)


def logits(network: Network, images: Float[Array, "batch 64"]) -> Float[Array, "batch 10"]:
    """One member on a minibatch. `axis_name` is how the normalisation finds the other images."""
    return ps.vmap2(network, axis_name="batch")(images)


def loss(
    network: Network, images: Float[Array, "batch 64"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The mean cross-entropy of one member on a minibatch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(network, images), labels).mean()


# The ensemble ---------------------------------------------------------------------------------------


def make_ensemble(members: int, scale: Float[Array, ""], key: PRNGKeyArray) -> Network:
    """A `Network` whose leaves have a leading axis of members, except for the shared scale."""
    return ps.vmap2(Network, in_axes=(0, None))(jr.split(key, members), scale)


@ps.jit
def train_step(
    ensemble: Network,
    opt_state: optax.OptState,
    optim: optax.GradientTransformation,
    images: Float[Array, "members batch 64"],
    labels: Int[Array, "members batch"],
) -> tuple[Network, optax.OptState, Float[Array, " members"]]:
    """One step of every member, each on a minibatch of its own; also returns their losses."""
    (losses, grads), ensemble = ps.pure(ps.vmap2(ps.value_and_grad(loss)))(ensemble, images, labels)
    # The ensemble has come back with new statistics and keys, and the parameters it had.
    updates, opt_state = optim.update(grads, opt_state, ps.trainable(ensemble))
    return eqx.apply_updates(ensemble, updates), opt_state, losses


def minibatches(
    images: Float[np.ndarray, "images 64"], labels: Int[np.ndarray, " images"], members: int
) -> Iterator[tuple[Float[Array, "members batch 64"], Int[Array, "members batch"]]]:
    """Minibatches without end. Each member goes through the images in orders of its own."""
    rng = np.random.default_rng(0)
    batches = len(images) // BATCH
    while True:
        orders = rng.permuted(np.tile(np.arange(len(images)), (members, 1)), axis=1)
        for index in np.split(orders[:, : batches * BATCH], batches, axis=1):
            yield jnp.asarray(images[index]), jnp.asarray(labels[index])


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
    losses: list[Float[Array, " members"]] = []
    start = compiled = time.perf_counter()
    with tqdm(total=steps, desc=f"training {members} members", unit="step", mininterval=0.25) as bar:
        for batch in it.islice(minibatches(images, labels, members), steps):
            ensemble, opt_state, loss = train_step(ensemble, opt_state, optim, *batch)
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
    """Each member's probabilities. Inference writes no state, so it needs no `ps.pure`."""
    ensemble = eqx.nn.inference_mode(ensemble)
    each = ps.vmap2(logits, in_axes=(0, None))(ensemble, jnp.asarray(images))
    return np.asarray(jax.nn.softmax(each))


# Results --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Report:
    """How the members and the ensemble, which averages their probabilities, did on the test images."""

    training: Training
    probabilities: Float[np.ndarray, "members images 10"]
    member_accuracy: Float[np.ndarray, " members"]
    ensemble_accuracy: float


def evaluate(
    training: Training, images: Float[np.ndarray, "images 64"], labels: Int[np.ndarray, " images"]
) -> Report:
    """Test what was trained."""
    probabilities = predict(training.ensemble, images)
    return Report(
        training,
        probabilities,
        member_accuracy=(probabilities.argmax(axis=-1) == labels).mean(axis=1),
        ensemble_accuracy=float((probabilities.mean(axis=0).argmax(axis=-1) == labels).mean()),
    )


def table(report: Report) -> str:
    """The figures, to print."""
    accuracy, final = report.member_accuracy, report.training.losses[-WINDOW:].mean(axis=0)
    row = "{:<12}{:>14.2%}{:>17.4f}".format
    rule = "-" * 43
    members = [row(f"member {i + 1:>2}", accuracy[i], final[i]) for i in range(len(final))]
    return "\n".join(
        [
            f"{'':12}{'test accuracy':>14}{'training loss':>17}",
            rule,
            *members,
            rule,
            row("mean", accuracy.mean(), final.mean()),
            f"{'best':12}{accuracy.max():14.2%}",
            f"{'ensemble':12}{report.ensemble_accuracy:14.2%}",
            rule,
            f"time per step, all members {1e3 * report.training.seconds_per_step:13.2f} ms",
            f"first step, with compiling {report.training.seconds_to_compile:13.2f} s",
        ]
    )


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
    images = images.astype(np.float32)
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(np.asarray, split)
    training = train(train_images, train_labels, options.members, options.steps)
    report = evaluate(training, test_images, test_labels)
    plotting.draw_digits(
        options.out, training.losses, report.probabilities, test_images, test_labels, WINDOW
    )
    print(f"{len(train_images)} digits to train on, {len(test_images)} to test on\n")
    print(table(report))
    print(f"\nwritten: {options.out}")
    return report


if __name__ == "__main__":
    main()
