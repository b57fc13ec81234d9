"""The pages: their code runs and prints what they show, their links lead somewhere, their lists hold.

A *page* is README.md or a file of docs/. The python blocks of a page run in order, in a namespace of the
page's own. What a block prints is what the text block right after it shows; a block without one prints
nothing. A comment before a block says what else it does:

- `<!-- raises: FrozenStateError -->`: it raises exactly this, and the text block is the message;
- `<!-- warns: BatchAxisWarning -->`: it gives exactly one warning, and the text block is its message.

Messages are shown with long lines wrapped, and with lines of code, which are indented, as they are. A
text that ends with `...` is a part of the message.
"""

import ast
import builtins
import contextlib
import dataclasses
import inspect
import io
import re
import sys
import textwrap
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pstate as ps
from pages.repository import DOCS, MODULES, ROOT, parsed
from pstate._ground import errors as _errors


PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
WIDTH = 100

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


# Pages as blocks ------------------------------------------------------------------------------------


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
    assert language is None, f"{page.name}:{start}: the block is not closed"
    return found


def examples(page: Path) -> Iterator[tuple[Block, str]]:
    """Each python block of a page with the text that is shown right after it."""
    following = [*blocks(page)[1:], Block("", "", 0, "")]
    for block, after in zip(blocks(page), following, strict=False):
        if block.language == "python":
            shown = after.language == "text" and not after.before
            yield block, after.text if shown else ""


@contextlib.contextmanager
def namespace(page: Path) -> Iterator[dict[str, Any]]:
    """A module for the page's names, which classes and functions of the page can be found in."""
    module = types.ModuleType(f"page_{page.stem}")
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


#: Pages of other libraries, which take long.
LONG = {"diffrax", "optax", "orbax"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.once] * (page.stem in LONG)) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_blocks_do_what_the_page_shows(page: Path):
    """Every python block runs, and prints, raises or warns exactly as the page says."""
    with namespace(page) as names:
        for block, text in examples(page):
            result = run(block, names, page)
            assert is_shown(result, text), f"{page.name}:{block.start}: got\n{result}"


@each_page
def test_every_text_is_an_output(page: Path):
    """No text block stands alone: what a page shows as printed is compared with what is printed."""
    for block, before in zip(blocks(page)[1:], blocks(page), strict=False):
        attached = before.language == "python" and not block.before
        assert block.language != "text" or attached, f"{page.name}:{block.start}"


def test_blocks_are_told_apart(tmp_path: Path):
    """The parser sees languages, marks and what belongs together, and refuses an open block."""
    page = tmp_path / "page.md"
    page.write_text(
        "A\n\n<!-- raises: KeyError -->\n```python\n{}[1]\n```\n\n```text\n1\n```\n\n"
        "B\n\n```python\npass\n```\n\nC\n\n```sh\nls\n```\n"
    )
    (first, text), (second, nothing) = examples(page)
    assert (first.mark, first.start, text) == (("raises", "KeyError"), 5, "1")
    assert (second.mark, nothing) == (("prints", ""), "")
    assert run(first, {}, page) == "1"
    page.write_text("```python\n")
    with pytest.raises(AssertionError, match=r"page\.md:2: the block is not closed"):
        blocks(page)


# What pages say -------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path):
    """Links to files of the repository, and to headings of pages, point to what is there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def exists(name: str) -> bool:
    """Whether `ps.` and a dotted name are something of pstate."""
    found: Any = ps
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def not_yet(page: Path) -> str:
    """The section of a page on what is planned."""
    return "".join(re.findall(r"^## Not yet$.*?(?=^## |\Z)", page.read_text(), re.M | re.S))


@each_page
def test_names_exist(page: Path):
    """A page names what pstate has, code and prose alike; what is planned is not there yet."""
    planned = not_yet(page)
    present = page.read_text().replace(planned, "") if planned else page.read_text()
    name = r"\bps\.([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)"
    assert [n for n in re.findall(name, present) if not exists(n)] == []
    assert [n for n in re.findall(name, planned) if exists(n)] == []


def test_every_error_has_its_section():
    """docs/errors.md has a section per class of `_ground/errors.py`, and its message if one is given."""
    sections = re.split(r"^## ", (DOCS / "errors.md").read_text(), flags=re.MULTILINE)[1:]
    by_name = {section.partition("\n")[0].strip("`"): section for section in sections}
    classes = [c for c in vars(_errors).values() if inspect.isclass(c)]
    assert set(by_name) == {cls.__name__ for cls in classes}
    trees = [parsed(name) for name in MODULES if name != "_ground/errors.py"]
    used = {n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name)}
    for cls in classes:
        what = "warns" if issubclass(cls, Warning) else "raises"
        shown = f"<!-- {what}: {cls.__name__} -->\n```python" in by_name[cls.__name__]
        assert shown or cls.__name__ not in used, cls.__name__


def test_test_command():
    """README.md gives the test command where .ci/run looks for it: on one line."""
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^<!-- test command -->\n```sh\n(.*)\n```$", readme, re.MULTILINE)
    assert command.endswith(" && .venv/bin/python -m pytest -q -n 2")


# The public names -----------------------------------------------------------------------------------


def public_names(module: types.ModuleType = ps, prefix: str = "ps") -> dict[str, Any]:
    """What `pstate` and its public modules export, by the name people write."""
    found: dict[str, Any] = {}
    for name in getattr(module, "__all__", vars(module)):
        thing = getattr(module, name)
        if inspect.ismodule(thing) and not thing.__name__.startswith("pstate."):
            continue  # the import hook of jaxtyping leaves itself behind
        if not name.startswith("_"):
            found[f"{prefix}.{name}"] = thing
            found |= public_names(thing, f"{prefix}.{name}") if inspect.ismodule(thing) else {}
    return found


def listed() -> dict[str, str | None]:
    """The names of docs/api.md, with their parameters where they are given."""
    found = re.findall(r"^- \[`(ps\.[\w.]+)(?:\((.*)\))?`\]", (DOCS / "api.md").read_text(), re.M)
    return {name: parameters or None for name, parameters in found}


def test_every_name_is_listed():
    """docs/api.md lists the public names, all of them and no others."""
    assert set(listed()) == set(public_names())


@pytest.mark.parametrize("name", sorted(n for n, given in listed().items() if given))
def test_parameters_are_those_of_the_code(name: str):
    """docs/api.md gives the parameters of a name in their order and with their defaults."""
    (function,) = ast.parse(f"def f({listed()[name]}): pass").body
    assert isinstance(function, ast.FunctionDef)
    shown = inspect.signature(_made(function.args))
    real = inspect.signature(public_names()[name])
    assert [(p.name, p.kind) for p in shown.parameters.values()] == [
        (p.name, p.kind) for p in real.parameters.values()
    ]
    for ours, theirs in zip(shown.parameters.values(), real.parameters.values(), strict=True):
        assert ours.default == _shown_default(theirs.default)


def _made(arguments: ast.arguments) -> Any:
    """A lambda with these parameters, whose defaults are their code."""
    arguments.defaults = [ast.Constant(ast.unparse(d)) for d in arguments.defaults]
    arguments.kw_defaults = [d and ast.Constant(ast.unparse(d)) for d in arguments.kw_defaults]
    code = ast.Expression(ast.Lambda(arguments, ast.Constant(None)))
    return eval(compile(ast.fix_missing_locations(code), "api.md", "eval"))


def _shown_default(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return default
    if default is ...:
        return "..."
    if inspect.isroutine(default):
        return f"{default.__module__.partition('.')[0]}.{default.__name__}"
    return repr(default)


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_name_is_documented(name: str):
    """A public name has a docstring of its own, its public methods too; an instance a comment `#:`."""
    thing = public_names()[name]
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
        source = inspect.getsource(ps.filter)
        assert re.search(rf"^#: .*\n{name.rpartition('.')[2]} = ", source, re.MULTILINE)
        return
    assert inspect.cleandoc(thing.__doc__ or "")
    if inspect.isclass(thing):
        for attribute in vars(thing):
            value = getattr(thing, attribute)
            has_doc = inspect.isroutine(value) or isinstance(value, property)
            if has_doc and not attribute.startswith("_"):
                assert value.__doc__, f"{name}.{attribute}"
