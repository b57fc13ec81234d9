"""The job in Equinox, threaded by hand: arrays stand in modules, which the body rebuilds."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from job import FEW, Built, Contender, Contenders, Job, linears


def _build(job: Job, transform: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Built:
    class Layer(eqx.Module):
        param: jax.Array
        counter: jax.Array

    class Model(eqx.Module):
        layers: list[Layer]

    def step(model: Any, x: Any) -> tuple[Any, Any]:
        job.enter_body()
        layers = []
        for layer in model.layers:
            counter = layer.counter + x
            x = x + layer.param * counter
            layers.append(Layer(layer.param, counter))
        return x, Model(layers)

    run = transform(step)
    model = Model([Layer(*pair) for pair in zip(job.params, job.counters, strict=True)])

    def call() -> jax.Array:
        nonlocal model
        x, model = run(model, job.x)
        return x

    return Built(call, lambda: [layer.counter for layer in model.layers])


def _build_few(job: Job) -> Built:
    class Model(eqx.Module):
        linears: list[eqx.nn.Linear]
        means: list[jax.Array]

    @jax.jit
    def step(model: Any, x: Any) -> tuple[Any, Any]:
        job.enter_body()
        for linear in model.linears:
            x = linear(x)
        return x, Model(model.linears, [0.5 * mean + x for mean in model.means])

    model = Model(linears(), job.counters[:FEW])

    def call() -> jax.Array:
        nonlocal model
        x, model = step(model, job.x)
        return x

    return Built(call, lambda: model.means)


#: The limit of the job with few states. Over flat lists the twin would not return the layers at all.
FEW_BY_HAND = Contenders(warm=(), mapped=(), few=(Contender("jax.jit(f) over modules", _build_few),))

EQUINOX = Contenders(
    warm=(
        Contender("eqx.filter_jit(f)", lambda job: _build(job, eqx.filter_jit)),
        Contender("jax.jit(f) over modules", lambda job: _build(job, jax.jit)),
    ),
    mapped=(
        Contender(
            "eqx.filter_jit(eqx.filter_vmap(f))",
            lambda job: _build(job, lambda f: eqx.filter_jit(eqx.filter_vmap(f))),
        ),
        Contender("eqx.filter_vmap(f)", lambda job: _build(job, eqx.filter_vmap)),
    ),
)
