"""The documentation as a site: `python docs/site/build.py [FOLDER]`, by default in build/site.

The site is made of what the repository holds: README.md, the pages of docs/, the examples with their
figures, the changelog, and the docstrings. Pages are written to be read on GitHub. Here they are put
where the site has them, with these changes:

- a link to an example leads to its page; one to another file of the repository becomes plain words;
- a name of pstate in code leads to its entry in the reference (`crosslinks.py`);
- a block that raises or warns says so above its first line;
- docs/errors.md becomes a page for each class.

Then `mkdocs build --strict` makes HTML of it, in FOLDER/html. No plugin or hook takes part that
Zensical, the successor of MkDocs, does not read: `zensical build -f FOLDER/mkdocs.yml` makes the same.
"""

import argparse
import ast
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

from crosslinks import REFERENCE, linked


SITE = Path(__file__).parent
DOCS = SITE.parent
ROOT = DOCS.parent

#: Pages of the site by the files that they are made of, as paths from the root of the repository.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "tests/benchmarks/README.md": "benchmarks.md",
}
#: `docstrings.py` is found by its name; MkDocs is known to have a successor.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SITE), "NO_MKDOCS_2_WARNING": "1"}
#: The examples: the titles of their pages, and the figures that they draw.
EXAMPLES = {
    "minimal": ("Memory, the shortest", ["minimal"]),
    "digits_ensemble": ("Digits, an ensemble", ["digits_ensemble"]),
    "spiking_ensemble": ("Spiking networks", ["spiking_raster", "spiking_rates"]),
    "actor_rollouts": ("Balancing poles", ["actor_rollouts"]),
    "data_parallel": ("Several processes", []),
}


def pages() -> dict[str, str]:
    """The pages, `{path in the site: Markdown}`."""
    sources = [ROOT / name for name in MOVED] + sorted(DOCS.rglob("*.md"))
    texts = {source.relative_to(ROOT).as_posix(): source.read_text() for source in sources}
    found = {placed(source): text for source, text in texts.items()}
    sections = error_sections(texts["docs/errors.md"])
    of_anchor = {a: page for page, text in sections.items() for a in anchors(text)}
    origins = {placed(source): source for source in texts} | dict.fromkeys(sections, "docs/errors.md")
    found |= sections
    for page, text in found.items():
        text = with_links(text, page, origins[page], of_anchor)
        found[page] = linked(with_marks(side_by_side(text)))
    found["reference/index.md"] += every_name()
    for page in found:
        if page.startswith("reference/"):
            found[page] = with_headings(found[page])
    found["index.md"] = "---\nhide:\n  - navigation\n  - toc\n---\n\n" + found["index.md"]
    return found | {f"examples/{name}.md": example(name) for name in EXAMPLES}


def placed(source: str) -> str:
    """Where the site has a file of the repository."""
    moved = MOVED.get(source, source.removeprefix("docs/"))
    return re.sub(r"^examples/(\w+)\.py$", r"examples/\1.md", moved)


def error_sections(text: str) -> dict[str, str]:
    """docs/errors.md as a page for what is common to all, and one for each class."""
    common, *sections = re.split(r"^## (?=`)", text, flags=re.MULTILINE)
    pages = {"errors.md": common}
    for section in sections:
        title, _, body = section.partition("\n")
        body = re.sub(r"^#(#+ )", r"\1", body, flags=re.MULTILINE)
        pages[f"errors/{title.strip('`')}.md"] = f"# {title}\n{body}"
    return pages


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> list[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def with_links(text: str, page: str, origin: str, of_anchor: dict[str, str]) -> str:
    """A page whose links lead to pages of the site. Other files of the repository have none."""

    def moved(found: re.Match[str]) -> str:
        words, link = found["words"], found["link"]
        if words is None or re.match(r"[a-z]+:", link):
            return found[0]
        path, _, anchor = link.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)) if path else origin
        target = placed(there)
        if target == "errors.md" and anchor in of_anchor:
            target = of_anchor[anchor]
            anchor = "" if anchor == Path(target).stem.lower() else anchor
        if not target.endswith(".md") and "figures/" not in target:
            return words[1:-1]
        relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"{words}({relative}{'#' * bool(anchor)}{anchor})"

    pattern = r"^```.*?^```$|(?P<words>!?\[[^\]]*\])\((?P<link>[^)\s]+)\)"
    return re.sub(pattern, moved, text, flags=re.MULTILINE | re.DOTALL)


def with_marks(text: str) -> str:
    """A page whose blocks that raise or warn say so, and whose messages have the name of the class."""

    def marked(found: re.Match[str]) -> str:
        what, name, code, message = found.groups()
        block = f'```{{.python .{what} title="{what} {name}"}}\n{code}```'
        return block + (f'\n\n```{{.text .message title="{name}"}}\n{message}```' if message else "")

    pattern = r"^<!-- (raises|warns): (\w+) -->\n```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    text = re.sub(pattern, marked, text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^```text$", "```{.text .output}", text, flags=re.MULTILINE)


def side_by_side(text: str) -> str:
    """README's table of two programs as two columns, in which Markdown is read."""
    heads, cells = (
        r"<tr><th>(.*?)</th><th>(.*?)</th></tr>",
        r"<tr><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>",
    )
    pattern = rf"<table>\n{heads}\n{cells}\n</table>"

    def columns(found: re.Match[str]) -> str:
        left, right, by_hand, ours = found.groups()
        column = "<div markdown>\n\n**{}**\n{}\n</div>\n"
        return (
            '<div class="side-by-side" markdown>\n'
            + column.format(left, by_hand)
            + column.format(right, ours)
            + "</div>"
        )

    return re.sub(pattern, columns, text, flags=re.DOTALL)


def with_headings(text: str) -> str:
    """A page of the reference whose entries are called as people write them, `ps.vmap2`."""

    def entry(found: re.Match[str]) -> str:
        name = found[1].replace("pstate.", "ps.", 1)
        return f"{found[0]}\n    options:\n      heading: {name}\n      toc_label: {name}"

    return re.sub(r"^::: (\S+)$", entry, text, flags=re.MULTILINE)


def every_name() -> str:
    """The table of all names, with the first sentence of their docstrings' first lines."""
    import pstate

    text = ""
    index = (REFERENCE / "index.md").read_text()
    for title, page in re.findall(r"^\| \[(.*?)\]\((\w+\.md)\)", index, re.MULTILINE):
        text += f"\n## {title}\n\n| | |\n|---|---|\n"
        for name in re.findall(r"^::: (\S+)$", (REFERENCE / page).read_text(), re.MULTILINE):
            thing = pstate
            for part in name.split(".")[1:]:
                thing = getattr(thing, part)
            own = thing.__doc__ if isinstance(thing, type) or callable(thing) else None
            summary = (own or "").strip().partition("\n")[0]
            text += f"| [`{name.replace('pstate.', 'ps.', 1)}`][{name}] | {linked(summary)} |\n"
    return text


def example(name: str) -> str:
    """The page of an example: what it is, what it draws, the program."""
    title, figures = EXAMPLES[name]
    source = (ROOT / "examples" / f"{name}.py").read_text()
    first, _, about = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
    shown = "\n\n".join(f"![{first}](../figures/{figure}.png)" for figure in figures)
    program = source.split('"""', 2)[2].strip()
    code = f'```{{.python title="examples/{name}.py"}}\n{program}\n```\n'
    return linked("\n\n".join((f"# {title}", first, shown, about, code)))


def write(folder: Path) -> None:
    """The sources of the site."""
    shutil.rmtree(folder, ignore_errors=True)
    for page, text in pages().items():
        path = folder / "docs" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(DOCS / "figures", folder / "docs" / "figures")
    shutil.copy(SITE / "extra.css", folder / "docs")
    config = (SITE / "mkdocs.yml").read_text()
    (folder / "mkdocs.yml").write_text(config.replace("paths: [src]", f"paths: [{ROOT / 'src'}]"))


def main() -> None:
    """Write the sources, then the HTML."""
    parser = argparse.ArgumentParser(description="Build the documentation's site.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "site")
    folder = parser.parse_args().folder.resolve()
    write(folder)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(folder / "mkdocs.yml")]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    print(f"python -m http.server -d {os.path.relpath(folder / 'html')}  # to read it")


if __name__ == "__main__":
    main()
