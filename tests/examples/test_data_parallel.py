"""`data_parallel.py` runs and does what it says; also where a process is killed, or never comes.

Machines may be slow and shared: a process has minutes to do what takes it seconds, and is killed after
that, with all that it started.
"""

import contextlib
import functools as ft
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jaxtyping import install_import_hook

import pstate as ps
from processes import environment


pytestmark = pytest.mark.once
EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 40
PATIENCE = 240  # seconds for what takes a few on an idle machine


@pytest.fixture(scope="module")
def example():
    """The example as a module. Its annotations, shapes and kinds of states included, are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        with install_import_hook("data_parallel", "beartype.beartype"):
            module = importlib.import_module("data_parallel")
        patch.setattr(module, "make_step", ft.cache(module.make_step))  # one program for all tests
        handler = module.ocp.type_handlers.get_type_handler(jax.Array)
        yield module
    module.ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    del sys.modules["data_parallel"]


@contextlib.contextmanager
def started(folder: Path, *options: object) -> Iterator[subprocess.Popen[bytes]]:
    """The example's command with what it prints in files of a folder. No process of it is left over."""
    command = [sys.executable, str(EXAMPLES / "data_parallel.py"), *map(str, options)]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        worker = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment(), start_new_session=True
        )
        try:
            yield worker
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def printed(folder: Path, name: str) -> str:
    return (folder / name).read_text()


def losses(log: Path) -> dict[int, float]:
    """The loss of each step, from the complete lines of a log."""
    lines = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []
    return {int(step): float(loss) for step, loss in map(str.split, lines)}


def agree(found: dict[int, float], expected: dict[int, float]) -> None:
    """Assert that these steps have the losses of the others, up to rounding."""
    np.testing.assert_allclose(
        list(found.values()), [expected[step] for step in found], rtol=1e-3, err_msg=str(list(found))
    )


@pytest.fixture(scope="module")
def whole(example, tmp_path_factory):
    """Losses of a run that was never stopped, in this process, on four devices by `jit`."""
    log = tmp_path_factory.mktemp("whole") / "log"
    example.train(example.parsed(["--how", "jit", "--steps", str(STEPS), "--log", str(log)]))
    found = losses(log)
    assert list(found) == list(range(1, STEPS + 1))
    return found


def test_it_learns(whole):
    """The losses fall, and are not those of a network that guesses."""
    values = list(whole.values())
    assert np.isfinite(values).all()
    assert np.mean(values[-5:]) < 0.5 * values[0]


def test_the_step_by_hand(example):
    """One step in eight lanes is a step on the whole minibatch, threaded by hand through raw JAX.

    By `jit`, matrices and the optimiser's moments of them stay in parts; what is small is whole.
    """
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    images, labels = example.Digits(mesh, 0, 1).minibatch(30)
    run = example.start("jit", mesh)
    old = example.parameters(run.network)
    shape = (example.BATCH, example.HIDDEN)

    def mask(rng):
        # A key per lane: split into one more than there are lanes, and the first stays.
        keys = jr.split(jr.wrap_key_data(np.asarray(jr.key_data(rng.value))), example.LANES + 1)[1:]
        draw = lambda key: jr.bernoulli(jr.split(key)[1], 0.8, shape)
        return np.asarray(jax.vmap(draw)(keys)).reshape(-1, example.HIDDEN)

    masks = [mask(layer.dropout.rng) for layer in run.network.layers]

    def by_hand(parameters):
        x, moments = images, []
        for i, kept in enumerate(masks):
            x = x @ parameters[f"layers.{i}.weight"]
            moments.append((x.mean(axis=0), x.var(axis=0)))
            x = (x - moments[-1][0]) / jnp.sqrt(moments[-1][1] + 1e-5)
            x = jax.nn.relu(parameters[f"layers.{i}.scale"] * x + parameters[f"layers.{i}.bias"])
            x = jnp.where(kept, x / 0.8, 0)
        logits = x @ parameters["readout"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moments

    @jax.jit
    def stepped(old):
        (value, moments), gradient = jax.value_and_grad(by_hand, has_aux=True)(old)
        updates, _ = example.OPTIM.update(gradient, example.OPTIM.init(old), old)
        return value, moments, optax.apply_updates(old, updates)

    value, moments, expected = stepped(old)
    loss, run = example.make_step("jit", mesh)(run, images, labels)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    found = example.parameters(run.network)
    assert found.keys() == expected.keys()
    for name, new in found.items():
        # Adam moves by the sign of a gradient, where that is next to nothing.
        np.testing.assert_allclose(new, expected[name], atol=1e-4)
    for layer, (mean, variance) in zip(run.network.layers, moments, strict=True):
        np.testing.assert_allclose(layer.mean.value, 0.1 * mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.variance.value, 0.9 + 0.1 * variance, rtol=1e-4)
    assert run.step.value == 1
    for tree in (found, run.moments.value[0].mu, run.moments.value[0].nu):
        parts = {name: x.addressable_shards[0].data.shape for name, x in tree.items()}
        assert parts["layers.0.weight"] == (example.PIXELS // 4, example.HIDDEN)
        assert parts["layers.1.bias"] == (example.HIDDEN,)
    for state in ps.states(run, (ps.BatchState, ps.RandomState)).values():
        assert state.value.is_fully_replicated


def test_a_process_has_its_own_digits(example):
    """Processes share the digits, in the order of lanes; none is trained and tested on."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    alone = example.Digits(mesh, 0, 1)
    assert alone.images.shape == (example.LANES, example.TRAINED + example.TESTED, example.PIXELS)
    pair = [example.Digits(mesh, i, 2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([one.images for one in pair]), alone.images)
    np.testing.assert_array_equal(np.concatenate([one.labels for one in pair]), alone.labels)
    epoch = [alone.minibatch(i)[0] for i in range(example.TRAINED // example.BATCH)]
    seen = np.concatenate(epoch).reshape(-1, example.PIXELS)
    everything = np.concatenate([seen, alone.to_test()[0]])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, alone.images.reshape(everything.shape)))


def test_two_processes_agree_with_one(whole, tmp_path):
    """One command starts both; the losses are those of one process, and only the first shows a bar."""
    with started(tmp_path, "--processes", 2, "--steps", 15, "--log", tmp_path / "log") as command:
        assert command.wait(PATIENCE) == 0, printed(tmp_path, "err")[-2000:]
    found = losses(tmp_path / "log")
    assert list(found) == list(range(1, 16))
    agree(found, whole)
    out = printed(tmp_path, "out")
    assert len(re.findall(r"^process \d of 2: pid \d+$", out, re.M)) == 2
    (right,) = re.findall(r"^processes: 2, devices: 8, test accuracy: (\d+\.\d)%$", out, re.M)
    assert float(right) > 50
    assert printed(tmp_path, "err").count("100%|") >= 1
    assert set(re.findall(r"\| (\d+)/15 ", printed(tmp_path, "err"))) <= {str(i) for i in range(16)}
    assert len(re.findall(r"0/15 \[00:00", printed(tmp_path, "err"))) == 1


def test_killed_and_resumed_elsewhere(whole, tmp_path):
    """One of two processes is killed. The other ends soon, and one process, with other devices, goes on.

    It runs by `jit`, on four devices; what was saved came from `shard_map2`, on eight. Parameters that
    were whole are cut then, and the losses are those of the run that was never stopped.
    """
    folder, log = tmp_path / "saved", tmp_path / "log"
    options = "--checkpoint", folder, "--log", log, "--every", 5
    with started(tmp_path, *options, "--processes", 2, "--steps", 100_000) as command:
        end = time.monotonic() + PATIENCE
        while not any(step >= 12 for step in losses(log)) and time.monotonic() < end:
            assert command.poll() is None, printed(tmp_path, "err")[-2000:]
            time.sleep(0.02)
        pid = int(re.findall(r"^process 1 of 2: pid (\d+)$", printed(tmp_path, "out"), re.M)[0])
        os.kill(pid, signal.SIGKILL)
        assert command.wait(100) == 1
    err = printed(tmp_path, "err")
    assert "process 1 of 2: SIGKILL\n" in err
    # The other one got an exception of the collective, or JAX aborted it. Where its devices were stuck,
    # and waited for each other, the command has ended it.
    how = "exit status 1|SIGABRT|ended by this command, .*"
    found = re.findall(f"process 0 of 2: ({how})$", err, re.M)  # perhaps after a bar
    assert len(found) == 1
    before = losses(log)
    agree({step: loss for step, loss in before.items() if step <= STEPS}, whole)

    log.unlink()
    more = "--processes", 1, "--devices", 4, "--how", "jit", "--resume", "--steps", STEPS
    with started(tmp_path, *options, *more) as command:
        assert command.wait(PATIENCE) == 0, printed(tmp_path, "err")[-2000:]
    after = losses(log)
    assert 5 < min(after) <= max(before) + 1
    assert (min(after) - 1) % 5 == 0
    assert max(after) == STEPS
    agree(after, whole)
    assert "processes: 1, devices: 4, " in printed(tmp_path, "out")


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_never_joins(process, tmp_path):
    """The one that waits for it says so in the time that it was given, and ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = "--process", process, "--coordinator", address, "--timeout", 2
    with started(tmp_path, *options) as command:
        assert command.wait(100) == 1
    assert printed(tmp_path, "err").splitlines()[-1] == (
        f"Process {process} waited 2 seconds at {address}, and not all of the 2 processes came. Start "
        "each of --process 0 to 1, with one --coordinator: where process 0 can be reached."
    )


def test_checkpoints_are_not_mixed_up(example, tmp_path):
    """A folder with a run in it is not written over, and one without is not resumed from."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    run = example.start("jit", mesh)
    with pytest.raises(SystemExit, match="There is nothing to resume from: no finished checkpoint in"):
        example.restored(run, None, resume=True)
    with example.checkpoints(tmp_path, 1) as manager:
        with pytest.raises(
            SystemExit, match="There is nothing to resume from: no finished checkpoint in"
        ):
            example.restored(run, manager, resume=True)
        assert example.restored(run, manager, resume=False) is run
        manager.save(7, args=example.ocp.args.StandardSave(example.to_save(run)))
        manager.wait_until_finished()
        with pytest.raises(
            SystemExit, match=r"--checkpoint holds a run of 7 steps: add --resume, or name"
        ):
            example.restored(run, manager, resume=False)
        again = example.restored(example.start("jit", mesh), manager, resume=True)
    assert eqx.tree_equal(again, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--devices 3", "8 lanes cannot be shared evenly by 3 devices of 2 processes"),
        ("--processes 3", "8 lanes cannot be shared evenly by 8 devices of 3 processes"),
        ("--processes 0", "8 lanes cannot be shared evenly by 8 devices of 0 processes"),
        ("--devices 4", "shard_map2 takes a device for each of the 8 lanes; fewer do with --how jit"),
        ("--process 1", "--process and --coordinator go together"),
    ],
)
def test_options_that_do_not_fit_are_refused(example, options, message, capsys):
    """They end with a message, before any work."""
    with pytest.raises(SystemExit):
        example.main(options.split())
    assert capsys.readouterr().err.endswith(f"error: {message}\n")
