"""Two processes on loopback that share a mesh of four devices, against one process with all four."""

import ast
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np

import pstate as ps
from processes import environment
from sharding.devices import numbers
from sharding.shard_worker import make, model, shared_step


WORKER = Path(__file__).with_name("shard_worker.py")


def start() -> list[subprocess.Popen[str]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, str(WORKER), port]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([*command, str(process)], env=environment(), **pipes) for process in range(2)
    ]


def result(worker: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = worker.communicate(timeout=150)
    assert worker.returncode == 0, err[-2000:]
    line = next(line for line in out.splitlines() if line.startswith("RESULT"))
    return ast.literal_eval(line.removeprefix("RESULT "))


def whole(first: list[Any], second: list[Any]) -> np.ndarray:
    """The array whose shards two processes have, in the order of the mesh."""
    return np.concatenate([np.asarray(shard) for shard in (*first, *second)])


def test_a_mesh_over_two_processes():
    """Arrays and typed keys reach devices of other processes, states stay cut, and numbers agree."""
    workers = start()
    try:
        first, second = (result(worker) for worker in workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
    tree = model()
    before, others = first["before"], second["before"]
    np.testing.assert_array_equal(whole(before["h"], others["h"]), tree["h"].value)
    np.testing.assert_array_equal(whole(before["keys"], others["keys"]), numbers(tree["keys"]))
    assert before["rng"][0] == numbers(tree["rng"].value).tolist()
    total: Any = None
    for _ in range(3):
        total, tree = ps.pure(ps.jit(shared_step))(tree)
    after, others = first["after"], second["after"]
    np.testing.assert_allclose(whole(after["h"], others["h"]), tree["h"].value, rtol=1e-6)
    assert after["rng"][0] == others["rng"][0] == numbers(tree["rng"].value).tolist()
    np.testing.assert_allclose(first["total"][0], total, rtol=1e-6)
    expected = jax.jit(make)(jr.key(3)).value
    np.testing.assert_array_equal(whole(after["w"], others["w"]), expected)
