"""The sources of the documentation's site: what is made of pages, docstrings and examples."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pages.repository import DOCS, ROOT


SITE = DOCS / "site"


@pytest.fixture(scope="module")
def build():
    """The module that makes the sources, which finds its neighbours by their names."""
    sys.path.insert(0, str(SITE))
    try:
        spec = importlib.util.spec_from_file_location("build", SITE / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SITE))


@pytest.fixture(scope="module")
def pages(build: Any) -> dict[str, str]:
    return build.pages()


def test_every_page_has_a_place(pages: dict[str, str]):
    """Each page of the repository, and each example, is a page of the site and stands in its menu."""
    menu = re.findall(r"(\S+\.md)$", (SITE / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(pages)
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"plotting"}
    assert {Path(page).stem for page in pages if page.startswith("examples/")} == examples


def test_links_lead_to_pages(pages: dict[str, str], build: Any):
    """Relative links lead to pages of the site, with an anchor that the page has, or to figures."""
    for page, text in pages.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", build.without_code(text)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            folder = (Path("/site") / page).parent
            target = (folder / path).resolve().relative_to("/site").as_posix() if path else page
            if target.startswith("figures/"):
                assert (DOCS / target).exists(), f"{page}: {link}"
                continue
            assert target in pages, f"{page}: {link}"
            assert not anchor or anchor in build.anchors(pages[target]), f"{page}: {link}"


def test_names_are_linked(build: Any):
    """A name in code is linked to its entry, or that of its class; headings, blocks, links are kept."""
    linked = build.linked
    assert linked("see `ps.vmap2(f)`.") == "see [`ps.vmap2(f)`][pstate.vmap2]."
    assert linked("`ps.RandomState.normal`") == "[`ps.RandomState.normal`][pstate.RandomState]"
    assert linked("`ps.filter.OfType(k)`") == "[`ps.filter.OfType(k)`][pstate.filter.OfType]"
    assert linked("raises `StateError`") == "raises [`StateError`][pstate.StateError]"
    for kept in (
        "## `ps.vmap2`",
        "[`ps.vmap2`](x.md)",
        "[`ps.vmap2`][pstate.vmap2]",
        "```python\n`ps.vmap2`\n```",
        "    >>> f('`ps.vmap2`')",
        "`ps.nothing`",
        "`jit`",
        "`Linear`",
    ):
        assert linked(kept) == kept


def test_errors_have_pages(pages: dict[str, str], build: Any):
    """Each class of docs/errors.md has a page, found by symptom from the first; nothing is left out."""
    text = (DOCS / "errors.md").read_text()
    classes = re.findall(r"^## `(\w+)`$", text, re.MULTILINE)
    assert {f"errors/{name}.md" for name in classes} == {p for p in pages if p.startswith("errors/")}
    symptoms = build.error_sections(text)["errors.md"]
    assert all(f"(#{name.lower()}" in symptoms or name in by_anchor(text, symptoms) for name in classes)
    code = lambda text: re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    sections = build.error_sections(text).values()
    assert sum(len(code(section)) for section in sections) == len(code(text))


def by_anchor(text: str, symptoms: str) -> set[str]:
    """The classes whose sections have a heading that a symptom leads to."""
    linked = set(re.findall(r"\(#([\w-]+)\)", symptoms))
    found = set()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.*)$", section, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        if anchors & linked:
            found.add(section.partition("\n")[0].strip("`"))
    return found


def test_blocks_that_raise_say_so(pages: dict[str, str]):
    """No mark for the tests is left as a comment; each became a title."""
    marks = re.findall(r"<!-- (?:raises|warns): \w+ -->", (DOCS / "errors.md").read_text())
    titled = sum(
        len(re.findall(r'^```\{\.python \.(?:raises|warns) title="', pages[page], re.MULTILINE))
        for page in pages
        if page.startswith("errors")
    )
    assert titled == len(marks) > 0
    assert not any(re.search(r"^<!-- (raises|warns)", text, re.M) for text in pages.values())


def test_doctests_are_fenced():
    """A doctest becomes a block up to the next empty line; the rest of a docstring stays."""
    pytest.importorskip("griffe", reason="pip install -e '.[docs]'")
    sys.path.insert(0, str(SITE))
    try:
        import docstrings
    finally:
        sys.path.remove(str(SITE))
    text = "A.\n\n!!! example\n\n    >>> f(\n    ...     1)\n    2\n      3\n\n    And:\n\n    >>> g()\n"
    assert docstrings.fenced(text) == (
        "A.\n\n!!! example\n\n    ```pycon\n    >>> f(\n    ...     1)\n    2\n      3\n    ```\n\n"
        "    And:\n\n    ```pycon\n    >>> g()\n    ```\n"
    )
