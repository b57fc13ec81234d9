"""Errors that a compiled program raises while it runs, as `eqx.filter_jit` shows them.

`eqx.error_if`, and libraries that use it, such as Diffrax, raise from a callback of the running
program. JAX wraps that in its own error, with the traceback of the callback as text, and on
asynchronous devices raises it where the result is first used. `eqx.filter_jit` waits for the
program and shows the message and the line of `eqx.error_if`; so do the programs here.
"""

import logging
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax

from .._ground.tracebacks import PACKAGE, shows_own_frames


#: The names of JAX's primitives that run callbacks on the host.
_CALLBACKS = {"pure_callback", "io_callback"}


class CompiledFunction:
    """A compiled function that waits for its results if it may fail on the way.

    `call` is what to call. At the first call its trace is inspected, and then used for that call.
    """

    __slots__ = ("call", "jitted")

    def __init__(self, jitted: Any):
        self.jitted = jitted
        self.call: Callable[..., Any] = self._first

    def _first(self, *arrays: Any) -> Any:
        calls_back = has_callback(self.jitted.trace(*arrays).jaxpr.jaxpr)
        self.call = self._awaited if calls_back else self.jitted
        return self.call(*arrays)

    def _awaited(self, *arrays: Any) -> Any:
        return awaited(lambda: self.jitted(*arrays))


def awaited(run: Callable[[], Any]) -> Any:
    """The results of a program with callbacks, once it has finished.

    **Raises:** what `eqx.filter_jit` raises if `eqx.error_if` stopped the program.
    """
    try:
        with _quiet_callbacks():
            return jax.block_until_ready(run())
    except (RuntimeError, ValueError) as error:
        shown = _as_equinox_shows(error)
        if shown is None:
            raise
    raise shown  # outside the handler, so that JAX's error is not part of it


def has_callback(jaxpr: Any) -> bool:
    """Whether a program calls back to the host, which may raise an error."""
    found = any(eqn.primitive.name in _CALLBACKS for eqn in _equations(jaxpr))
    if not found:
        _without_callback.add(jaxpr)
    return found


#: Programs that were inspected. They are often inside the next one.
_without_callback: weakref.WeakSet[Any] = weakref.WeakSet()


def _equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, and of those inside it that may have a callback."""
    ahead, seen = [jaxpr], {id(jaxpr)}  # not by recursion: transforms may be nested deeply
    while ahead:
        for eqn in ahead.pop().eqns:
            yield eqn
            for parameter in eqn.params.values():
                inner: Sequence[Any] = parameter if isinstance(parameter, tuple | list) else (parameter,)
                for one in inner:
                    one = getattr(one, "jaxpr", one)
                    if hasattr(one, "eqns") and id(one) not in seen and one not in _without_callback:
                        seen.add(id(one))
                        ahead.append(one)


def _as_equinox_shows(error: Exception) -> Exception | None:
    """An error of `eqx.error_if` that JAX has wrapped, as `eqx.filter_jit` shows it."""
    if "EquinoxRuntimeError: " not in str(error):
        return None

    def fails() -> None:
        raise error

    try:
        eqx.filter_jit(fails)()
    except (RuntimeError, ValueError) as shown:
        if shown is error:
            return None
        text = str(shown) if shows_own_frames() else _OWN_FRAME.sub("", str(shown))
        return type(shown)(text)
    return None


#: A frame of the package in a textual traceback: the line with its place, and the code below.
_OWN_FRAME = re.compile(rf'^  File "{re.escape(PACKAGE)}.*\n(?:    .*\n)*', re.M)


@contextmanager
def _quiet_callbacks() -> Iterator[None]:
    """Inside this context JAX does not also log that a callback failed."""
    loggers = [logging.getLogger(name) for name in _callback_loggers()]
    for logger in loggers:
        logger.addFilter(_is_no_failed_callback)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_failed_callback)


def _callback_loggers() -> list[str]:
    known = list(logging.Logger.manager.loggerDict)
    return [name for name in known if name.startswith("jax.") and name.endswith(".callback")]


def _is_no_failed_callback(record: logging.LogRecord) -> bool:
    return record.getMessage() != "jax.pure_callback failed"
