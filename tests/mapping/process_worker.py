"""One of the processes of `test_processes.py`: maps over two of four devices, and says what it got.

Arguments: the coordinator's port, the number of this process, and what to do (`run` or `die`).
"""

import inspect
import os
import sys


if __name__ == "__main__":  # not where a test imports it, which has devices of its own
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

import pstate as ps


def step(tree, x):
    """A collective, a state per lane, a state that all share, and draws."""
    tree["own"].value += x
    tree["mean"].value = jax.lax.pmean(tree["own"].value, "devices")
    return tree["rng"].normal() + tree["mean"].value


def main(port: str, process: int, what: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX 0.6 has no such option; there a lost process is missed after 100 seconds.
    known = inspect.signature(jax.distributed.initialize).parameters
    soon = {"heartbeat_timeout_seconds": 10} if "heartbeat_timeout_seconds" in known else {}
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        num_processes=2,
        process_id=process,
        initialization_timeout=60,
        **soon,
    )
    if what == "die" and process == 1:
        os._exit(3)
    xs = jnp.arange(4.0)[2 * process : 2 * process + 2]
    tree = {"own": ps.State(jnp.zeros(2)), "mean": ps.State(0.0), "rng": ps.RandomState(0)}
    mapped = ps.pmap2(
        step,
        axis_name="devices",
        state_in_axes={0: ps.filter.PathContains("own"), None: ps.filter.PathContains("mean")},
        state_out_axes={None: ps.filter.PathContains("mean")},
    )
    out, tree = ps.pure(mapped)(tree, xs)
    own = [shard.data.item() for shard in tree["own"].value.addressable_shards]
    out = [shard.data.item() for shard in out.addressable_shards]
    mean = tree["mean"].value.addressable_shards[0].data.item()
    key = jax.random.key_data(tree["rng"].value).tolist()
    print("RESULT", {"own": own, "out": out, "mean": mean, "key": key}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
