"""A network trained on handwritten digits by several processes, on all of their devices.

`Run.train` below is one training step, written for a *lane*: the part of a minibatch that goes through
the network together. Where lanes have to agree it says `jax.lax.pmean(value, "data")`: on the statistics
of the minibatch, and on the gradient. There are eight lanes, always, and two ways to run them:

| `--how` | is | parameters | devices |
|---|---|---|---|
| `shard_map2` | `ps.shard_map2`: a device for each lane, and the collectives as written | whole | 8 |
| `jit` | `ps.vmap2` in `ps.jit`, on sharded arrays: XLA puts collectives in | cut | 1, 2, 4 or 8 |

Both split the random stream of the dropout masks into the same keys, one per lane. So the losses are the
same up to rounding, whatever the number of processes and devices, even if a run is stopped and continues
from its checkpoint on another number of them.

    pip install -e ".[examples]"
    python examples/data_parallel.py --processes 2 --checkpoint digits_run
    python examples/data_parallel.py --processes 1 --checkpoint digits_run --resume --steps 600

Each command starts its processes, which share eight forced CPU devices and talk over loopback. On
several machines, start one on each yourself: give its number with `--process`, and with `--coordinator`
the address and port at which process 0 listens.
"""

import argparse
import contextlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.datasets import load_digits
from tqdm import tqdm

import pstate as ps


LANES = 8
PIXELS, HIDDEN, CLASSES = 64, 64, 10
BATCH = 8  # digits of a lane in a step
TRAINED, TESTED = 168, 56  # digits that a lane has to train and to test on
OPTIM = optax.adam(2e-3)
GRACE = 20  # seconds that the other processes have to end by themselves when one is lost


# The network ----------------------------------------------------------------------------------------


class Layer(eqx.Module):
    """A hidden layer: linear, normalised over the minibatches of all lanes, rectified, dropped out."""

    weight: ps.ParamState[Float[Array, "features_in features"]]
    scale: ps.ParamState[Float[Array, " features"]]
    bias: ps.ParamState[Float[Array, " features"]]
    mean: ps.BatchState[Float[Array, " features"]]
    variance: ps.BatchState[Float[Array, " features"]]
    dropout: ps.nn.Dropout
    inference: bool

    def __init__(self, features_in: int, features: int, key: PRNGKeyArray):
        weight_key, dropout_key = jr.split(key)
        self.weight = ps.ParamState(jr.normal(weight_key, (features_in, features)) / features_in**0.5)
        self.scale = ps.ParamState(jnp.ones(features))
        self.bias = ps.ParamState(jnp.zeros(features))
        self.mean = ps.BatchState(jnp.zeros(features))
        self.variance = ps.BatchState(jnp.ones(features))
        self.dropout = ps.nn.Dropout(0.2, key=dropout_key)
        self.inference = False

    def __call__(self, x: Float[Array, "batch features_in"]) -> Float[Array, "batch features"]:
        x = x @ self.weight.value
        mean, variance = self.mean.value, self.variance.value
        if not self.inference:
            # Both in one collective, because each makes the processes wait for each other.
            mean, square = jax.lax.pmean((x.mean(axis=0), (x**2).mean(axis=0)), "data")
            variance = square - mean**2
            self.mean.value = 0.9 * self.mean.value + 0.1 * mean
            self.variance.value = 0.9 * self.variance.value + 0.1 * variance
        x = self.scale.value * (x - mean) * jax.lax.rsqrt(variance + 1e-5) + self.bias.value
        return self.dropout(jax.nn.relu(x))


class Network(eqx.Module):
    """From images to the logits of the ten digits."""

    layers: list[Layer]
    readout: ps.ParamState[Float[Array, "features 10"]]

    def __init__(self, key: PRNGKeyArray):
        key1, key2, key3 = jr.split(key, 3)
        self.layers = [Layer(PIXELS, HIDDEN, key1), Layer(HIDDEN, HIDDEN, key2)]
        self.readout = ps.ParamState(jr.normal(key3, (HIDDEN, CLASSES)) / HIDDEN**0.5)

    def __call__(self, images: Float[Array, "batch 64"]) -> Float[Array, "batch 10"]:
        x = images
        for layer in self.layers:
            x = layer(x)
        return x @ self.readout.value


def loss(
    network: Network, images: Float[Array, "batch 64"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The mean cross-entropy of one lane."""
    return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()


def parameters(network: Network) -> dict[str, Array]:
    """The values of the parameters by place; of a gradient, what belongs to them."""
    found = ps.states(network, ps.ParamState)
    return {".".join(map(str, path)): state.value for path, state in found.items()}


class Run(eqx.Module):
    """All that training changes, in states; and so all that a checkpoint has to hold."""

    network: Network
    moments: ps.State[Any]
    step: ps.State[Int[Array, ""]]

    def __init__(self, key: PRNGKeyArray):
        self.network = Network(key)
        self.moments = ps.State(OPTIM.init(parameters(self.network)), tag="moments")
        self.step = ps.State(jnp.zeros((), int))

    def train(self, images: Float[Array, "batch 64"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
        """One step, for one lane. Returns the mean loss of all of them."""
        value, gradient = ps.value_and_grad(loss)(self.network, images, labels)
        value, gradient = jax.lax.pmean((value, parameters(gradient)), "data")
        old = parameters(self.network)
        updates, self.moments.value = OPTIM.update(gradient, self.moments.value, old)
        new: Any = optax.apply_updates(old, updates)
        ps.update(self.network, new)
        self.step.value += 1
        return value


# On many devices ------------------------------------------------------------------------------------


def start(how: str, mesh: Mesh) -> Run:
    """A new run, each array made on the devices where it will live."""
    cut = {ps.largest("data", min_size=512): (ps.ParamState, "moments"), P(): ...}
    return ps.sharded_init(Run, P() if how == "shard_map2" else cut, mesh)(jr.key(0))


def make_step(how: str, mesh: Mesh) -> Callable[..., tuple[Float[Array, ""], Run]]:
    """`Run.train` in all lanes, compiled: `loss, run = step(run, images, labels)`."""
    if how == "shard_map2":
        specs = P(), P("data"), P("data")
        sharded = ps.shard_map2(Run.train, mesh=mesh, in_specs=specs, out_specs=P(), donate=...)
        return ps.pure(sharded)
    mapped = ps.vmap2(Run.train, in_axes=(None, 0, 0), out_axes=None, axis_name="data")

    @ps.jit(donate_argnums=0)
    def step(
        run: Run, images: Float[Array, "batch 64"], labels: Int[Array, " batch"]
    ) -> Float[Array, ""]:
        return mapped(run, images.reshape(LANES, -1, PIXELS), labels.reshape(LANES, -1))

    return ps.pure(step)


@ps.jit
def accuracy(
    network: Network, images: Float[Array, "batch 64"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The share of images that a network in inference mode classifies correctly."""
    return (network(images).argmax(axis=-1) == labels).mean()


class Digits:
    """The digits of the lanes of one process, and minibatches as parts of what all processes have.

    Which digits are whose does not depend on the number of processes, and a minibatch follows from the
    number of the step: there is no place in the data to be saved. The digits come in one file; where
    there are many, each process would open its own alone.
    """

    def __init__(self, mesh: Mesh, process: int, processes: int):
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))[: LANES * (TRAINED + TESTED)]
        own = np.split(order.reshape(LANES, -1), processes)[process]
        self.images, self.labels = images[own].astype(np.float32) / 16, labels[own].astype(np.int32)
        self.sharding = NamedSharding(mesh, P("data"))

    def _of_all(self, which: Int[np.ndarray, " digits"]) -> tuple[Array, Array]:
        local = self.images[:, which].reshape(-1, PIXELS), self.labels[:, which].reshape(-1)
        images, labels = (jax.make_array_from_process_local_data(self.sharding, x) for x in local)
        return images, labels

    def minibatch(self, step: int) -> tuple[Array, Array]:
        """Images and labels of one training step, of all lanes."""
        epoch, place = divmod(step, TRAINED // BATCH)
        order = np.random.default_rng(epoch).permutation(TRAINED)
        return self._of_all(order[place * BATCH : (place + 1) * BATCH])

    def to_test(self) -> tuple[Array, Array]:
        """What no lane trains on."""
        return self._of_all(np.arange(TRAINED, TRAINED + TESTED))


# Training -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def checkpoints(folder: Path | None, every: int) -> Iterator[ocp.CheckpointManager | None]:
    """What saves every few steps, in the background, each process its own part; `None` for no folder."""
    if folder is None:
        yield None
        return
    # With JAX 0.6 Orbax cannot share out the writing of what is whole on all devices.
    if not hasattr(jax, "set_mesh"):
        handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=2)
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        yield manager


def is_key(x: Any) -> bool:
    """Whether an array holds typed keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_save(run: Run) -> Run:
    """The arrays of a run; of keys their data, which Orbax takes in any version of JAX."""
    arrays = eqx.filter(run, eqx.is_array)
    return jax.tree.map(lambda x: jr.key_data(x) if is_key(x) else x, arrays)


def restored(run: Run, manager: ocp.CheckpointManager | None, resume: bool) -> Run:
    """A run as it was saved last, where the arrays of `run` live; without `resume`, `run` itself."""
    done = None if manager is None else manager.latest_step()
    if resume and (manager is None or done is None):
        raise SystemExit("There is nothing to resume from: no finished checkpoint in --checkpoint.")
    if not resume and done is not None:
        raise SystemExit(
            f"--checkpoint holds a run of {done} steps: add --resume, or name another folder."
        )
    if manager is None or done is None:
        return run
    arrays, rest = eqx.partition(run, eqx.is_array)
    found = manager.restore(done, args=ocp.args.StandardRestore(to_save(run)))
    as_keys = lambda old, new: jr.wrap_key_data(new, impl=jr.key_impl(old)) if is_key(old) else new
    return eqx.combine(jax.tree.map(as_keys, arrays, found), rest)


def train(options: argparse.Namespace) -> None:
    """What each process does, once it has met the others."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    digits = Digits(mesh, jax.process_index(), jax.process_count())
    step = make_step(options.how, mesh)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoints(options.checkpoint, options.every))
        run = restored(start(options.how, mesh), manager, options.resume)
        done = int(run.step.value)
        log = stack.enter_context(options.log.open("a")) if options.log and first else None
        bar = tqdm(initial=done, total=options.steps, unit="step", mininterval=0.25, disable=not first)
        stack.enter_context(bar)
        for i in range(done, options.steps):
            value, run = step(run, *digits.minibatch(i))
            if manager is not None:
                last = i + 1 == options.steps
                manager.save(i + 1, args=ocp.args.StandardSave(to_save(run)), force=last)
            if log:
                print(i + 1, float(value), file=log, flush=True)
            if bar.update():
                bar.set_postfix(loss=f"{float(value):.4f}")
    right = float(accuracy(eqx.nn.inference_mode(run.network), *digits.to_test()))
    if first:
        count, devices = jax.process_count(), jax.device_count()
        print(f"processes: {count}, devices: {devices}, test accuracy: {right:.1%}")


# Processes ------------------------------------------------------------------------------------------


def join(options: argparse.Namespace) -> None:
    """Meet the other processes; or end, with a word on why, when one has not come in time."""

    def give_up() -> None:
        print(
            f"Process {options.process} waited {options.timeout} seconds at {options.coordinator}, and "
            f"not all of the {options.processes} processes came. Start each of --process 0 to "
            f"{options.processes - 1}, with one --coordinator: where process 0 can be reached.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    # JAX ends a process that waited in vain, but says only that another one has probably died.
    watch = threading.Timer(options.timeout, give_up)
    watch.daemon = True
    watch.start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX 0.6 lets nobody set the last two: there a silent process is missed after 100 seconds.
    known = inspect.signature(jax.distributed.initialize).parameters
    seconds = {
        "initialization_timeout": options.timeout + 30,
        "heartbeat_timeout_seconds": options.timeout,
        "shutdown_timeout_seconds": options.timeout,
    }
    jax.distributed.initialize(
        options.coordinator,
        num_processes=options.processes,
        process_id=options.process,
        **{name: value for name, value in seconds.items() if name in known},
    )
    watch.cancel()


def work(options: argparse.Namespace) -> None:
    """Be one of the processes."""
    try:
        join(options)
        train(options)
    except BaseException as error:
        if isinstance(error, SystemExit):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # JAX, on its way out, would wait for the others, one of which may be lost


def launch(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start all processes on this machine, and see them end. If one is lost, all are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    count = options.devices // options.processes
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, *argv, "--coordinator", coordinator, "--process"]
    workers = [subprocess.Popen([*command, str(i)], env=env) for i in range(options.processes)]
    try:
        for i, worker in enumerate(workers):
            print(f"process {i} of {len(workers)}: pid {worker.pid}", flush=True)
        patience = float("inf")
        while None in (codes := [worker.poll() for worker in workers]) and time.monotonic() < patience:
            time.sleep(0.05)
            if any(codes):
                # Those that are left have some time to see for themselves that one is lost, and say so.
                patience = min(patience, time.monotonic() + GRACE)
        for i, code in enumerate(codes):
            if code != 0:
                print(f"process {i} of {len(workers)}: {how_it_ended(code)}", file=sys.stderr)
        return int(any(code != 0 for code in codes))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def how_it_ended(code: int | None) -> str:
    """The message about a process that did not end well."""
    if code is None:
        return f"ended by this command, {GRACE} seconds after another one"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line options."""
    parser = argparse.ArgumentParser(description="Handwritten digits, over several processes.")
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=int, default=LANES, help=f"in all (default: {LANES})")
    parser.add_argument("--how", choices=("shard_map2", "jit"), default="shard_map2")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    parser.add_argument("--checkpoint", type=Path, help="a folder to save in")
    parser.add_argument("--every", type=int, default=50, help="steps between saves (default: 50)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--log", type=Path, help="a file for the loss of each step")
    parser.add_argument("--timeout", type=int, default=60, help="seconds to wait for a process")
    parser.add_argument("--process", type=int, help="be this process only, and start no others")
    parser.add_argument("--coordinator", help="address and port at which process 0 listens")
    options = parser.parse_args(argv)
    processes, devices = options.processes, options.devices
    if min(processes, devices) < 1 or LANES % devices or devices % processes:
        parser.error(
            f"{LANES} lanes cannot be shared evenly by {devices} devices of {processes} processes"
        )
    if options.how == "shard_map2" and devices != LANES:
        parser.error(f"shard_map2 takes a device for each of the {LANES} lanes; fewer do with --how jit")
    if (options.process is None) != (options.coordinator is None):
        parser.error("--process and --coordinator go together")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example with command line options."""
    argv = sys.argv[1:] if argv is None else argv
    options = parsed(argv)
    if options.process is not None:
        work(options)
    else:
        sys.exit(launch(options, argv))


if __name__ == "__main__":
    main()
