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


def _build_loop(job: Job, carried: bool = False, anew: bool = False) -> Built:
    """A loop that is called eagerly.

    JAX finds the traced body by the identity of the function, so a body that stays the same object
    must not hold what may change: either the parameters are `carried`, or they never change.
    """
    params = tuple(job.params)

    def step(params: Any, counters: Any, x: Any) -> tuple[Any, Any]:
        job.enter_body()
        written = []
        for param, counter in zip(params, counters, strict=True):
            counter = counter + x
            x = x + param * counter
            written.append(counter)
        return tuple(written), x

    def closed_over() -> Callable[..., tuple[Any, Any]]:
        return lambda counters, x: step(params, counters, x)

    def with_params(carry: Any, x: Any) -> tuple[Any, Any]:
        params, counters = carry
        written, x = step(params, counters, x)
        return (params, written), x

    body = with_params if carried else closed_over()
    carry: Any = (params, tuple(job.counters)) if carried else tuple(job.counters)

    def call() -> jax.Array:
        nonlocal carry
        carry, ys = jax.lax.scan(closed_over() if anew else body, carry, job.xs)
        return ys

    return Built(call, lambda: list(carry[1] if carried else carry))


LIMIT = Contenders(
    warm=(Contender("jax.jit(flat)", lambda job: _build(job, jax.jit)),),
    mapped=(
        Contender("jax.jit(jax.vmap(flat))", lambda job: _build(job, lambda f: jax.jit(jax.vmap(f)))),
    ),
    loops=(
        Contender("jax.lax.scan(flat)", _build_loop),
        Contender("jax.lax.scan(flat), all in the carry", lambda job: _build_loop(job, carried=True)),
        Contender("jax.lax.scan(flat), new body", lambda job: _build_loop(job, anew=True)),
    ),
)
