"""A compiled program, and what happens when its body reads a state that it did not receive."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._ground.errors import CapturedStateError, CapturedStateWarning
from .._states.messages import warn
from .capturing import BROADCAST_ADVICE, Captured, captured_message, watched
from .runtime_errors import CompiledFunction


class Entry:
    """A compiled program of an eager mapping.

    A program that reads captured states runs uncompiled, so the values that it reads are never
    stale.
    """

    def __init__(self, program: Any, name: str, advice: str):
        self.program = program
        self.advice = advice
        self.uncompiled = False
        self.jitted = jax.jit(program.presented(watched(program), name=name))
        self._compiled = CompiledFunction(self.jitted)

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        """The program; a call that has run is not traced again."""
        return self._looked_at(lambda: self.jitted.trace(*avals).jaxpr)

    def lower(self, avals: Sequence[Any]) -> Any:
        """The program, lowered."""
        return self._looked_at(lambda: self.jitted.lower(*avals))

    def _looked_at(self, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Captured as captured:
            raise CapturedStateError(
                captured_message(self.program.described.fn, captured.shown, BROADCAST_ADVICE)
            ) from None

    @property
    def call(self) -> Callable[..., Any]:
        """What runs the compiled program. `Captured` is raised as it is."""
        return self._compiled.call

    def run(self, arrays: list[Any]) -> Any:
        if not self.uncompiled:
            try:
                return self.call(*arrays)
            except Captured as captured:
                self.uncompiled = True
                warn(
                    f"{self.program.described.fn} reads the state {captured.shown}, which is not an "
                    "argument. Compiled, it would keep the value that the state has now, so it runs "
                    f"uncompiled, which is slow. {self.advice}",
                    CapturedStateWarning,
                )
        return self.program(*arrays)
