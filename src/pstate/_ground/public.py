"""Which module public names say that they are from."""

from collections.abc import Callable
from typing import TypeVar


T = TypeVar("T")


def public_in(module: str) -> Callable[[T], T]:
    """Mark a class or function as a public module's, so that pickles and messages do not name wings."""

    def mark(thing: T) -> T:
        thing.__module__ = module
        return thing

    return mark


#: Mark a class or function as `pstate`'s.
public = public_in("pstate")
