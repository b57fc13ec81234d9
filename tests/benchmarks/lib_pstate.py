"""The job in pstate."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

import pstate as ps
from job import FEW, Built, Contender, Contenders, Job, linears


Pure = Callable[..., tuple[Any, Any]]


class Layer(eqx.Module):
    """A parameter and a counter."""

    param: ps.ParamState
    counter: ps.ShortTermState


def layers_of(job: Job) -> list[Layer]:
    """The layers of a job."""
    pairs = zip(job.params, job.counters, strict=True)
    return [Layer(ps.ParamState(param), ps.ShortTermState(counter)) for param, counter in pairs]


def _build(
    job: Job, pure: Callable[[Callable[..., Any]], Pure], anew: bool = False, packed: bool = False
) -> Built:
    class Model(eqx.Module):
        layers: list[Layer]

    def step(model: Any, x: Any) -> Any:
        job.enter_body()
        for layer in model.layers:
            layer.counter.value += x
            x = x + layer.param.value * layer.counter.value
        return x

    model = Model(layers_of(job))
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


def _build_method(job: Job, bind: Callable[[Any], Callable[..., Any]]) -> Built:
    class Model(eqx.Module):
        layers: list[Layer]

        def __call__(self, x: Any) -> Any:
            job.enter_body()
            for layer in self.layers:
                layer.counter.value += x
                x = x + layer.param.value * layer.counter.value
            return x

        step = ps.jit(__call__)

    model: Any = Model(layers_of(job))

    def call() -> jax.Array:
        nonlocal model
        x, model = ps.pure(bind(model))(job.x)
        return x

    return Built(call, lambda: [layer.counter.value for layer in model.layers])


def _build_loop(job: Job, scans: bool = False, anew: bool = False) -> Built:
    class Model(eqx.Module):
        layers: list[Layer]

        def __call__(self, x: Any) -> Any:
            return step(self, x)

    def step(model: Any, x: Any) -> Any:
        job.enter_body()
        for layer in model.layers:
            layer.counter.value += x
            x = x + layer.param.value * layer.counter.value
        return x

    def with_carry(model: Any, steps: Any, x: Any) -> tuple[Any, Any]:
        return steps + 1, step(model, x)

    def scan(model: Any, xs: Any) -> Any:
        return ps.scan(ft.partial(with_carry, model), 0, xs)[1]

    def with_a_new_body(model: Any, xs: Any) -> Any:
        return ps.for_loop(ft.partial(lambda model, x: step(model, x), model), xs)

    model = Model(layers_of(job))
    loop: Any = scan if scans else with_a_new_body if anew else ps.for_loop
    run = ps.pure(loop)

    def call() -> jax.Array:
        nonlocal model
        ys, model = run(model, job.xs)
        return ys

    return Built(call, lambda: [layer.counter.value for layer in model.layers])


def _build_few(job: Job, pure: Callable[[Callable[..., Any]], Pure], packed: bool = False) -> Built:
    class Model(eqx.Module):
        linears: list[eqx.nn.Linear]
        means: list[ps.BatchState]

    def step(model: Any, x: Any) -> Any:
        job.enter_body()
        for linear in model.linears:
            x = linear(x)
        for mean in model.means:
            mean.value = 0.5 * mean.value + x
        return x

    run = pure(step)
    model: Any = Model(linears(), [ps.BatchState(mean) for mean in job.counters[:FEW]])
    if packed:
        model = ps.pack(model)

    def call() -> jax.Array:
        nonlocal model
        x, model = run(model, job.x)
        return x

    def means() -> list[Any]:
        return [mean.value for mean in (model.unpack() if packed else model).means]

    return Built(call, means)


PSTATE = Contenders(
    warm=(
        Contender("ps.pure(ps.jit(f))", lambda job: _build(job, lambda f: ps.pure(ps.jit(f)))),
        Contender(
            "ps.pure(ps.jit(f)), packed",
            lambda job: _build(job, lambda f: ps.pure(ps.jit(f)), packed=True),
        ),
        Contender("ps.pure(m.step), @ps.jit", lambda job: _build_method(job, lambda m: m.step)),
        Contender("ps.pure(ps.jit(m))", lambda job: _build_method(job, ps.jit)),
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
    loops=(
        Contender("ps.pure(ps.for_loop)", _build_loop),
        Contender("ps.pure(f), with ps.scan in f", lambda job: _build_loop(job, scans=True)),
        Contender("ps.for_loop, new body", lambda job: _build_loop(job, anew=True)),
    ),
    few=(
        Contender("ps.pure(ps.jit(f))", lambda job: _build_few(job, lambda f: ps.pure(ps.jit(f)))),
        Contender(
            "ps.pure(ps.jit(f)), packed",
            lambda job: _build_few(job, lambda f: ps.pure(ps.jit(f)), packed=True),
        ),
        Contender("jax.jit(ps.pure(f))", lambda job: _build_few(job, lambda f: jax.jit(ps.pure(f)))),
    ),
)
