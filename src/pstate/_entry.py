"""A compiled program, and what happens when its body reads a state that it did not receive."""

import warnings
from collections.abc import Callable
from typing import Any

import jax

from ._cell import Watch, local
from ._errors import CapturedStateWarning
from ._messages import describe


class Captured(Exception):  # noqa: N818 (never leaves the package)
    """A body that was being compiled read a state that is no argument."""

    def __init__(self, shown: str):
        super().__init__(shown)
        self.shown = shown


def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function`, raising `Captured` after its run if it read a captured state.

    The run is finished first: model code may catch exceptions, and must not swallow this one.
    """

    def traced(*arrays: Any) -> Any:
        outer, local.watch = local.watch, Watch()
        try:
            result = function(*arrays)
            captured = local.watch.captured
        finally:
            local.watch = outer
        if captured is not None:
            raise Captured(describe(captured))
        return result

    traced.__name__ = traced.__qualname__ = name
    return traced


class Entry:
    """A compiled program of an eager mapping.

    A program that reads captured states runs uncompiled, so that what it reads is never stale.
    """

    def __init__(self, program: Any, name: str):
        self.program = program
        self.uncompiled = False
        self.jitted = jax.jit(watched(program, name))

    def run(self, arrays: list[Any]) -> Any:
        if not self.uncompiled:
            try:
                return self.jitted(*arrays)
            except Captured as captured:
                self.uncompiled = True
                warnings.warn(
                    f"{self.program.described.fn} reads the state {captured.shown}, which is no "
                    "argument. Compiled, it would keep the value that the state has now; therefore it "
                    "runs uncompiled, which is slow. Pass the tree that holds the state as an argument "
                    "and broadcast it: in_axes=(None, 0).",
                    CapturedStateWarning,
                    stacklevel=5,
                )
        return self.program(*arrays)
