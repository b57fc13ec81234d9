"""What pstate keeps on a function: its compiled programs, and what its names were last bound to.

On the function itself, so that a closure that leads back to it, such as that of a lambda in a method, is
a cycle that the garbage collector can collect.
"""

import types
import weakref
from typing import Any


_OWN = "__pstate_programs__"


class Own:
    """What is kept on one function. Pickled or copied with it, it is empty.

    `programs` has a table for each `Programs`; `bound` is the `Bindings` of the last call; `flat_calls`
    are those of its bound methods, by how these are transformed.
    """

    __slots__ = ("__weakref__", "bound", "flat_calls", "function", "programs")

    def __init__(self, function: Any = None):
        self.function: Any = (lambda: None) if function is None else weakref.ref(function)
        self.programs: dict[int, Any] = {}
        self.bound: Any = None
        self.flat_calls: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        return Own, ()


def own_of(function: types.FunctionType) -> Own:
    """What is kept on a function."""
    own = function.__dict__.get(_OWN)
    if own is None or own.function() is not function:  # functools.wraps copies what it finds
        own = function.__dict__[_OWN] = Own(function)
    return own
