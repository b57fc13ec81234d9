"""Tracebacks without the package's own frames.

The useful lines are the caller's, those of the function that was called, and JAX's. Ours are
removed when an error leaves the package, unless JAX is told to show its own:
`jax_traceback_filtering="off"`.
"""

import functools as ft
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax


F = TypeVar("F", bound=Callable[..., Any])

#: Where the package's files are.
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def shows_own_frames() -> bool:
    """Whether the user asked for all frames, JAX's and ours."""
    filtering = jax.config.jax_traceback_filtering  # pyright: ignore[reportAttributeAccessIssue]
    return filtering == "off"


def hide_own_frames(error: BaseException) -> None:
    """Remove the package's frames from the traceback of an error, and of the errors that caused it."""
    if shows_own_frames():
        return
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = _without_own(one.__traceback__)
        queue += [one.__cause__, one.__context__]


def _without_own(frames: types.TracebackType | None) -> types.TracebackType | None:
    kept: list[types.TracebackType] = []
    while frames is not None:
        if not frames.tb_frame.f_code.co_filename.startswith(PACKAGE):
            kept.append(frames)
        frames = frames.tb_next
    following = None
    for one in reversed(kept):
        one.tb_next = following
        following = one
    return following


#: Packages whose lines are not the user's own.
_PASSED_OVER = ("pstate", "jax", "equinox", "jaxtyping", "beartype")


def users_frame(frame: types.FrameType) -> tuple[int, types.FrameType]:
    """The innermost frame outside these packages, and its level: 1 for the given one."""
    level = 1
    while frame.f_back is not None:
        if package_of(frame) not in _PASSED_OVER:
            break
        level, frame = level + 1, frame.f_back
    return level, frame


def package_of(frame: types.FrameType) -> str:
    """The top-level package whose code runs in a frame."""
    return frame.f_globals.get("__name__", "").partition(".")[0]


def users_line() -> str:
    """The user's line that led here, as a traceback shows it."""
    _, frame = users_frame(sys._getframe())
    code = frame.f_code
    summary = traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name)
    return traceback.format_list([summary])[0].rstrip()


def short_tracebacks(function: F) -> F:
    """A function whose errors have none of the package's frames except one."""

    @ft.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            hide_own_frames(error)
            raise

    return called  # pyright: ignore[reportReturnType]
