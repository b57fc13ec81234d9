"""Names of pstate in text become links to the reference: `ps.vmap2(f)` leads to that of `ps.vmap2`."""

import functools as ft
import re
from pathlib import Path


REFERENCE = Path(__file__).parents[1] / "reference"

# What is left as it is: fenced code, headings, indented doctests, and what is a link already.
_KEPT = r"^```.*?^```$|^#.*?$|^ *(?:>>>|\.\.\.) .*?$|\[[^\]\n]*\]\([^)\s]*\)|\[[^\]\n]*\]\[[^\]\n]*\]"
_NAMED = r"(?<!`)`(?P<name>(?:ps|pstate)(?:\.\w+)+)[^`\n]*(?:\n[^`\n]*)?`(?!`)"
_CLASS = r"(?<!`)`(?P<own>[A-Z][A-Za-z]+)`(?!`)"


@ft.cache
def names() -> frozenset[str]:
    """The names that have an entry in the reference, as `pstate.vmap2`."""
    pages = (page.read_text() for page in sorted(REFERENCE.glob("*.md")))
    return frozenset(name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M))


def entry(name: str) -> str | None:
    """The entry that a name is explained in: its own, or that of the class that it is a part of."""
    name = name.removeprefix("ps.").removeprefix("pstate.")
    name = f"pstate.{name}"
    while name and name not in names():
        name = name.rpartition(".")[0]
    return name or None


def linked(text: str) -> str:
    """Markdown with a link at every name of pstate that stands in code.

    A class that is named alone, `StateError`, is one of pstate's; a function is not: `jit` may be JAX's.
    """

    def link(found: re.Match[str]) -> str:
        if found["name"]:
            name = entry(found["name"])
        else:
            name = f"pstate.{found['own']}" if f"pstate.{found['own']}" in names() else None
        return f"[{found[0]}][{name}]" if name else found[0]

    return re.sub(f"{_KEPT}|{_NAMED}|{_CLASS}", link, text, flags=re.MULTILINE | re.DOTALL)
