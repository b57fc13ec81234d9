"""The reference job, and what a contender is.

The job: a model of N layers, each with one parameter and one counter (float32 vectors of size 4), hence
2 N states. The body loops over the layers: the counter grows by `x`, and `x` by the product of
parameter and counter. In a loop, each step runs that body on its own `x`.

The job with few states has many linear layers, which no step changes, and a few running means. Its
body calls all layers, and moves each mean towards the result.

A *contender* is one way to write that job. Its *body* is the function with the
loop, as a user would write it; the job counts how often it runs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr


#: The length of each parameter and counter.
WIDTH = 4

#: Lanes of the mapped call.
LANES = 4


#: Steps of a loop.
STEPS = 10

#: Linear layers, and states, of the job with few states.
LINEARS, FEW = 100, 4


class Job:
    """The numbers of one job. With `lanes`, every array has that many on a leading axis.

    The parameters are small and negative, so that thousands of calls in a row stay finite. A sum in the
    place of the product would not do: XLA takes seconds to compile a long chain of reductions.
    """

    def __init__(self, states: int, lanes: int | None = None):
        self.layers = states // 2
        self.bodies = 0
        shape = (WIDTH,) if lanes is None else (lanes, WIDTH)
        start = jnp.arange(WIDTH, dtype=jnp.float32) + jnp.zeros(shape)
        if lanes is not None:
            start = start + jnp.arange(lanes, dtype=jnp.float32)[:, None]
        self.x: jax.Array = jnp.ones(shape)
        self.xs: jax.Array = jnp.ones((STEPS, *shape))
        # Each state has a buffer of its own.
        self.params: list[jax.Array] = [jnp.full(shape, -0.001) for _ in range(self.layers)]
        self.counters: list[jax.Array] = [start * (i % 7) for i in range(self.layers)]

    def enter_body(self) -> None:
        """What every body calls first."""
        self.bodies += 1


def job_of(kind: str, states: int) -> tuple[Callable[[], Job], str]:
    """What makes the job for contenders of a kind, and how tables call its size."""
    if kind == "few":
        return lambda: Job(2 * FEW), f"{LINEARS} eqx.nn.Linear and {FEW} ps.BatchState"
    lanes = LANES if kind == "mapped" else None
    return lambda: Job(states, lanes), f"{states} states"


@dataclasses.dataclass
class Built:
    """A contender, ready to be called.

    `call` runs the job once more, from the states that the call before left, and returns `x`. `counters`
    gives the counters as they are now.
    """

    call: Callable[[], jax.Array]
    counters: Callable[[], list[Any]]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to write the job. `build` makes new functions and classes each time."""

    name: str
    build: Callable[[Job], Built]


@dataclasses.dataclass(frozen=True)
class Contenders:
    """The contenders of one library: for each kind of call."""

    warm: tuple[Contender, ...]
    mapped: tuple[Contender, ...]
    loops: tuple[Contender, ...] = ()
    few: tuple[Contender, ...] = ()


def linears() -> list[eqx.nn.Linear]:
    """The layers of the job with few states: the same numbers each time."""
    return [eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in jr.split(jr.key(0), LINEARS)]
