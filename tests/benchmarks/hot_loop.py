"""Calls in a row: `python tests/benchmarks/hot_loop.py`, and `--kind loops` or `--kind few`.

`run.py` takes contenders call by call, so that each finds the processor's caches full of the others'.
Here each makes a hundred calls in a row before the next has its turn, as a training loop does.
"""

import argparse
import statistics
import time

from job import Built, job_of
from lib_equinox import FEW_BY_HAND
from lib_jax import LIMIT
from lib_pstate import PSTATE
from report import versions


STATES, CALLS, ROUNDS = 200, 100, 30

#: Contenders with longer calls, in seconds, are left out.
_LONG = 0.05


def seconds_per_call(built: Built, calls: int = CALLS) -> float:
    """The time of a call, of several in a row."""
    start = time.perf_counter()
    for _ in range(calls - 1):
        built.call()
    built.call().block_until_ready()
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description="Time calls in a row, as ratios to the first.")
    parser.add_argument("--kind", choices=("warm", "loops", "few"), default="warm", help="the table")
    parser.add_argument("--states", type=int, default=STATES)
    options = parser.parse_args()
    print(versions())
    job, size = job_of(options.kind, options.states)
    contenders = [c for library in (LIMIT, FEW_BY_HAND, PSTATE) for c in getattr(library, options.kind)]
    built = {contender.name: contender.build(job()) for contender in contenders}
    for one in built.values():
        seconds_per_call(one, 2)  # this compiles
    times = {name: [] for name, one in built.items() if seconds_per_call(one, 1) < _LONG}
    for _ in range(ROUNDS):
        for name, own in times.items():
            own.append(seconds_per_call(built[name]))
    medians = {name: statistics.median(own) for name, own in times.items()}
    limit = next(iter(medians.values()))
    print(f"\nCalls in a row, {size}")
    for name, median in medians.items():
        print(f"{name:36} {median * 1e6:8,.0f} us {median / limit:6.2f}")


if __name__ == "__main__":
    main()
