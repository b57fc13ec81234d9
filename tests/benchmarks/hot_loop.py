"""Calls in a row: `python tests/benchmarks/hot_loop.py`.

`run.py` takes contenders call by call, so that each finds the processor's caches full of the others'.
Here each makes a hundred calls in a row before the next has its turn, as a training loop does.
"""

import statistics
import time

from job import Built, Job
from lib_jax import LIMIT
from lib_pstate import PSTATE
from report import versions


STATES, CALLS, ROUNDS = 200, 100, 30


def seconds_per_call(built: Built) -> float:
    """The time of a call, of `CALLS` in a row."""
    start = time.perf_counter()
    for _ in range(CALLS - 1):
        built.call()
    built.call().block_until_ready()
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    """Print the ratios."""
    print(versions())
    contenders = [*LIMIT.warm, *PSTATE.warm]
    built = [contender.build(Job(STATES)) for contender in contenders]
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(ROUNDS + 1):
        for one, own in zip(built, times, strict=True):
            own.append(seconds_per_call(one))
    medians = [statistics.median(own[1:]) for own in times]  # the first round compiles
    print(f"\nWarm calls in a row, {STATES} states")
    for contender, median in zip(contenders, medians, strict=True):
        print(f"{contender.name:28} {median * 1e6:8,.0f} us {median / medians[0]:6.2f}")


if __name__ == "__main__":
    main()
