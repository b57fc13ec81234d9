"""The process of `test_resume.py`: trains a small network, and saves after each step.

Arguments: how to save (`orbax`, `equinox`, or `nothing`); the folder; the step whose save the process
does not survive; and the step after which it waits to be killed (0: none). It goes on from what it
finds saved. It prints the step it starts from, a line for each step, and in the end a digest of all
that training changes.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


os.environ["JAX_PLATFORMS"] = "cpu"

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint as ocp

import pstate as ps


STEPS = 24


class Batches(eqx.Module):
    """The position in the data: an order of the examples, drawn again whenever it is used up."""

    order: ps.State
    position: ps.State
    rng: ps.RandomState

    def __init__(self, n, key):
        self.order = ps.State(jnp.arange(n))
        self.position = ps.State(n)
        self.rng = ps.RandomState(key)

    def shuffle(self):
        self.order.value = self.rng.permutation(self.order.value)
        self.position.value = 0

    def next(self):
        used_up = self.position.value + 16 > self.order.value.size
        ps.cond(used_up, Batches.shuffle, lambda batches: None, self)
        start = self.position.value
        self.position.value += 16
        return jax.lax.dynamic_slice(self.order.value, (start,), (16,))


class Network(eqx.Module):
    """Weights in and outside of states, statistics, two random streams, a container, an empty state."""

    inner: eqx.nn.Linear
    scale: ps.ParamState
    norm: Any
    dropout: ps.nn.Dropout
    noise: ps.RandomState
    trace: ps.ShortTermState
    empty: ps.State
    outer: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 4)
        self.inner = eqx.nn.Linear(4, 8, key=keys[0])
        self.scale = ps.ParamState(jnp.ones(8))
        self.norm = ps.nn.from_equinox(eqx.nn.BatchNorm, 8, axis_name="batch", mode="ema")
        self.dropout = ps.nn.Dropout(0.3, key=keys[1])
        self.noise = ps.RandomState(jr.key(7, impl="rbg"))
        self.trace = ps.ShortTermState({"calls": jnp.array(0), "last": (jnp.zeros(4), [jnp.zeros(1)])})
        self.empty = ps.State()
        self.outer = eqx.nn.Linear(8, 1, key=keys[2])

    def __call__(self, xs):
        hidden = jax.vmap(self.inner)(xs + self.noise.normal(0.0, 0.01, xs.shape))
        hidden = ps.vmap2(self.norm, axis_name="batch")(self.scale.value * hidden)
        out = jax.vmap(self.outer)(self.dropout(jax.nn.relu(hidden)))
        calls = self.trace.value["calls"] + 1
        self.trace.value = {"calls": calls, "last": (xs[0], [out[0]])}
        return out


XS = jr.normal(jr.key(1), (100, 4))
YS = jnp.sin(XS.sum(axis=1, keepdims=True))
OPTIM = optax.adamw(optax.cosine_decay_schedule(1e-2, STEPS))


def loss(model, xs, ys):
    return jnp.mean((model(xs) - ys) ** 2)


@ps.jit(donate_argnums=(0,))  # what is being saved meanwhile must not notice
def train_step(run):
    """One step of a run, and its loss."""
    index, batches = ps.pure(Batches.next)(run["batches"])
    (value, grads), model = ps.pure(ps.value_and_grad(loss))(run["model"], XS[index], YS[index])
    parameters = ps.trainable(model)
    updates, opt_state = OPTIM.update(grads, run["opt_state"], parameters)
    model = eqx.apply_updates(model, updates)
    average = optax.incremental_update(ps.trainable(model), run["average"], 0.1)
    new = {"model": model, "average": average, "opt_state": opt_state, "batches": batches}
    return new | {"step": run["step"] + 1}, value


def fresh_run(seed: int) -> dict[str, Any]:
    """What training starts from. What is restored replaces all of it, whatever the seed."""
    model = Network(jr.key(seed))
    parameters = ps.trainable(model)
    return {
        "model": model,
        "average": parameters,
        "opt_state": OPTIM.init(parameters),
        "batches": Batches(len(XS), jr.key(seed + 1)),
        "step": jnp.array(0),
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(run: Any, save: Callable[[int, Any], None], last: int) -> Any:
    """Go on from `run`, and say so. After the step `last`, wait."""
    print("START", run["step"].item(), flush=True)
    for step in range(run["step"].item() + 1, STEPS + 1):
        run, value = train_step(run)
        save(step, run)
        print("STEP", step, value.item().hex(), flush=True)
        if step == last:
            time.sleep(60)
    return run


def with_orbax(folder: Path, fatal: int, last: int) -> Any:
    """Saves in the background. The fatal one has been started when the process dies."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as manager:
        done = manager.latest_step()
        arrays, rest = eqx.partition(fresh_run(0 if done is None else 5), eqx.is_array)
        if done is not None:
            arrays = manager.restore(done, args=ocp.args.StandardRestore(arrays))

        def save(step: int, run: Any) -> None:
            manager.save(step, args=ocp.args.StandardSave(eqx.filter(run, eqx.is_array)))
            if step == fatal:
                die()

        return train(eqx.combine(arrays, rest), save, last)


def with_equinox(folder: Path, fatal: int, last: int) -> Any:
    """Saves to another name, then renames. The fatal one is written by half when the process dies."""
    path, unfinished = folder / "run.eqx", folder / "run.unfinished"
    run = fresh_run(5 if path.exists() else 0)
    if path.exists():
        run = eqx.tree_deserialise_leaves(path, run, filter_spec=ps.deserialise_filter_spec)

    def save(step: int, run: Any) -> None:
        eqx.tree_serialise_leaves(unfinished, run, filter_spec=ps.serialise_filter_spec)
        if step == fatal:
            os.truncate(unfinished, unfinished.stat().st_size // 2)
            die()
        os.replace(unfinished, path)

    return train(run, save, last)


def digest(run: Any) -> str:
    """All arrays of a run, bit for bit, with their dtypes and shapes."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(run, eqx.is_array)):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jr.key_data(leaf) if is_key else leaf)
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(data.tobytes())
    return found.hexdigest()


def main(how: str, folder: Path, fatal: int, last: int) -> None:
    if how == "nothing":
        run = train(fresh_run(0), lambda step, run: None, last)
    else:
        run = {"orbax": with_orbax, "equinox": with_equinox}[how](folder, fatal, last)
    print("DIGEST", digest(run), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
