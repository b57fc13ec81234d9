"""The compiled programs of a mapping over devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._ground.errors import CapturedStateError
from .._ground.versions import trace_context
from .._programs.capturing import BROADCAST_ADVICE, Captured, captured_message, watched
from .._programs.runtime_errors import awaited, has_callback
from .lanes import Meta


class DeviceEntry:
    """The compiled programs of a mapping over devices, by the shapes of their operands.

    `jax.pmap` is called without a `jax.jit` around it, which would move everything to one device.
    """

    def __init__(self, program: Any, name: str):
        self.program = program
        self.name = name
        self.traced: dict[Any, Any] = {}

    def run(self, arrays: list[Any], check: Callable[[Meta], None]) -> Any:
        """Run. `check` raises if the call will be refused: then it must not run and give up buffers."""
        leaves = self.program.leaves(arrays)
        replay = self.replay(arrays, leaves)
        check(replay.found)
        if has_callback(replay.jaxpr.jaxpr):
            return awaited(lambda: replay.run_on(leaves))
        return replay.run_on(leaves)

    def replay(self, arrays: list[Any], leaves: list[Any]) -> Any:
        """The traced program for these shapes."""
        avals = ((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in arrays)
        key = (trace_context(), *avals)
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
            shown = self.program.presented(watched(self.program), name=self.name)
            return jax.jit(shown).lower(*avals)
        except Captured as captured:
            raise CapturedStateError(
                captured_message(self.program.described.fn, captured.shown, BROADCAST_ADVICE)
            ) from None

    def _trace(self, leaves: list[Any]) -> Any:
        try:
            return watched(self.program.replay)(leaves)
        except Captured as captured:
            raise CapturedStateError(
                captured_message(self.program.described.fn, captured.shown, BROADCAST_ADVICE)
            ) from None
