"""Two processes on loopback, with two devices each, against one process with four."""

import ast
import inspect
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps
from mapping.process_worker import step
from processes import environment


WORKER = Path(__file__).with_name("process_worker.py")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(what: str) -> list[subprocess.Popen[str]]:
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), port, str(process), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for process in range(2)
    ]


def stop(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        for pipe in (worker.stdout, worker.stderr):
            if pipe is not None:
                pipe.close()
        worker.wait()


def result(worker: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = worker.communicate(timeout=150)
    assert worker.returncode == 0, err[-2000:]
    line = next(line for line in out.splitlines() if line.startswith("RESULT"))
    return ast.literal_eval(line.removeprefix("RESULT "))


def test_two_processes_agree_with_one():
    """A collective, states on devices and draws are those of one process with four devices."""
    workers = start("run")
    try:
        first, second = (result(worker) for worker in workers)
    finally:
        stop(workers)
    tree = {"own": ps.State(jnp.zeros(4)), "mean": ps.State(0.0), "rng": ps.RandomState(0)}
    mapped = ps.vmap2(
        step,
        axis_name="devices",
        state_in_axes={0: ps.filter.PathContains("own"), None: ps.filter.PathContains("mean")},
    )
    out, tree = ps.pure(mapped)(tree, jnp.arange(4.0))
    np.testing.assert_array_equal(first["own"] + second["own"], tree["own"].value)
    np.testing.assert_allclose(first["out"] + second["out"], out, rtol=1e-6)
    assert first["mean"] == second["mean"] == tree["mean"].value.item()
    assert first["key"] == second["key"] == jax.random.key_data(tree["rng"].value).tolist()


@pytest.mark.skipif(
    "heartbeat_timeout_seconds" not in inspect.signature(jax.distributed.initialize).parameters,
    reason="this JAX misses a lost process after 100 seconds, and the bound cannot be set",
)
def test_a_process_that_dies():
    """The other process fails within a bounded time, and does not hang."""
    workers = start("die")
    try:
        assert workers[1].wait(timeout=90) == 3
        try:
            workers[0].communicate(timeout=120)
        except subprocess.TimeoutExpired:
            pytest.fail("the surviving process hangs")
        assert workers[0].returncode != 0
    finally:
        stop(workers)
