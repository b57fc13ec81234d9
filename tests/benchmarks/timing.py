"""How times are taken.

A *round* calls each contender once, in an order drawn anew, so that whatever else the machine does
falls on all of them alike. A contender's ratio is the median, over the rounds that it played, of its
time over the limit's time in the same round. The garbage collector is off while the clock runs.
"""

import contextlib
import dataclasses
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jax import monitoring

from job import Contender, Job


#: A call longer than this is not run once untimed before it is timed.
_LONG = 0.01

_COLLECT_EVERY = 20


@dataclasses.dataclass
class Measured:
    """Seconds by round. A round that a slow contender sat out is missing."""

    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    before_xla: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds.values())

    def ratio(self, limit: "Measured") -> float:
        """This over the limit, as the median over rounds."""
        return _ratio(self.seconds, limit.seconds)

    def ratio_before_xla(self, limit: "Measured") -> float:
        """The same for the part of a cold call that is not XLA's compiler."""
        return _ratio(self.before_xla, limit.before_xla)


def _ratio(own: Mapping[int, float], limit: Mapping[int, float]) -> float:
    return statistics.median(seconds / limit[i] for i, seconds in own.items() if i in limit)


def warm(
    calls: Mapping[str, Callable[[], jax.Array]], rounds: int, budget: float
) -> dict[str, Measured]:
    """Time calls that have been called before. The first is the limit, and plays every round.

    Each call runs once untimed and then timed, as in a loop that does nothing else. Contenders so slow
    that they would use up more than their share of the budget (in seconds) play every k-th round.
    """
    share = budget / len(calls)
    strides = {}
    for name, call in calls.items():
        once = min(_time(call), _time(call))
        strides[name] = max(1, round(once * (1 if once > _LONG else 2) * rounds / share))
    strides[next(iter(calls))] = 1
    measured = {name: Measured() for name in calls}
    order = random.Random(0)
    start = time.perf_counter()
    with _quiet():
        for i in range(rounds):
            if i % _COLLECT_EVERY == 0:
                gc.collect()
            if i >= 3 and time.perf_counter() - start > budget:
                break
            playing = [name for name in calls if i % strides[name] == 0]
            for name in order.sample(playing, len(playing)):
                if measured[name].seconds.get(0, 0.0) < _LONG:
                    calls[name]().block_until_ready()
                measured[name].seconds[i] = _time(calls[name])
    return measured


def cold(
    contenders: Sequence[Contender], job: Callable[[], Job], rounds: int, budget: float
) -> dict[str, Measured]:
    """Time first calls of functions and classes made anew, with JAX's caches empty."""
    measured = {contender.name: Measured() for contender in contenders}
    order = random.Random(0)
    start = time.perf_counter()
    for i in range(rounds):
        if i >= 1 and time.perf_counter() - start > budget:
            break
        for contender in order.sample(contenders, len(contenders)):
            call = contender.build(job()).call
            jax.clear_caches()
            with _quiet(), _compiling() as spent:
                seconds = _time(call)
            measured[contender.name].seconds[i] = seconds
            measured[contender.name].before_xla[i] = seconds - sum(spent)
    return measured


def _time(call: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    call().block_until_ready()
    return time.perf_counter() - start


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


# Seconds that XLA's compiler takes go to whoever listens now; JAX offers no way to stop listening.
_listening: list[list[float]] = []


def _on_duration(event: str, seconds: float, **kwargs: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        for spent in _listening:
            spent.append(seconds)


monitoring.register_event_duration_secs_listener(_on_duration)


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    spent: list[float] = []
    _listening.append(spent)
    try:
        yield spent
    finally:
        _listening.remove(spent)
