"""Noticing that a body being compiled reads a state that it did not receive."""

from collections.abc import Callable
from typing import Any

from .._states.messages import describe
from .._states.threads import Watch, local


class Captured(Exception):  # noqa: N818 (never leaves the package)
    """A body that was being compiled read a state that is not an argument."""

    def __init__(self, shown: str):
        super().__init__(shown)
        self.shown = shown


class Untraced(Exception):  # noqa: N818 (never leaves the package)
    """A program was about to be traced by a call that took the short way."""


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, raising `Captured` after its run if it read a captured state.

    The run is finished first: model code may catch exceptions, and must not swallow this one.
    """

    def traced(*arrays: Any) -> Any:
        if local.flat is function:
            raise Untraced
        outer, local.watch = local.watch, Watch()
        try:
            result = function(*arrays)
            captured = local.watch.captured
        finally:
            local.watch = outer
        if captured is not None:
            raise Captured(describe(captured))
        return result

    return traced


def captured_message(fn: str, shown: str, advice: str = "") -> str:
    """The message for a captured state in a body that is always compiled."""
    return (
        f"{fn} reads the state {shown}, which did not come in through its arguments. Compiled, it would "
        "keep the value that the state has now and go stale. Pass the tree that holds the state as an "
        f"argument{advice}."
    )


BROADCAST_ADVICE = "; a mapping broadcasts it by in_axes=(None, 0)"
