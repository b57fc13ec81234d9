"""The job in Flax NNX, where variables are objects that calls change."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx  # pyright: ignore[reportMissingImports]

from job import Built, Contender, Contenders, Job


Bind = Callable[[Callable[..., Any], Any], Callable[..., Any]]


def _build(job: Job, bind: Bind) -> Built:
    class Counter(nnx.Variable): ...

    class Layer(nnx.Module):
        def __init__(self, param: Any, counter: Any):
            self.param = nnx.Param(param)
            self.counter = Counter(counter)

    class Model(nnx.Module):
        def __init__(self, layers: list[Layer]):
            self.layers = nnx.List(layers)

    def step(model: Any, x: Any) -> Any:
        job.enter_body()
        for layer in model.layers:
            layer.counter[...] = layer.counter[...] + x
            x = x + layer.param[...] * layer.counter[...]
        return x

    model: Any = Model([Layer(*pair) for pair in zip(job.params, job.counters, strict=True)])
    run = bind(step, model)

    def call() -> jax.Array:
        return run(job.x)

    return Built(call, lambda: [layer.counter[...] for layer in model.layers])


def _plain(transform: Callable[..., Callable[..., Any]]) -> Bind:
    def bind(step: Callable[..., Any], model: Any) -> Callable[..., Any]:
        run = transform(step)
        return lambda x: run(model, x)

    return bind


def _cached(transform: Callable[..., Callable[..., Any]]) -> Bind:
    return lambda step, model: nnx.cached_partial(transform(step), model)


FLAX = Contenders(
    warm=(
        Contender("nnx.jit(f)", lambda job: _build(job, _plain(nnx.jit))),
        Contender(
            "nnx.jit(f, graph=False)",
            lambda job: _build(job, _plain(lambda f: nnx.jit(f, graph=False))),
        ),
        Contender("nnx.cached_partial(nnx.jit(f), m)", lambda job: _build(job, _cached(nnx.jit))),
    ),
    mapped=(
        Contender(
            "nnx.jit(nnx.vmap(f))",
            lambda job: _build(job, _plain(lambda f: nnx.jit(nnx.vmap(f)))),
        ),
        Contender("nnx.vmap(f)", lambda job: _build(job, _plain(nnx.vmap))),
    ),
)
