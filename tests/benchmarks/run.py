"""Benchmarks: `python tests/benchmarks/run.py`. See README.md beside this file."""

import argparse
import importlib
import warnings
from collections.abc import Sequence

import numpy as np

import timing
from job import LANES, Built, Contender, Contenders, Job
from lib_equinox import EQUINOX
from lib_jax import LIMIT
from lib_pstate import PSTATE
from report import Row, Table, versions


#: Tables, and the kind of contender that each calls.
TABLES = ("warm", "mapped", "cold", "bodies")

_TITLES = {
    "warm": "Warm dispatch",
    "mapped": "Eager mapped call",
    "cold": "Cold call",
    "bodies": "Runs of the body",
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    print(versions())
    libraries = [LIMIT, PSTATE, EQUINOX, *_peers()]
    tables = options.only or TABLES
    for states in options.states:
        for kind, lanes in (("warm", None), ("mapped", LANES)):
            contenders: list[Contender] = [c for lib in libraries for c in getattr(lib, kind)]
            measured = _Measurement(contenders, states, lanes, options)
            if kind in tables:
                measured.show_warm(_title(kind, states))
            if "cold" in tables:
                measured.show_cold(_title("cold", states, kind))
            if "bodies" in tables:
                measured.show_bodies(_title("bodies", states, kind))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time pstate beside its peers, as ratios to jax.jit.")
    parser.add_argument("--states", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=300, help="at most so many rounds of warm calls")
    parser.add_argument("--cold-rounds", type=int, default=7, help="at most so many of cold calls")
    parser.add_argument("--budget", type=float, default=30.0, help="at most so many seconds per table")
    parser.add_argument("--only", action="append", choices=TABLES, help="only this table; may repeat")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    return parser


def _peers() -> list[Contenders]:
    found: list[Contenders] = []
    for module, name in (("lib_flax", "FLAX"), ("lib_brainstate", "BRAINSTATE")):
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError as error:
            print(f"left out: {module.removeprefix('lib_')} ({error}); pip install 'pstate[peers]'")
    return found


def _title(table: str, states: int, kind: str | None = None) -> str:
    of = {None: "", "warm": " of the jitted function", "mapped": " of the mapped function"}[kind]
    return f"{_TITLES[table]}{of}, {states} states"


class _Measurement:
    """The contenders of one kind at one size. Each that fails once is left alone from then on."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        states: int,
        lanes: int | None,
        options: argparse.Namespace,
    ):
        self.options = options
        self.states = states
        self.lanes = lanes
        self.contenders: list[Contender] = []
        self.failures: list[Row] = []
        self.built: dict[str, Built] = {}
        self.bodies: dict[str, tuple[int, int]] = {}
        expected: list[np.ndarray] = []
        for contender in contenders:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    first = self._first_calls(contender)
                expected = expected or first
                if not all(map(lambda a, b: np.allclose(a, b, rtol=1e-4), first, expected)):
                    raise AssertionError("its result differs from the limit's")
            except Exception as error:
                self.failures.append(Row(contender.name, failed=_short(error)))
            else:
                self.contenders.append(contender)

    def job(self) -> Job:
        return Job(self.states, self.lanes)

    def _first_calls(self, contender: Contender) -> list[np.ndarray]:
        job = self.job()
        built = contender.build(job)
        values = [np.asarray(value) for value in (built.call(), *built.counters())]
        cold = job.bodies
        built.call()
        self.built[contender.name] = built
        self.bodies[contender.name] = cold, job.bodies - cold
        return values

    def show_warm(self, title: str) -> None:
        calls = {c.name: self.built[c.name].call for c in self.contenders}
        measured = timing.warm(calls, self.options.rounds, self.options.budget)
        limit = measured[self.contenders[0].name]
        rows = [
            Row(name, (f"{m.median * 1e6:,.0f}", f"{m.ratio(limit):.2f}", str(len(m.seconds))))
            for name, m in measured.items()
        ]
        self._show(title, ("us", "ratio", "rounds"), rows)

    def show_cold(self, title: str) -> None:
        options = self.options
        measured = timing.cold(self.contenders, self.job, options.cold_rounds, options.budget)
        limit = measured[self.contenders[0].name]
        rows = [
            Row(
                name,
                (
                    f"{m.median * 1e3:,.0f}",
                    f"{m.ratio(limit):.2f}",
                    f"{m.ratio_before_xla(limit):.2f}",
                    str(len(m.seconds)),
                ),
            )
            for name, m in measured.items()
        ]
        self._show(title, ("ms", "ratio", "ratio before XLA", "rounds"), rows)

    def show_bodies(self, title: str) -> None:
        rows = [Row(name, tuple(map(str, runs))) for name, runs in self.bodies.items()]
        self._show(title, ("cold call", "warm call"), rows)

    def _show(self, title: str, header: tuple[str, ...], rows: list[Row]) -> None:
        table = Table(title, header, (*rows, *self.failures))
        print(f"\n{table.markdown() if self.options.markdown else table.text()}", flush=True)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:80]}"


if __name__ == "__main__":
    main()
