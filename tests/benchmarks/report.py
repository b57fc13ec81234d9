"""Tables as plain text and as Markdown, and the versions behind them."""

import dataclasses
import importlib.metadata as metadata
import os
import platform


@dataclasses.dataclass(frozen=True)
class Row:
    """A contender's cells, or how it failed."""

    name: str
    cells: tuple[str, ...] = ()
    failed: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column is left-aligned, and the others right-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    def text(self) -> str:
        """Aligned columns."""
        lines = [("", *self.header), *((row.name, *row.cells) for row in self.rows if not row.failed)]
        first = max(len(row.name) for row in self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(1, len(self.header) + 1)]
        shown = [
            "  ".join(
                [line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], widths, strict=True))]
            )
            for line in lines
        ]
        failures = [f"{row.name.ljust(first)}  failed: {row.failed}" for row in self.rows if row.failed]
        rule = "-" * max(map(len, shown))
        return "\n".join([self.title, rule, *shown, *failures, rule])

    def markdown(self) -> str:
        """A Markdown table."""

        def line(cells: tuple[str, ...]) -> str:
            return f"| {' | '.join(cells)} |"

        lines = [line((self.title, *self.header)), line((":--", *("--:" for _ in self.header)))]
        for row in self.rows:
            empty = ("",) * (len(self.header) - 1)
            cells = (f"failed: {row.failed}", *empty) if row.failed else row.cells
            lines.append(line((f"`{row.name}`", *cells)))
        return "\n".join(lines)


def versions() -> str:
    """What was measured, and where."""
    found = []
    for name in ("jax", "equinox", "pstate", "flax", "brainstate"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {platform.python_version()}", f"{os.cpu_count()} cores"])
