"""The site as HTML, built strictly, and as a browser shows it.

It needs the extra `docs`, and for the browser Debian's package `chromium`; `.ci/run` has both.
"""

import functools as ft
import http.server
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pages.repository import DOCS
from pages.test_pages import public_names


pytest.importorskip("mkdocs", reason="the site is built with the extra docs: pip install -e '.[docs]'")

CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML. A warning of MkDocs, such as one about a link, fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(DOCS / "site" / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


class Page(HTMLParser):
    """What a page shows: prose, blocks of code, anchors, and names in code without a link."""

    def __init__(self, path: Path):
        super().__init__()
        self.prose, self.code = "", ""
        self.ids: set[str] = set()
        self.unlinked: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name == "id" and value}
        if tag not in ("br", "img", "input", "link", "meta", "hr", "path", "source"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        if "pre" in self._open:
            self.code += data
            return
        if "code" not in self._open:
            self.prose += data
        elif not {"a", "h1", "h2", "h3", "h4", "nav"} & set(self._open):
            self.unlinked += re.findall(r"^ps\.\w+", data)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_name_has_an_entry(pages: dict[str, Page]):
    """Each public name is an anchor of the reference."""
    found = set[str]().union(*(page.ids for name, page in pages.items() if name.startswith("reference")))
    names = {name.replace("ps.", "pstate.", 1) for name in public_names()}
    assert names - found == {"pstate.filter", "pstate.nn"}


def test_nothing_is_left_raw(pages: dict[str, Page]):
    """No fence, admonition, directive, doctest or mark for the tests is shown as text."""
    for name, page in pages.items():
        assert not re.search(r"```|^!!! |::: pstate|>>> |<!-- ", page.prose, re.MULTILINE), name


def test_names_lead_to_the_reference(pages: dict[str, Page]):
    """No name with an entry stands in code in the text without a link."""
    names = public_names()
    for name, page in pages.items():
        assert [n for n in page.unlinked if n in names and n not in ("ps.filter", "ps.nn")] == [], name


def test_no_example_is_broken(pages: dict[str, Page]):
    """Each line of code of the pages is a line of code on the site."""
    shown = {line.strip() for page in pages.values() for line in page.code.splitlines()}
    for source in sorted(DOCS.rglob("*.md")):
        for block in re.findall(r"^```python\n(.*?)^```$", source.read_text(), re.M | re.S):
            assert {line.strip() for line in block.splitlines()} <= shown, source.name


@pytest.fixture
def browser(site: Path) -> Iterator[tuple[Any, list[str]]]:
    """A page of a browser on the served site, and what went wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[docs]'")
    if CHROMIUM is None:
        pytest.skip("the browser is Debian's package chromium")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = ft.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with playwright.sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            address = f"http://127.0.0.1:{server.server_port}"
            page = chromium.new_page(base_url=address, viewport={"width": 1300, "height": 900})
            wrong: list[str] = []
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("requestfailed", ft.partial(_note_failure, wrong))
            page.on("response", lambda got: wrong.append(got.url) if got.status >= 400 else None)
            yield page, wrong
            chromium.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _note_failure(wrong: list[str], request: Any) -> None:
    if "ERR_ABORTED" not in request.failure:  # which is a page that was left while it loaded
        wrong.append(request.url)


def test_a_newcomer_in_a_browser(browser: tuple[Any, list[str]]):
    """The path of a newcomer: start, getting started, a recipe, an error by its symptom, `vmap2`."""
    page, wrong = browser
    page.goto("/")
    columns = page.locator(".side-by-side > div")
    assert columns.count() == 2
    left, right = columns.nth(0).bounding_box(), columns.nth(1).bounding_box()
    assert left["y"] == right["y"], "the two programs stand beside each other"
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

    page.get_by_role("link", name="Getting started").first.click()
    page.wait_for_url("**/getting_started/")
    assert page.locator(".raises .filename").first.inner_text() == "raises FrozenStateError"

    page.locator(".md-tabs").get_by_role("link", name="How-to").click()
    page.locator("article").get_by_role("link", name="intermediate").first.click()
    page.wait_for_url("**/recipes/intermediate_values/")
    page.locator("article").get_by_role("link", name="ps.reap").first.click()
    page.wait_for_url("**/reference/trees/#pstate.reap")

    page.goto("/errors/")
    page.locator("article table").get_by_role("link", name="BatchAxisError").first.click()
    page.wait_for_url("**/errors/BatchAxisError/**")
    assert "BatchAxisError" in page.locator("h1").inner_text()

    page.goto("/reference/mapping/")
    entry = page.locator(".doc-object:has(> h2#pstate\\.vmap2)")
    assert "state_in_axes=None" in entry.locator(".doc-signature").first.inner_text()
    assert entry.locator(".admonition.example pre").first.inner_text().startswith(">>> ")
    assert wrong == []


@pytest.mark.parametrize(("words", "target"), [("vmap2", "ps.vmap2"), ("FrozenStateError", "Frozen")])
def test_search(browser: tuple[Any, list[str]], words: str, target: str):
    """Typing a name into the search finds pages about it, and the first leads to one that has it."""
    page, wrong = browser
    page.goto("/")
    page.locator("input.md-search__input").fill(words)
    first = page.locator(".md-search-result__item").first
    first.wait_for()
    assert target in first.inner_text()
    first.locator("a").first.click()
    page.wait_for_url(lambda address: "?h=" in address)
    assert words in page.locator("article").inner_text()
    assert wrong == []


def test_light_and_dark(browser: tuple[Any, list[str]]):
    """The colours follow the switch."""
    page, wrong = browser
    page.goto("/")
    scheme = lambda: page.locator("body").get_attribute("data-md-color-scheme")
    before = scheme()
    page.locator("form[data-md-component=palette] label:visible").click()
    assert {before, scheme()} == {"default", "slate"}
    assert wrong == []
