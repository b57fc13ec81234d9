"""The pages: their code runs and prints what they show, their links lead somewhere, their lists hold.

`blocks.py` says what a page is, and what its blocks show.
"""

import ast
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

import pstate as ps
from pages.blocks import PAGES, blocks, check, examples, name_of, run
from pages.repository import DOCS, MODULES, ROOT, parsed
from pstate._ground import errors as _errors


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# Pages as blocks ------------------------------------------------------------------------------------


#: The pages that run on every version of JAX; of the others, some take long.
EVERYWHERE = {
    "README",
    "getting_started",
    "errors",
    "tutorial",
    "transforms",
    "faq",
    "debugging",
    "shard_map",
}
#: Pages that are run by `tests/recipes`, which goes on with what they define.
RECIPES = {page for page in PAGES if page.parent.name == "recipes" and page.stem != "index"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.once] * (name_of(page) not in EVERYWHERE))
        for page in PAGES
        if page not in RECIPES
    ],
    ids=name_of,
)
def test_blocks_do_what_the_page_shows(page: Path):
    """Every python block runs, and prints, raises or warns exactly as the page says.

    Blocks that need other libraries run in `test_peers.py`, recipes in `tests/recipes`.
    """
    check(page)


@each_page
def test_every_text_is_an_output(page: Path):
    """No text block stands alone: what a page shows as printed is compared with what is printed."""
    for block, before in zip(blocks(page)[1:], blocks(page), strict=False):
        attached = before.language == "python" and not block.before
        assert block.language != "text" or attached, f"{name_of(page)}:{block.start}"


def test_pages_have_names_of_their_own():
    """Pages of folders are found as well, and no two pages, in whatever folders, have one name."""
    names = [name_of(page) for page in PAGES]
    assert len(set(names)) == len(names)
    assert {"README", "errors", "recipes/index"} <= set(names)


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
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link}"
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


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


def test_every_name_has_an_entry():
    """The reference has an entry for each public name, one and no other; modules have pages."""
    pages = [page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))]
    entries = [name for page in pages for name in re.findall(r"^::: pstate\.(\S+)$", page, re.M)]
    names = {n.removeprefix("ps.") for n, thing in public_names().items() if not inspect.ismodule(thing)}
    assert sorted(entries) == sorted(names)


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
