"""Errors and warnings.

Every message names the state and its place (`counter.count`, `args[1].layers[0].mean`), what was
expected and what was passed, and shows the right code. `docs/errors.md` shows each of them.
"""

import dataclasses

from .public import public


@public
class StateError(Exception):
    """The base of every error that pstate raises about states."""


@public
class FrozenStateError(StateError, dataclasses.FrozenInstanceError):
    """A state was written where the write is not recorded, so it would be lost."""


@public
class TraceScopeError(StateError, RuntimeError):
    """A live state was used under a JAX trace, or in a thread, other than that of its recording."""


@public
class CapturedStateError(StateError, RuntimeError):
    """A compiled body read a state that did not come in through its arguments."""


@public
class AliasedStateError(StateError, ValueError):
    """One state object is at two places in a tree, and was written."""


@public
class UninitializedStateError(StateError, ValueError):
    """An empty state was read."""


@public
class BatchAxisError(StateError, ValueError):
    """A batched write that no declared axis covers, or a declared axis that does not fit."""


@public
class StateTypeError(StateError, TypeError):
    """A state changes its shape or dtype in a loop or a branch, or is live in a loop's carry."""


@public
class StateWarning(UserWarning):
    """The base of every warning that pstate gives."""


@public
class CapturedStateWarning(StateWarning):
    """An eager mapping read a state that is not an argument, and therefore runs uncompiled."""


@public
class StaleStateWarning(StateWarning):
    """A bound function that writes is called again, and starts from the same module as before."""


@public
class UnmatchedFilterWarning(StateWarning):
    """A filter under an axis matches no state of the call; nearly always a typo."""


@public
class BatchAxisWarning(StateWarning):
    """A state got a new axis that its next call will not know about."""


@public
class RecompilationWarning(StateWarning):
    """A Python scalar keeps changing, and every new value compiles a new program."""


@public
class UnmatchedPathWarning(StateWarning):
    """`update(..., strict=False)` found states without a value, or values without a state."""
