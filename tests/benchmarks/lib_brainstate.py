"""The job in brainstate, where states are objects that calls change, and functions close over them."""

from collections.abc import Callable
from typing import Any

import brainstate  # pyright: ignore[reportMissingImports]
import jax
from brainstate import transform as bt  # pyright: ignore[reportMissingImports]

from job import Built, Contender, Contenders, Job


# Both take more than the types of their keywords say. Older releases have no `vmap2`.
_jit: Any = bt.jit
_vmap2: Any = getattr(bt, "vmap2", None)


def _build(job: Job, transform: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Built:
    class Layer(brainstate.nn.Module):
        def __init__(self, param: Any, counter: Any):
            super().__init__()
            self.param = brainstate.ParamState(param)
            self.counter = brainstate.ShortTermState(counter)

    layers: list[Any] = [Layer(*pair) for pair in zip(job.params, job.counters, strict=True)]

    def step(x: Any) -> Any:
        job.enter_body()
        for layer in layers:
            layer.counter.value = layer.counter.value + x
            x = x + layer.param.value * layer.counter.value
        return x

    run = transform(step)

    def call() -> jax.Array:
        return run(job.x)

    return Built(call, lambda: [layer.counter.value for layer in layers])


def _mapped() -> tuple[Contender, ...]:
    if _vmap2 is None:
        return ()
    everything = {0: brainstate.State}
    vmap2 = _vmap2(in_axes=0, out_axes=0, state_in_axes=everything, state_out_axes=everything)
    return (
        Contender("brainstate jit(vmap2(f))", lambda job: _build(job, lambda f: _jit(vmap2(f)))),
        Contender("brainstate vmap2(f)", lambda job: _build(job, vmap2)),
    )


BRAINSTATE = Contenders(
    warm=(Contender("brainstate jit(f)", lambda job: _build(job, _jit)),),
    mapped=_mapped(),
)
