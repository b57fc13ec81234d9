"""How times are taken.

A *round* calls each contender once, in a newly drawn order, so that whatever else the machine does
falls on all of them alike. A contender's ratio is the median, over the rounds that it played, of its
time over the limit's time in the same round. The garbage collector is off while the clock runs.

The first contender is the limit, and plays every round.
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


Call = Callable[[], jax.Array]

#: Untimed calls before a timed one: the contender before has filled the processor's caches.
_SETTLING = 3

#: Calls longer than this (in seconds) do without.
_LONG = 0.01

#: Rounds between two collections of garbage.
_COLLECT_EVERY = 20

#: Rounds that are played whatever they cost.
_AT_LEAST = 3


@dataclasses.dataclass
class Measured:
    """Seconds by round, and how the contender failed if it did.

    `before_xla` is the part of a cold call that is not XLA's compiler. Rounds that a slow contender sat
    out are missing.
    """

    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    before_xla: dict[int, float] = dataclasses.field(default_factory=dict)
    failed: Exception | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds.values())

    def ratio(self, limit: "Measured") -> float:
        """This over the limit, as the median over rounds."""
        return _ratio(self.seconds, limit.seconds)

    def ratio_before_xla(self, limit: "Measured") -> float:
        """The same for the part of a cold call that is not XLA's compiler."""
        return _ratio(self.before_xla, limit.before_xla)

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Keep an exception instead of letting it end the run."""
        try:
            yield
        except Exception as error:
            self.failed = error


def _ratio(own: Mapping[int, float], limit: Mapping[int, float]) -> float:
    return statistics.median(seconds / limit[i] for i, seconds in own.items())


def warm(calls: Mapping[str, Call], rounds: int, budget: float) -> dict[str, Measured]:
    """Time calls that were called before, until the rounds or the budget (in seconds) are used up.

    Each call runs untimed first, as in a loop that does nothing else. Contenders so slow that they would
    use up more than their share of the budget play every k-th round.
    """
    measured = {name: Measured() for name in calls}
    strides = dict.fromkeys(calls, 1)
    for name in list(calls)[1:]:
        with measured[name].catching():
            once = min(_time(calls[name]), _time(calls[name]))
            each = once * (1 + _settling(once))
            strides[name] = max(1, round(each * rounds * len(calls) / budget))
    order = random.Random(0)
    with _quiet():
        for i in _rounds(rounds, budget):
            if i % _COLLECT_EVERY == 0:
                gc.collect()
            playing = [name for name in calls if i % strides[name] == 0 and not measured[name].failed]
            for name in order.sample(playing, len(playing)):
                with measured[name].catching():
                    for _ in range(_settling(measured[name].seconds.get(0, 0.0))):
                        calls[name]().block_until_ready()
                    measured[name].seconds[i] = _time(calls[name])
    return measured


def cold(
    contenders: Sequence[Contender], job: Callable[[], Job], rounds: int, budget: float
) -> dict[str, Measured]:
    """Time first calls of new functions and classes, with JAX's caches empty."""
    measured = {contender.name: Measured() for contender in contenders}
    order = random.Random(0)
    for i in _rounds(rounds, budget):
        playing = [contender for contender in contenders if not measured[contender.name].failed]
        for contender in order.sample(playing, len(playing)):
            own = measured[contender.name]
            with own.catching():
                call = contender.build(job()).call
                jax.clear_caches()
                with _quiet(), _compiling() as spent:
                    seconds = _time(call)
                own.seconds[i] = seconds
                own.before_xla[i] = seconds - sum(spent)
    return measured


def _settling(seconds: float) -> int:
    return _SETTLING if seconds < _LONG else 0


def _rounds(rounds: int, budget: float) -> Iterator[int]:
    start = time.perf_counter()
    for i in range(rounds):
        if i < _AT_LEAST or time.perf_counter() - start < budget:
            yield i


def _time(call: Call) -> float:
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


# JAX tells every listener, and forgets none: one listener, which passes events on to the current one.
_asking: list[list[float]] = []


def _on_duration(event: str, duration_secs: float, **kwargs: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        for spent in _asking:
            spent.append(duration_secs)


monitoring.register_event_duration_secs_listener(_on_duration)


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    """The seconds that each run of XLA's compiler takes, collected in a list."""
    spent: list[float] = []
    _asking.append(spent)
    try:
        yield spent
    finally:
        _asking.remove(spent)
