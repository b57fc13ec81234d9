"""Transforms around a plain callable, one or many around each other, as one node of a tree.

Each transform of a chain takes apart what it wraps. With a node for each, a chain of `n` transforms
would be taken apart and put together in `n * n` steps.
"""

import weakref
from collections.abc import Callable
from typing import Any

from .._ground.exact import exact_key


class Chain:
    """The static part of a transform around a plain callable: the kinds and options of all transforms.

    `inner` is the chain of the transform inside, if there is one; `length` counts the transforms. Two
    chains are equal if their kinds and options are, exactly. The transform itself is referred to weakly:
    with the same callable in it, it need not be made again.

    **Raises:** `TypeError` for an unhashable option.
    """

    __slots__ = ("_hash", "_key", "_transform", "inner", "length", "options")

    is_exact = True

    def __init__(self, transform: Any, options: tuple[Any, ...], inner: "Chain | None"):
        self._key = type(transform), exact_key(options)
        self._hash = hash((self._key, inner))
        self._transform = weakref.ref(transform)
        self.options = options
        self.inner = inner
        self.length: int = 1 if inner is None else 1 + inner.length
        object.__setattr__(transform, "_chain", self)

    def around(self, function: Any, make: Callable[[type, tuple[Any, ...], Any], Any]) -> Any:
        """The transforms around a callable.

        `make` takes the kind and options of one, and what it wraps.
        """
        levels: list[Chain] = []
        chain: Chain | None = self
        while chain is not None:
            levels.append(chain)
            chain = chain.inner
        for level in reversed(levels):
            before = level._transform()
            if before is not None and before.fun is function:
                function = before
                continue
            function = make(level._key[0], level.options, function)
            object.__setattr__(function, "_chain", level)
            if before is None:
                level._transform = weakref.ref(function)
        return function

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        one: Any = self
        two: Any = other
        while one is not two:  # not by recursion: transforms may be nested deeply
            if type(one) is not type(two) or one._hash != two._hash or one._key != two._key:
                return False
            one, two = one.inner, two.inner
        return True

    def __repr__(self) -> str:
        return f"Chain({self._key[0].__name__})"
