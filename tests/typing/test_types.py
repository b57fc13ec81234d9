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
from collections.abc import Callable, Iterator
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


OPTIONS = {
    "pyright": ("--outputjson", "--pythonpath", sys.executable),
    "mypy": ("--strict", "--output=json", "--cache-dir=.mypy_cache", *FILES),
}


def read_pyright(output: str) -> Iterator[tuple[Line, str, str]]:
    """The places, rules and messages of what pyright printed."""
    answer = json.loads(output)
    assert answer["summary"]["filesAnalyzed"] == len(FILES)
    for each in answer["generalDiagnostics"]:
        line = Path(each["file"]).name, each["range"]["start"]["line"] + 1
        yield line, each.get("rule", "information"), each["message"]


def read_mypy(output: str) -> Iterator[tuple[Line, str, str]]:
    """The same of mypy. Its notes have no code."""
    for each in map(json.loads, output.splitlines()):
        yield (Path(each["file"]).name, each["line"]), each["code"] or "", each["message"]


@pytest.fixture(scope="module", autouse=True)
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Found]]:
    """What a checker says of all files. Both run, once, beside the tests that come first."""
    running: dict[str, subprocess.Popen[Any]] = {}
    outputs = {checker: tmp_path_factory.mktemp(checker) / "output.json" for checker in CHECKERS}
    for checker, output in outputs.items():
        for name, text in FILES.items():
            output.with_name(name).write_text(text)
        output.with_name("pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
        command = [sys.executable, "-m", checker, *OPTIONS[checker]]
        with output.open("w") as file:
            running[checker] = subprocess.Popen(command, cwd=output.parent, stdout=file)

    @ft.cache
    def ask(checker: str) -> Found:
        running[checker].wait()
        found, read = Found(), read_pyright if checker == "pyright" else read_mypy
        for line, code, message in read(outputs[checker].read_text()):
            revealed = re.search(r'(?:^Type of ".*"|^Revealed type) is "(.*)"$', message, re.DOTALL)
            if revealed:
                found.types[line] = plain(revealed[1])
            elif code:
                found.errors.setdefault(line, set()).add(code)
        return found

    yield ask
    for process in running.values():
        process.kill()


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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers(checker: str, name: str, said: Callable[[str], Found]):
    """A checker reveals the types that comments expect, and finds their errors and no others."""
    types, errors = said(checker).of(name)
    expected_types, expected_errors = comments(name, checker).of(name)
    assert types == expected_types
    assert errors == expected_errors
