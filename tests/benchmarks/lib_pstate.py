"""The job in pstate."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

import pstate as ps
from job import Built, Contender, Contenders, Job


Pure = Callable[..., tuple[Any, Any]]


def _build(
    job: Job, pure: Callable[[Callable[..., Any]], Pure], anew: bool = False, packed: bool = False
) -> Built:
    class Layer(eqx.Module):
        param: ps.ParamState
        counter: ps.ShortTermState

    class Model(eqx.Module):
        layers: list[Layer]

    def step(model: Any, x: Any) -> Any:
        job.enter_body()
        for layer in model.layers:
            layer.counter.value += x
            x = x + layer.param.value * layer.counter.value
        return x

    model = Model(
        [
            Layer(ps.ParamState(param), ps.ShortTermState(counter))
            for param, counter in zip(job.params, job.counters, strict=True)
        ]
    )
    run = pure(step)
    if packed:
        model = ps.pack(model)

    def call() -> jax.Array:
        nonlocal model
        x, model = (pure(step) if anew else run)(model, job.x)
        return x

    def counters() -> list[Any]:
        tree: Any = model.unpack() if packed else model  # pyright: ignore[reportAttributeAccessIssue]
        return [layer.counter.value for layer in tree.layers]

    return Built(call, counters)


PSTATE = Contenders(
    warm=(
        Contender("ps.pure(ps.jit(f))", lambda job: _build(job, lambda f: ps.pure(ps.jit(f)))),
        Contender(
            "ps.pure(ps.jit(f)), packed",
            lambda job: _build(job, lambda f: ps.pure(ps.jit(f)), packed=True),
        ),
        Contender("jax.jit(ps.pure(f))", lambda job: _build(job, lambda f: jax.jit(ps.pure(f)))),
    ),
    mapped=(
        Contender("ps.pure(ps.vmap2(f))", lambda job: _build(job, lambda f: ps.pure(ps.vmap2(f)))),
        Contender(
            "ps.pure(ps.vmap2(f)), new wrapper",
            lambda job: _build(job, lambda f: ps.pure(ps.vmap2(f)), anew=True),
        ),
        Contender(
            "jax.jit(ps.pure(ps.vmap2(f)))",
            lambda job: _build(job, lambda f: jax.jit(ps.pure(ps.vmap2(f)))),
        ),
    ),
)
