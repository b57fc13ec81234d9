"""The house rules of the source: floors, imports at the top, and public JAX only."""

import ast
import re
from pathlib import Path

import pytest

from pages.repository import DOCS, MODULES, SOURCE, parsed


def floors() -> dict[str, int]:
    """The floor of each file, from the table of docs/contributing.md."""
    return {name: floor for floor, name in rows()}


def rows() -> list[tuple[int, str]]:
    """Floors and files, as the table has them."""
    found = re.findall(r"^\| F(\d+) \| (.*?) \|", (DOCS / "contributing.md").read_text(), re.MULTILINE)
    return [
        (int(floor), name) for floor, names in found for name in re.findall(r"`([\w/]+\.py)`", names)
    ]


def absolute_imports(tree: ast.AST) -> set[str]:
    """The modules, and names in modules, that a file imports from elsewhere."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def relative_imports(name: str) -> set[str]:
    """The files of the package that a file imports."""
    found: set[Path] = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            folder = (SOURCE / name).parents[node.level - 1]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {folder.joinpath(*module.split(".")) for module in modules}
    files = {path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in found}
    return {path.relative_to(SOURCE).as_posix() for path in files}


def test_every_file_has_a_floor():
    """The table of floors has the files of the package, each once and no others."""
    assert sorted(name for _, name in rows()) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str):
    """A file imports, relatively, from lower floors only; so there are no cycles."""
    assert not any(module.split(".")[0] == "pstate" for module in absolute_imports(parsed(name)))
    own = floors()[name]
    assert [below for below in relative_imports(name) if floors()[below] >= own] == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_at_the_top(name: str):
    """No function imports anything."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            assert not any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(node))


@pytest.mark.parametrize("name", MODULES)
def test_public_jax_only(name: str):
    """No file uses JAX's private modules, neither imported nor reached through an attribute."""
    tree = parsed(name)
    used = absolute_imports(tree) | {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    assert [u for u in used if re.match(r"jax(\.\w+)*\.(_(?!_)\w+|interpreters)\b", u)] == []
