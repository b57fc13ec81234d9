"""What differs between two trees, as a table."""

import dataclasses

from .._ground.public import public
from .._ground.typing import PyTree
from .._trees.packed import unpacked
from .._trees.slots import root_name
from .changes import Change, changes_of
from .tables import Cells, Table


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between two trees: true if anything does. Prints as a table; notebooks show HTML.

    `compared` counts what was compared; `unknown` lists the places whose values could not be.
    """

    title: str
    rows: tuple[Change, ...]
    compared: int
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        return self._table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        rows = [_cells(row) for row in self.rows]
        # Most changes have few numbers, or none: empty columns are left out.
        columns = [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]
        notes = (f"values are not known, only shapes and dtypes: {_listed(self.unknown)}",)
        return Table(
            f"{self.title}: {len(self.rows):,} of {self.compared:,} changed",
            tuple(_HEADER[i] for i in columns),
            [tuple(row[i] for i in columns) for row in rows],
            notes=notes if self.unknown else (),
            right=frozenset(at for at, i in enumerate(columns) if i >= _FIRST_NUMBER),
        )


_HEADER = ("place", "kind", "changed", "old", "new", "|old|", "|new|", "|new - old|", "differing")
_FIRST_NUMBER = 5


def _cells(row: Change) -> Cells:
    old, new = row.old, row.new
    size = "" if row.differing is None else f"{row.differing:,}"
    return (
        row.place,
        row.kind,
        ", ".join(row.what),
        "" if old is None else old.shown,
        "" if new is None else new.shown,
        _number(old and old.norm),
        _number(new and new.norm),
        _number(row.distance),
        size,
    )


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.4g}"


def _listed(places: tuple[str, ...]) -> str:
    more = len(places) - 10
    return ", ".join(places[:10]) + (f", and {more:,} more" if more > 0 else "")


@public
def diff(old: PyTree, new: PyTree) -> Difference:
    """What changed between two trees: states, arrays outside states, and static leaves.

    The trees are matched by path, and need not have the same structure. The same object in both is
    unchanged and is not looked into. Other arrays are brought to the host, one at a time, and compared
    there in double precision; `nan` equals `nan`.

    Values that cannot be looked at are not compared, only their shapes and dtypes, and are listed: those
    of `jax.ShapeDtypeStruct`, of tracers, of arrays that were donated or that are on other hosts,
    and of random states that were not yet split. They alone do not count as a difference.

    **Arguments:**

    - `old`, `new`: any pytrees, live ones too.

    **Returns:** an object that prints as a table and is true if anything changed. `rows` has one entry
    for each change: `path`, `place`, `kind`, `what`, `old`, `new`, `differing`, `distance`. `what`
    lists some of

    - `shape`, `dtype`, `value`, `kind` and `tag`;
    - `filled` and `emptied`, of a state that was or is empty;
    - `appeared` and `disappeared`;
    - `structure`, of a node of another type.

    `old` and `new` have `kind`, `tag`, `shape`, `dtype`, `norm` and `shown`. `differing` counts the
    elements that differ, keys included; norms are of inexact arrays. `unknown` lists the places whose
    values could not be compared, and `compared` counts all.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> old = {"w": ps.ParamState(jnp.array([3.0, 4.0])), "n": ps.State(1)}
        >>> with ps.record(old) as live:
        ...     live["w"].value *= 2
        >>> ps.diff(old, ps.freeze(live))
        tree: 1 of 2 changed
        place      kind        changed  old     new     |old|  |new|  |new - old|  differing
        ------------------------------------------------------------------------------------
        tree['w']  ParamState  value    f32[2]  f32[2]      5     10            5          2
        ------------------------------------------------------------------------------------
        >>> bool(ps.diff(old, old))
        False
    """
    old, new = unpacked(old), unpacked(new)
    root = root_name(new)
    found = changes_of(old, new, root)
    rows = tuple(change for change in found if change.what)
    unknown = tuple(change.place for change in found if not change.known)
    return Difference(root, rows, len(found), unknown)
