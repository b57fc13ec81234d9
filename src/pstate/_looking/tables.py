"""Tables, as text, and as HTML for notebooks.

The *foot* is rows below a second rule, in the same columns; *closing* lines and *notes* follow the
table.
"""

import dataclasses
import html
from collections.abc import Sequence


Cells = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; without a header, only what surrounds the table.

    `right` has the indices of the right-aligned columns.
    """

    caption: str
    header: Cells
    rows: Sequence[Cells]
    foot: Sequence[Cells] = ()
    closing: Sequence[str] = ()
    notes: Sequence[str] = ()
    right: frozenset[int] = frozenset()

    def text(self) -> str:
        """The table in aligned columns."""
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self.caption, *self._grid(), *self.closing, *notes])

    def _grid(self) -> list[str]:
        if not self.header:
            return []
        widths = [max(map(len, column)) for column in zip(*self._all(), strict=True)]
        lines = [self._line(cells, widths) for cells in self._all()]
        end = 1 + len(self.rows)
        rule = "-" * max(map(len, lines))
        return [lines[0], rule, *lines[1:end], rule, *lines[end:]]

    def _all(self) -> list[Cells]:
        return [self.header, *self.rows, *self.foot]

    def _line(self, cells: Cells, widths: Sequence[int]) -> str:
        aligned = [
            cell.rjust(width) if i in self.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    def html(self) -> str:
        """The table as HTML."""
        head = self._tr(self.header, "th")
        body = "".join(self._tr(cells, "td") for cells in self.rows)
        foot = "".join(self._tr(cells, "td") for cells in self.foot)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.caption)}</caption>"
            f"<thead>{head}</thead><tbody>{body}</tbody>"
            + (f"<tfoot>{foot}</tfoot>" if foot else "")
            + "</table>"
            + "".join(f"<p>{html.escape(line)}</p>" for line in self.closing)
            + (f"<ul>{notes}</ul>" if notes else "")
        )

    def _tr(self, cells: Cells, tag: str) -> str:
        inner = "".join(
            f"<{tag}{self._style(i)}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    def _style(self, column: int) -> str:
        return ' style="text-align: right"' if column in self.right else ""
