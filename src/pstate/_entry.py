"""A compiled program, and what happens when its body reads a state that it did not receive."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ._cell import Watch, local
from ._errors import CapturedStateError, CapturedStateWarning
from ._messages import describe, warn


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


def captured_message(fn: str, shown: str, advice: str = "") -> str:
    """What to say of a captured state in a body that is compiled for certain."""
    return (
        f"{fn} reads the state {shown}, which did not come in through its arguments. Compiled, it would "
        "keep the value that the state has now and go stale. Pass the tree that holds the state as an "
        f"argument{advice}."
    )


_BROADCAST = "; a mapping broadcasts it by in_axes=(None, 0)"


class DeviceEntry:
    """The compiled programs of a mapping over devices, by the shapes of their operands.

    `jax.pmap` is called without a `jax.jit` around it, which would move everything to one device.
    """

    def __init__(self, program: Any, name: str):
        self.program = program
        self.name = name
        self.traced: dict[Any, Any] = {}

    def run(self, arrays: list[Any]) -> Any:
        leaves = self.program.leaves(arrays)
        return self.replay(arrays, leaves).run_on(leaves)

    def replay(self, arrays: list[Any], leaves: list[Any]) -> Any:
        """The traced program for these shapes."""
        key = tuple((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in arrays)
        found = self.traced.get(key)
        if found is None:
            found = self.traced[key] = self._trace(leaves)
        return found

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        """The program that each device runs."""
        return self.replay(list(avals), self.program.leaves(avals)).jaxpr

    def lower(self, avals: Sequence[Any]) -> Any:
        """The program of all devices, lowered."""
        try:
            return jax.jit(watched(self.program, self.name)).lower(*avals)
        except Captured as captured:
            raise CapturedStateError(
                captured_message(self.program.described.fn, captured.shown, _BROADCAST)
            ) from None

    def _trace(self, leaves: list[Any]) -> Any:
        try:
            return watched(self.program.replay, self.name)(leaves)
        except Captured as captured:
            raise CapturedStateError(
                captured_message(self.program.described.fn, captured.shown, _BROADCAST)
            ) from None


class Entry:
    """A compiled program of an eager mapping.

    A program that reads captured states runs uncompiled, so that what it reads is never stale.
    """

    def __init__(self, program: Any, name: str, advice: str):
        self.program = program
        self.advice = advice
        self.uncompiled = False
        self.jitted = jax.jit(watched(program, name))

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        """The program; a call that ran is not traced again."""
        return self._looked_at(lambda: self.jitted.trace(*avals).jaxpr)

    def lower(self, avals: Sequence[Any]) -> Any:
        """The program, lowered."""
        return self._looked_at(lambda: self.jitted.lower(*avals))

    def _looked_at(self, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Captured as captured:
            raise CapturedStateError(
                captured_message(self.program.described.fn, captured.shown, _BROADCAST)
            ) from None

    def run(self, arrays: list[Any]) -> Any:
        if not self.uncompiled:
            try:
                return self.jitted(*arrays)
            except Captured as captured:
                self.uncompiled = True
                warn(
                    f"{self.program.described.fn} reads the state {captured.shown}, which is no "
                    "argument. Compiled, it would keep the value that the state has now; therefore it "
                    f"runs uncompiled, which is slow. {self.advice}",
                    CapturedStateWarning,
                )
        return self.program(*arrays)
