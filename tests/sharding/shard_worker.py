"""One of the processes of `test_processes_share.py`: two devices of a mesh of four, and what it got.

Arguments: the coordinator's port, and the number of this process.
"""

import os
import sys


if __name__ == "__main__":  # not where a test imports it, which has devices of its own
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    os.environ["JAX_PLATFORMS"] = "cpu"

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import AxisType, PartitionSpec as P

import pstate as ps


RULES = {P("data"): (ps.HiddenState, ps.filter.PathContains("keys")), P(): ...}


def model() -> dict[str, Any]:
    return {
        "h": ps.HiddenState(jnp.arange(8.0)),
        "keys": jr.split(jr.key(1), 4),
        "rng": ps.RandomState(0),
    }


def shared_step(tree: Any) -> Any:
    noise = tree["rng"].normal(size=(8,))
    tree["h"].value = tree["h"].value + noise
    return tree["h"].value.sum()


def make(key: Any) -> Any:
    return ps.ParamState(jr.normal(key, (8, 2)))


def own(x: Any) -> list[Any]:
    """The shards of this process, in order, as numbers."""
    data = jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    found = {str(shard.index): shard.data.tolist() for shard in data.addressable_shards}
    return [found[index] for index in sorted(found)]


def main(port: str, process: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=2, process_id=process, initialization_timeout=60
    )
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tree = ps.shard(model(), RULES, mesh)
    before = {"h": own(tree["h"].value), "keys": own(tree["keys"]), "rng": own(tree["rng"].value)}
    run = ps.pure(ps.jit(shared_step, donate=ps.HiddenState))
    total: Any = None
    for _ in range(3):
        total, tree = run(tree)
    made = ps.sharded_init(make, P("data"), mesh)(jr.key(3))
    after = {"h": own(tree["h"].value), "rng": own(tree["rng"].value), "w": own(made.value)}
    print("RESULT", {"before": before, "after": after, "total": own(total)}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
