"""What is kept between calls, and what one call takes: `python tests/benchmarks/memory.py`.

*Growth*: a job is called many times, and what the process holds is counted at two points, each time
after a full garbage collection: live arrays and their bytes, programs that pstate keeps, and Python
objects. Whatever a call leaves behind for good shows as growth per call.

*Peak*: what XLA says about a compiled step (`memory_analysis`), beside the bytes of the model. The
peak of a call is its arguments and its outputs, less what the outputs take over from donated
arguments, and what the program needs in between.
"""

import argparse
import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import pstate as ps
from report import Row, Table, versions


#: Floats of each of the two states.
WIDTH = 64

#: Shapes that a job takes in turn: more than a function keeps programs of one kind.
SHAPES = 300

Job = Callable[[int], Any]


def model_of(width: int = WIDTH) -> dict[str, Any]:
    """Two states of so many floats: one is read, the other one written."""
    return {"scale": ps.ParamState(jnp.ones(width)), "sum": ps.ShortTermState(jnp.zeros(width))}


def step(model: Any, x: Any) -> Any:
    """The body of every job."""
    model["sum"].value = 0.9 * model["sum"].value + model["scale"].value * x
    return model["sum"].value.sum()


def one_step() -> Job:
    """One compiled step, to which the returned model is passed on."""
    run, model, x = ps.pure(ps.jit(step)), model_of(), jnp.ones(())

    def call(i: int) -> Any:
        nonlocal model
        out, model = run(model, x)
        return out

    return call


def new_wrappers() -> Job:
    """The same function in a new wrapper for each call."""
    model, x = model_of(), jnp.ones(())

    def call(i: int) -> Any:
        nonlocal model
        out, model = ps.pure(ps.jit(step))(model, x)
        return out

    return call


def new_functions() -> Job:
    """A step made again for each call: another function, which is compiled."""
    model, x = model_of(), jnp.ones(())

    def call(i: int) -> Any:
        nonlocal model
        own = lambda model, x: step(model, x)
        out, model = ps.pure(ps.jit(own))(model, x)
        return out

    return call


def new_functions_by_hand() -> Job:
    """The same with `jax.jit` alone: what JAX itself keeps."""
    value, scale, x = jnp.zeros(WIDTH), jnp.ones(WIDTH), jnp.ones(())

    def call(i: int) -> Any:
        nonlocal value
        own = lambda value, scale, x: (0.9 * value + scale * x, value.sum())
        value, out = jax.jit(own)(value, scale, x)
        return out

    return call


def shapes() -> Job:
    """One step over many shapes in turn."""
    run, x = ps.pure(ps.jit(step)), jnp.ones(())
    models = [model_of(1 + i) for i in range(SHAPES)]

    def call(i: int) -> Any:
        out, models[i % SHAPES] = run(models[i % SHAPES], x)
        return out

    return call


JOBS: dict[str, Callable[[], Job]] = {
    "ps.pure(ps.jit(f)), one step": one_step,
    "the same, a new wrapper for each call": new_wrappers,
    f"one step over {SHAPES} shapes in turn": shapes,
    "a new function for each call": new_functions,
    "jax.jit by hand, a new function for each call": new_functions_by_hand,
}


@dataclasses.dataclass(frozen=True)
class Held:
    """What the process holds."""

    arrays: int
    nbytes: int
    programs: int
    objects: int

    @classmethod
    def now(cls) -> "Held":
        """Count, after what can be collected is gone."""
        gc.collect()
        gc.collect()  # what a finaliser of the first one set free
        arrays = jax.live_arrays()
        counted = len(arrays), sum(array.nbytes for array in arrays)
        del arrays
        everything = gc.get_objects()
        kinds = [type(x).__name__ for x in everything]
        return cls(*counted, sum(kind in _PROGRAMS for kind in kinds), len(kinds))


#: The classes of what pstate keeps for a compiled function.
_PROGRAMS = {"JitEntry", "Entry"}


def growth(job: Job, first: int, last: int) -> tuple[Held, Held]:
    """What is held after `first` calls, and after `last`."""
    held: list[Held] = []
    start = 0
    for stop in (first, last):
        for i in range(start, stop):
            job(i).block_until_ready()
        start = stop
        held.append(Held.now())
    return held[0], held[1]


def growth_table(calls: int, compiling: int) -> Table:
    """The growth of each job. A job that compiles in every call makes `compiling` calls."""
    rows: list[Row] = []
    for name, make in JOBS.items():
        last = compiling if "new function" in name else calls
        before, after = growth(make(), max(SHAPES, last // 10), last)
        cells = [
            f"{old:,} {new - old:+,}"
            for old, new in zip(dataclasses.astuple(before), dataclasses.astuple(after), strict=True)
        ]
        rows.append(Row(name, (f"{max(SHAPES, last // 10):,} to {last:,}", *cells)))
        print(f"{name}: done", flush=True)
    return Table("Growth", ("calls", "arrays", "bytes", "programs", "objects"), tuple(rows))


def peak_table(width: int) -> Table:
    """What one call takes, by XLA's own account."""
    model, x = model_of(width), jnp.ones(())
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    written = model["sum"].value.nbytes
    rows: list[Row] = [Row("the model; what is written of it", (f"{whole:,}", f"{written:,}"))]
    for name, run in {
        "ps.pure(ps.jit(f))": ps.pure(ps.jit(step)),
        "ps.pure(ps.jit(f, donate=...))": ps.pure(ps.jit(step, donate=...)),
        "jax.jit(ps.pure(f))": jax.jit(ps.pure(step)),
    }.items():
        found: Any = run.lower(model, x).compile().memory_analysis()
        parts = (
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.alias_size_in_bytes,
            found.temp_size_in_bytes,
        )
        peak = parts[0] + parts[1] - parts[2] + parts[3]
        rows.append(Row(name, (*(f"{part:,}" for part in parts), f"{peak:,}")))
    header = ("arguments", "outputs", "taken over", "in between", "peak")
    first = Row(rows[0].name, (*rows[0].cells, "", "", ""))
    return Table("One call, bytes", header, (first, *rows[1:]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Count what calls leave behind, and what they take.")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument(
        "--compiling", type=int, default=10_000, help="calls of a job that compiles in each"
    )
    parser.add_argument("--width", type=int, default=1_000_000, help="floats of a state, for the peak")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args()
    print(versions())
    for table in (peak_table(options.width), growth_table(options.calls, options.compiling)):
        print(f"\n{table.markdown() if options.markdown else table.text()}", flush=True)


if __name__ == "__main__":
    main()
