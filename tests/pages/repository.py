"""Where the repository's files are, and the package as syntax trees."""

import ast
from pathlib import Path


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "pstate"
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def parsed(name: str) -> ast.Module:
    """A file of the package."""
    return ast.parse((SOURCE / name).read_text())
