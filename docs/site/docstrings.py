"""Docstrings as mkdocstrings shows them: doctests in fences, names of pstate linked.

In the source, and in `help()`, an example is a doctest under the line `!!! example`. Markdown would run
its lines together.
"""

import re
from typing import Any

import griffe
from crosslinks import linked


_DOCTEST = re.compile(
    r"^(?P<indent> *)>>> .*\n?(?:^(?P=indent)\S.*\n?|^(?P=indent) +.*\n?)*", re.MULTILINE
)


def fenced(text: str) -> str:
    """A docstring with each doctest, up to the next empty line, in a fence."""

    def fence(found: re.Match[str]) -> str:
        indent = found["indent"]
        return f"{indent}```pycon\n{found[0].rstrip()}\n{indent}```\n"

    return _DOCTEST.sub(fence, text)


class Docstrings(griffe.Extension):
    """What griffe hands to mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if isinstance(obj, griffe.Function):
            obj.overloads = None  # for type checkers; people read the one signature
        if obj.docstring is not None:
            obj.docstring.value = linked(fenced(obj.docstring.value))
