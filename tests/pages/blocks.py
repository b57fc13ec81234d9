"""The blocks of a page: found, run, and compared with what the page shows.

A *page* is README.md or a Markdown file anywhere in docs/. The python blocks of a page run in order, in
a namespace of the page's own. What a block prints is what the text block right after it shows; a block
without one prints nothing. A comment before a block says what else it does:

- `<!-- raises: FrozenStateError -->`: it raises exactly this, and the text block is the message;
- `<!-- warns: BatchAxisWarning -->`: it gives exactly one warning, and the text block is its message;
- `<!-- needs: flax -->`, before either of these: it needs a library that may not be installed. The other
  blocks of the page run without it.

Messages are shown with long lines wrapped, and with lines of code, which are indented, as they are. A
text that ends with `...` is a part of the message.
"""

import builtins
import contextlib
import dataclasses
import io
import re
import sys
import textwrap
import types
import warnings
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pytest

import pstate as ps
from pages.repository import DOCS, ROOT


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WIDTH = 100


def name_of(page: Path) -> str:
    """What a page is called, which no other page is: `errors`, `recipes/index`."""
    above = next((folder for folder in (DOCS, ROOT) if page.is_relative_to(folder)), page.parent)
    return page.relative_to(above).with_suffix("").as_posix()


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block. `start` is its first line of text, `before` what stands before its fence."""

    language: str
    text: str
    start: int
    before: str

    @property
    def mark(self) -> tuple[str, str]:
        """What the comment before it says: `("raises", "FrozenStateError")`."""
        found = re.fullmatch(r"(?s:.*)<!-- (raises|warns): (\w+) -->", self.before)
        return (found[1], found[2]) if found else ("prints", "")

    @property
    def needs(self) -> str:
        """The library that it needs and pstate's tests do not: `"flax"`, else `""`."""
        last = r"(?:\n<!-- (?:raises|warns): \w+ -->)?"
        found = re.fullmatch(rf"(?s:.*)<!-- needs: (\w+) -->{last}", self.before)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    before: list[str] = []
    language, start, text = None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)", line)
        if fence is None:
            (before if language is None else text).append(line)
        elif language is None:
            language, start, text = fence[1], number + 1, []
        else:
            found.append(Block(language, "\n".join(text), start, "\n".join(before).strip()))
            language, before = None, []
    assert language is None, f"{page}:{start}: the block is not closed"
    return found


def examples(page: Path) -> Iterator[tuple[Block, str]]:
    """Each python block of a page with the text that is shown right after it."""
    following = [*blocks(page)[1:], Block("", "", 0, "")]
    for block, after in zip(blocks(page), following, strict=False):
        if block.language == "python":
            shown = after.language == "text" and not after.before
            yield block, after.text if shown else ""


def check(page: Path, having: Container[str] = ()) -> None:
    """Run the blocks of a page, those that need a library only if it is in `having`."""
    with checked(page, having):
        pass


@contextlib.contextmanager
def checked(page: Path, having: Container[str] = ()) -> Iterator[dict[str, Any]]:
    """The same, with the names that the blocks define."""
    with namespace(page) as names:
        for block, text in examples(page):
            if not block.needs or block.needs in having:
                result = run(block, names, page)
                assert is_shown(result, text), f"{name_of(page)}:{block.start}: got\n{result}"
        yield names


@contextlib.contextmanager
def namespace(page: Path) -> Iterator[dict[str, Any]]:
    """A module for the page's names, which classes and functions of the page can be found in."""
    module = types.ModuleType(f"page_{name_of(page).replace('/', '_')}")
    sys.modules[module.__name__] = module
    try:
        yield vars(module)
    finally:
        del sys.modules[module.__name__]


def run(block: Block, names: dict[str, Any], page: Path) -> str:
    """Run a block, and give the text that the page must show after it."""
    what, name = block.mark
    # Blank lines in front, so that a traceback gives the line of the page.
    code = compile("\n" * (block.start - 1) + block.text, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if what == "raises":
            with pytest.raises(named(name)) as caught:
                exec(code, names)
            assert type(caught.value) is named(name)
            return wrapped(str(caught.value))
        if what == "warns":
            with warnings.catch_warnings(record=True) as given:
                warnings.simplefilter("always")
                exec(code, names)
            assert [warning.category for warning in given] == [named(name)]
            return wrapped(str(given[0].message))
        exec(code, names)
    return printed.getvalue().removesuffix("\n")


def named(name: str) -> type[Exception]:
    """An exception or warning of pstate, or of Python."""
    return getattr(ps, name, None) or getattr(builtins, name)


def wrapped(message: str) -> str:
    """A message as pages show it."""

    def wrap(line: str) -> str:
        return textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)

    return "\n".join(line if line.startswith("    ") else wrap(line) for line in message.splitlines())


def is_shown(result: str, text: str) -> bool:
    """Whether the page shows what it must."""
    if text.endswith("...") and text != result:
        return " ".join(text.removesuffix("...").split()) in " ".join(result.split())
    return text == result
