"""The limit: the job threaded by hand over flat lists of arrays, passed positionally.

What was only read, the parameters, is not returned.
"""

from collections.abc import Callable
from typing import Any

import jax

from job import Built, Contender, Contenders, Job


def _build(job: Job, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Built:
    n = job.layers

    def flat(x: Any, *leaves: Any) -> tuple[Any, ...]:
        job.enter_body()
        params, counters = leaves[:n], leaves[n:]
        written = []
        for param, counter in zip(params, counters, strict=True):
            counter = counter + x
            x = x + param * counter
            written.append(counter)
        return x, *written

    run = compiled(flat)
    params = tuple(job.params)
    counters = tuple(job.counters)

    def call() -> jax.Array:
        nonlocal counters
        x, *counters = run(job.x, *params, *counters)
        return x

    return Built(call, lambda: list(counters))


LIMIT = Contenders(
    warm=(Contender("jax.jit(flat)", lambda job: _build(job, jax.jit)),),
    mapped=(
        Contender("jax.jit(jax.vmap(flat))", lambda job: _build(job, lambda f: jax.jit(jax.vmap(f)))),
    ),
)
