"""What pyright and mypy know of the package, line by line, and whether it is true.

A case is a line of a file in `cases`, or of a block of docs/typing.md. Comments say what is expected
of it:

- `reveal_type(x)  # is: tuple[Array, Norm]`: both checkers say so. After a second `# mypy:` stands what
  mypy says where it differs.
- `f(x)  # error: reportCallIssue; call-arg`: pyright gives the errors before the semicolon, mypy those
  after it. Either may be several, or none.

On any other line neither finds anything. Types are compared without modules and default values, and
pyright's `Unknown` is `Any`.

The checkers are in the extra `dev`. Without them all of this is skipped.
"""

import functools as ft
import importlib
import importlib.util
import json
import re
import runpy
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from beartype.door import is_bearable

from pages.blocks import blocks
from pages.repository import DOCS


CHECKERS = ("pyright", "mypy")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in CHECKERS),
    reason="pyright and mypy are not installed: pip install -e '.[dev]'",
)

CASES = Path(__file__).parent / "cases"
PAGE = "page.py"


def _page() -> str:
    """The blocks of the page, on the lines where they stand."""
    lines: list[str] = []
    for block in blocks(DOCS / "typing.md"):
        if block.language == "python":
            lines += [""] * (block.start - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines)


#: The text of each file.
FILES = {**{path.name: path.read_text() for path in sorted(CASES.glob("*.py"))}, PAGE: _page()}

#: `(file, line)`.
Line = tuple[str, int]


class Found:
    """What was expected, or found: a type for lines that reveal one, and errors by line."""

    def __init__(self) -> None:
        self.types: dict[Line, str] = {}
        self.errors: dict[Line, set[str]] = {}

    def of(self, name: str) -> tuple[dict[int, str], dict[int, set[str]]]:
        """The part that a file has."""
        return (
            {line: x for (file, line), x in self.types.items() if file == name},
            {line: x for (file, line), x in self.errors.items() if file == name},
        )


def comments(name: str, checker: str) -> Found:
    """What the comments of a file expect of a checker."""
    found = Found()
    for number, text in enumerate(FILES[name].splitlines(), 1):
        said = dict(re.findall(r"  # (is|mypy|error): (.*?)(?=  # |$)", text))
        if "is" in said:
            own = said.get("mypy", said["is"]) if checker == "mypy" else said["is"]
            found.types[name, number] = own
        if "error" in said:
            of_pyright, of_mypy = said["error"].split(";")
            codes = set((of_mypy if checker == "mypy" else of_pyright).split())
            if codes:
                found.errors[name, number] = codes
    return found


def _without_lists(text: str) -> str:
    """A type with parameters in parentheses: mypy writes `Jit[[x: Array], Array]`."""
    result, closing = [], []
    for i, char in enumerate(text):
        if char == "[":
            is_list = i == 0 or text[i - 1] in "[ "
            closing.append(")" if is_list else "]")
            result.append("(" if is_list else "[")
        else:
            result.append(closing.pop() if char == "]" else char)
    return "".join(result)


def plain(text: str) -> str:
    """A type as both checkers would write it."""
    text = re.sub(r"(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text)  # modules
    text = re.sub(r" =(?: [^,()\[\]]+)?(?=[,)\]])", "", text)  # default values
    return _without_lists(text.replace("def (", "(")).replace("Unknown", "Any")


def run_checker(checker: str, folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", checker, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def said_by_pyright(folder: Path) -> Iterator[tuple[Line, str, str]]:
    options = ("--outputjson", "--pythonpath", sys.executable)
    answer = json.loads(run_checker("pyright", folder, *options))
    assert answer["summary"]["filesAnalyzed"] == len(FILES)
    for each in answer["generalDiagnostics"]:
        line = Path(each["file"]).name, each["range"]["start"]["line"] + 1
        yield line, each.get("rule", "information"), each["message"]


def said_by_mypy(folder: Path) -> Iterator[tuple[Line, str, str]]:
    options = ("--strict", "--output=json", "--cache-dir=.mypy_cache", *FILES)
    for each in map(json.loads, run_checker("mypy", folder, *options).splitlines()):
        yield (Path(each["file"]).name, each["line"]), each["code"] or "", each["message"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a checker says of all files. Each is run once."""

    @ft.cache
    def ask(checker: str) -> Found:
        folder = tmp_path_factory.mktemp(checker)
        for name, text in FILES.items():
            (folder / name).write_text(text)
        (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
        found, ask_one = Found(), said_by_pyright if checker == "pyright" else said_by_mypy
        for line, code, message in ask_one(folder):
            revealed = re.search(r'(?:^Type of ".*"|^Revealed type) is "(.*)"$', message, re.DOTALL)
            if revealed:
                found.types[line] = plain(revealed[1])
            elif code or checker == "pyright":  # mypy's notes have no code
                found.errors.setdefault(line, set()).add(code)
        return found

    return ask


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers(checker: str, name: str, said: Any):
    """A checker reveals the types that comments expect, and finds their errors and no others."""
    types, errors = said(checker).of(name)
    expected_types, expected_errors = comments(name, checker).of(name)
    assert types == expected_types
    assert errors == expected_errors


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("models.py", "wrong.py", PAGE)])
def test_types_are_true(name: str, monkeypatch: pytest.MonkeyPatch):
    """Run, each line that reveals a type has a value of it. Types of functions are left out.

    The blocks of the page are run with all other pages.
    """
    values: dict[int, Any] = {}

    def note(value: Any) -> Any:
        values[sys._getframe(1).f_lineno] = value
        return value

    monkeypatch.setattr(typing, "reveal_type", note)
    monkeypatch.syspath_prepend(str(CASES))
    models = importlib.import_module("models")
    monkeypatch.delitem(sys.modules, "models")
    monkeypatch.setitem(sys.modules, "models", models)
    own = runpy.run_path(str(CASES / name))
    known = {**vars(typing), **vars(models.ps), **vars(models), **own}
    types, _ = comments(name, "pyright").of(name)
    assert set(values) == set(types)
    for line, hint in types.items():
        if "(" not in hint:
            assert is_bearable(values[line], eval(hint, known)), f"line {line}: {hint}"
