"""The contenders of one kind at one size, and the tables made of them."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

import timing
from job import Built, Contender, Job
from report import Row, Table
from timing import Measured


_CALLS = {"warm": "jitted", "mapped": "mapped", "loops": "eager loop", "few": "few-state"}

_TITLES = {
    "warm": "Warm dispatch",
    "mapped": "Eager mapped call",
    "loops": "Eager loop",
    "few": "Warm dispatch, few states",
}


class Field:
    """Contenders that gave the limit's result on their first call. The first of them is the limit.

    The others stand in every table as failed.
    """

    def __init__(self, kind: str, contenders: Sequence[Contender], job: Callable[[], Job], size: str):
        self._kind = kind
        self._job = job
        self._size = size
        self._playing: list[Contender] = []
        self._failed: list[Row] = []
        self._built: dict[str, Built] = {}
        self._bodies: dict[str, tuple[int, int]] = {}
        expected: list[np.ndarray] = []
        for contender in contenders:
            try:
                values = self._first_calls(contender)
                expected = expected or values
                _check_equal(values, expected)
            except Exception as error:
                self._failed.append(_failed(contender.name, error))
            else:
                self._playing.append(contender)

    def _first_calls(self, contender: Contender) -> list[np.ndarray]:
        job = self._job()
        built = contender.build(job)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = [np.asarray(value) for value in (built.call(), *built.counters())]
            cold = job.bodies
            built.call()
        self._built[contender.name] = built
        self._bodies[contender.name] = cold, job.bodies - cold
        return values

    def warm(self, rounds: int, budget: float) -> Table:
        """Microseconds of calls whose function is known."""
        calls = {contender.name: self._built[contender.name].call for contender in self._playing}

        def cells(own: Measured, limit: Measured) -> tuple[str, ...]:
            return f"{own.median * 1e6:,.0f}", f"{own.ratio(limit):.2f}", str(len(own.seconds))

        rows = _rows(timing.warm(calls, rounds, budget), cells)
        return self._table(_TITLES[self._kind], ("us", "ratio", "rounds"), rows)

    def cold(self, rounds: int, budget: float) -> Table:
        """Milliseconds of first calls."""

        def cells(own: Measured, limit: Measured) -> tuple[str, ...]:
            return (
                f"{own.median * 1e3:,.0f}",
                f"{own.ratio(limit):.2f}",
                f"{own.ratio_before_xla(limit):.2f}",
                str(len(own.seconds)),
            )

        rows = _rows(timing.cold(self._playing, self._job, rounds, budget), cells)
        title = f"Cold {_CALLS[self._kind]} call"
        return self._table(title, ("ms", "ratio", "before XLA", "rounds"), rows)

    def bodies(self) -> Table:
        """How often the body runs."""
        rows = [Row(c.name, tuple(map(str, self._bodies[c.name]))) for c in self._playing]
        return self._table(f"Runs of the {_CALLS[self._kind]} body", ("cold", "warm"), rows)

    def _table(self, title: str, header: tuple[str, ...], rows: Sequence[Row]) -> Table:
        return Table(f"{title}, {self._size}", header, (*rows, *self._failed))


def _rows(
    measured: dict[str, Measured], cells: Callable[[Measured, Measured], tuple[str, ...]]
) -> list[Row]:
    limit = next(iter(measured.values()))
    return [
        Row(name, cells(own, limit)) if own.failed is None else _failed(name, own.failed)
        for name, own in measured.items()
    ]


def _failed(name: str, error: Exception) -> Row:
    text = " ".join(str(error).split())
    return Row(name, failed=f"{type(error).__name__}: {text[:100]}")


def _check_equal(values: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for own, limit in zip(values, expected, strict=True):
        np.testing.assert_allclose(own, limit, rtol=1e-4, err_msg="not what the limit gives")
