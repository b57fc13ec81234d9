"""The static part of a transform as one object, which knows the transform again.

A call takes its callable apart and puts it together, and does so at each level of transforms around
each other. A transform that is put together around the callable that it had is the same transform.
"""

import weakref
from collections.abc import Callable
from typing import Any

from .._ground.exact import exact_key


class StaticPart:
    """The options of a transform. Two are equal if their options are, exactly.

    The transform is referred to weakly.

    **Raises:** `TypeError` for an unhashable option.
    """

    __slots__ = ("_hash", "_key", "_transform", "options")

    is_exact = True

    def __init__(self, transform: Any, options: tuple[Any, ...]):
        self._key = exact_key(options)
        self._hash = hash(self._key)
        self._transform = weakref.ref(transform)
        self.options = options

    def around(self, fun: Any, make: Callable[[tuple[Any, ...], Any], Any]) -> Any:
        """The transform around a callable. `make` takes the options, and what it wraps."""
        before = self._transform()
        if before is not None and before.fun is fun:
            return before
        transform = make(self.options, fun)
        transform._set_static(self)
        if before is None:
            self._transform = weakref.ref(transform)
        return transform

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, StaticPart) and other._key == self._key)

    def __repr__(self) -> str:
        return repr(self.options)
