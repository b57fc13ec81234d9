"""Where the time of a call goes: `python tests/benchmarks/where.py --call "ps.pure(ps.vmap2(f))"`.

The profiler adds about 0.1 us to each Python function and nothing to C++, so that times are too long
and shares only roughly right; try a change out in `run.py`. What a compiled program takes counts as its
caller's own time: that of `entry.py run` for mappings, of the job for `jax.jit`.
"""

import argparse
import cProfile
import pstats
from collections import Counter
from pathlib import Path

import jax

from job import Contender, job_of
from libraries import KINDS, installed


_PACKAGES = ("pstate", "equinox", "jax", "flax", "brainstate")


def main() -> None:
    """Print the profile of one contender: by package, then by function."""
    options = _parser().parse_args()
    kind, contender = _find(options.call, options.kind)
    job, size = job_of(kind, options.states)
    call = contender.build(job()).call
    jax.clear_caches()
    for _ in range(0 if options.cold else 20):
        call().block_until_ready()
    calls = 1 if options.cold else options.calls
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        call().block_until_ready()
    profile.disable()
    # Each entry: number of calls without and with recursion, own time, time with callees, callers.
    entries = pstats.Stats(profile).stats  # pyright: ignore[reportAttributeAccessIssue]
    own = {where: (count, seconds / calls * 1e6) for where, (_, count, seconds, _, _) in entries.items()}
    packages: Counter[str] = Counter()
    for (file, _, _), (_, microseconds) in own.items():
        packages[_package(file)] += microseconds
    print(f"{contender.name}, {size}, us per call under the profiler")
    for package, microseconds in packages.most_common():
        print(f"{microseconds:10,.1f}  {package}")
    print("\nby function: us, number of times, where")
    for (file, _, name), (count, microseconds) in sorted(own.items(), key=lambda x: -x[1][1])[:20]:
        print(f"{microseconds:10,.1f}  {count / calls:8,.0f}  {_package(file)} {Path(file).name} {name}")


def _package(file: str) -> str:
    if file.startswith("<generated_"):  # how Equinox flattens and rebuilds modules
        return "equinox"
    parts = Path(file).parts
    return next((package for package in _PACKAGES if package in parts[:-1]), "Python, C++ and the job")


def _find(name: str, kind: str | None) -> tuple[str, Contender]:
    libraries, _ = installed()
    kinds = KINDS if kind is None else (kind,)
    known = [(kind, c) for kind in kinds for library in libraries for c in getattr(library, kind)]
    for kind, contender in known:
        if contender.name == name:
            return kind, contender
    raise SystemExit(f"No contender is called {name!r}. There are: {[c.name for _, c in known]}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Profile one contender.")
    parser.add_argument(
        "--call", default="ps.pure(ps.vmap2(f))", help="the contender, as tables name it"
    )
    parser.add_argument("--kind", choices=KINDS, help="the table it is in, if several have that name")
    parser.add_argument("--states", type=int, default=200)
    parser.add_argument("--calls", type=int, default=200, help="warm calls to profile")
    parser.add_argument("--cold", action="store_true", help="profile the first call instead")
    return parser


if __name__ == "__main__":
    main()
