"""What a tree holds, as a table with totals."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from .._ground.paths import Path
from .._ground.public import public
from .._ground.typing import Filter, PyTree
from .._ground.values import nbytes, short_dtype
from .._trees.packed import unpacked
from .._trees.slots import root_name
from .._trees.unmatched import warn_of_unmatched
from ..filter import to_predicate
from .entries import Entry, entries_of, is_array
from .tables import Cells, Table


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One array. A state without arrays has a row too, whose `shape` and `dtype` are `None`.

    `path` is the path of the state in `pstate.states`; the arrays of a container share it. `place`
    is the place of the array, as code.
    """

    path: Path
    place: str
    kind: str
    tag: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: Any
    nbytes: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return 0 if self.shape is None else math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Total:
    """The total of a kind: `count` states (or arrays outside states), their elements and bytes."""

    count: int
    size: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a tree holds. Prints as a table; notebooks show HTML."""

    title: str
    rows: tuple[SummaryRow, ...]

    @property
    def totals(self) -> dict[str, Total]:
        """The total of each kind, in the order of the tree."""
        kinds = dict.fromkeys(row.kind for row in self.rows)
        return {kind: _total([row for row in self.rows if row.kind == kind]) for kind in kinds}

    @property
    def total(self) -> Total:
        """The total of all kinds."""
        return _total(self.rows)

    def __str__(self) -> str:
        return self._table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        each = [
            _total_cells(kind, _counted(total.count, "array" if kind == "array" else "state"), total)
            for kind, total in self.totals.items()
        ]
        foot = [*each, _total_cells("total", f"{self.total.count:,}", self.total)]
        return Table(
            self.title, _HEADER, [_cells(row) for row in self.rows], foot, right=frozenset({4, 5})
        )


_HEADER = ("place", "kind", "shape", "dtype", "elements", "bytes")


def _total(rows: tuple[SummaryRow, ...] | list[SummaryRow]) -> Total:
    # The arrays of one container have the same path, and are one state.
    count = len({row.path for row in rows})
    return Total(count, sum(row.size for row in rows), sum(row.nbytes for row in rows))


def _cells(row: SummaryRow) -> Cells:
    if row.shape is None:
        return row.place, row.kind, "no array", "", "", ""
    return (
        row.place,
        row.kind,
        str(row.shape),
        short_dtype(row.dtype),
        f"{row.size:,}",
        f"{row.nbytes:,}",
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _total_cells(kind: str, count: str, total: Total) -> Cells:
    # Places may be long, so the count is right of the kind, not far to the left of it.
    return "", kind, count, "", f"{total.size:,}", f"{total.nbytes:,}"


@public
def summary(tree: PyTree, filter: Filter = ...) -> Summary:  # noqa: A002
    """The states of a tree, and the arrays outside states, as a table with totals.

    Only shapes and dtypes are looked at, so trees of `jax.ShapeDtypeStruct`, live trees and trees
    under a JAX trace work too. No random state is split or drawn from.

    **Arguments:**

    - `tree`: any pytree. Leaves that are neither states nor arrays, such as Python numbers, are left
        out.
    - `filter`: which states and arrays to list; see `pstate.filter`. One that names something but
        selects nothing causes a warning (`UnmatchedFilterWarning`).

    **Returns:** an object that prints as a table. `rows` has one entry for each array, and one for each
    state without arrays: `path`, `place`, `kind`, `tag`, `shape`, `dtype`, `size`, `nbytes`. `totals`
    is `{kind: total}` and `total` is that of all kinds: `count`, `size`, `nbytes`. An array that is
    at two places counts twice.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> net = {"w": ps.ParamState(jnp.ones((300, 2))), "v": ps.HiddenState(), "x": jnp.ones(3)}
        >>> ps.summary(net)
        tree
        place      kind         shape     dtype  elements  bytes
        --------------------------------------------------------
        tree['v']  HiddenState  no array
        tree['w']  ParamState   (300, 2)  f32         600  2,400
        tree['x']  array        (3,)      f32           3     12
        --------------------------------------------------------
                   HiddenState  1 state                 0      0
                   ParamState   1 state               600  2,400
                   array        1 array                 3     12
                   total        3                     603  2,412
        >>> ps.summary(net, ps.ParamState).total.nbytes
        2400
    """
    predicate = to_predicate(filter)
    tree = unpacked(tree)
    root = root_name(tree)
    entries = [e for e in entries_of(tree, root) if e.kind != "static"]
    chosen = [e for e in entries if predicate(e.path, e.leaf)]
    if not chosen:
        warn_of_unmatched(predicate, f"filter={predicate!r} of ps.summary", (e.leaf for e in entries))
    return Summary(root, tuple(row for entry in chosen for row in _rows(entry)))


def _rows(entry: Entry) -> Iterator[SummaryRow]:
    arrays = [part for part in entry.parts.values() if is_array(part.leaf)]
    if not arrays:
        yield SummaryRow(entry.path, entry.place, entry.kind, entry.tag, None, None, 0)
    for part in arrays:
        shape, dtype = tuple(part.leaf.shape), part.leaf.dtype
        yield SummaryRow(entry.path, part.place, entry.kind, entry.tag, shape, dtype, nbytes(part.leaf))
