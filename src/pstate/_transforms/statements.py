"""Transforms that are called at once: `scan(f, init, xs)`, `vjp(f, x)`.

They are transforms too, made and called in one statement, so they have no name in the user's code.
"""

from collections.abc import Sequence
from typing import Any

from .._calls.call import Call
from .._calls.callables import Partial
from .._calls.naming import parameters
from .._calls.transform import Transform, code_of


class Statement(Transform):
    """A transform that is made and called in one statement."""

    __slots__ = ()

    def _line(self, call: Call, index: int) -> str:
        root = call.signature.root(index, call.names)
        return f"out, {root} = ps.pure(lambda {root}: {self._shown(call, index)})({root})"

    def _shown(self, call: Call, index: int) -> str:
        """The statement as code."""
        start = self._code().partition("(")[0]
        arguments = [callable_code(self.fun), *shown_arguments(call), *self._options()]
        return f"{start}({', '.join(arguments)})"

    def _options(self) -> list[str]:
        """The non-default options, as code."""
        return []


def shown_arguments(call: Call) -> Sequence[str]:
    """Names for the positional arguments of a call."""
    names = call.names
    return [*names, *(f"arg{i}" for i in range(len(names), len(call.args)))][: len(call.args)]


def callable_code(fn: Any) -> str:
    """A callable as code that runs if its parts have their usual names."""
    if isinstance(fn, Partial):
        names = parameters(fn.function)
        filled = [*names[: len(fn.args)], *(f"{name}={name}" for name in fn.keywords)]
        return f"ft.partial({', '.join([callable_code(fn.function), *filled])})"
    return code_of(fn)
