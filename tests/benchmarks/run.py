"""Benchmarks: `python tests/benchmarks/run.py`. See README.md beside this file."""

import argparse
from collections.abc import Sequence

import measure
from job import FEW, job_of
from libraries import KINDS, installed
from report import versions


#: The tables that `--only` selects from.
TABLES = (*KINDS, "cold", "bodies")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    options = _parser().parse_args(arguments)
    print(versions())
    libraries, left_out = installed()
    for note in left_out:
        print(note)
    tables = options.only or TABLES
    kinds = [(kind, states) for states in options.states for kind in KINDS if kind != "few"]
    for kind, states in [*kinds, ("few", FEW)]:
        wanted = [table for table in (kind, "cold", "bodies") if table in tables]
        if not wanted:
            continue
        contenders = [c for library in libraries for c in getattr(library, kind)]
        job, size = job_of(kind, states)
        field = measure.Field(kind, contenders, job, size)
        for table in wanted:
            shown = _table(field, table, options)
            print(f"\n{shown.markdown() if options.markdown else shown.text()}", flush=True)


def _table(field: measure.Field, table: str, options: argparse.Namespace):
    match table:
        case "cold":
            return field.cold(options.cold_rounds, options.budget)
        case "bodies":
            return field.bodies()
        case _:
            return field.warm(options.rounds, options.budget)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time pstate and its peers, as ratios to jax.jit by hand."
    )
    parser.add_argument(
        "--states", type=int, nargs="+", default=[10, 100, 1000], help="sizes of the model"
    )
    parser.add_argument("--rounds", type=int, default=200, help="warm calls of each, at most")
    parser.add_argument("--cold-rounds", type=int, default=9, help="cold calls of each, at most")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for each table, about")
    parser.add_argument("--only", action="append", choices=TABLES, help="this table; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


if __name__ == "__main__":
    main()
