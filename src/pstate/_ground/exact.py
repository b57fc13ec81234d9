"""Values distinguished exactly.

To Python `2` and `2.0`, `1` and `True` are equal, and so are tuples, dataclasses and partials that
hold them; but a program compiled for one computes something else for the other. An *exact key* also
has the types, and compares floats by their bits: `0.0` and `-0.0` differ, and `nan` equals itself.
"""

import dataclasses
import functools as ft
from collections.abc import Mapping
from typing import Any


_SIMPLE = frozenset({str, int, bool, bytes, type(None)})


def exact_key(value: Any) -> Any:
    """A key that identifies a value by type and value, also in containers.

    >>> exact_key((1, 2.0)) == exact_key((True, 2.0))
    False

    **Raises:** `TypeError` for an unhashable value, except for lists and dicts.
    """
    kind = type(value)
    if kind in _SIMPLE:
        return kind, value
    if kind is float:
        return kind, value.hex()
    if kind is complex:
        return kind, value.real.hex(), value.imag.hex()
    if isinstance(value, tuple | list):
        return kind, tuple(map(exact_key, value))
    if isinstance(value, Mapping):
        return kind, tuple((exact_key(k), exact_key(v)) for k, v in value.items())
    if isinstance(value, ft.partial):
        return kind, exact_key(value.func), exact_key(value.args), exact_key(value.keywords)
    hash(value)
    params = getattr(kind, "__dataclass_params__", None)
    if params is not None and params.eq:
        names = [field.name for field in dataclasses.fields(value) if field.compare]
        return kind, value, tuple(exact_key(getattr(value, name)) for name in names)
    return kind, value


class Exact:
    """Any value, equal to another if their exact keys are; an unhashable one equals only itself."""

    __slots__ = ("_key", "value")

    def __init__(self, value: Any):
        self.value = value
        try:
            self._key = exact_key(value)
        except TypeError:
            self._key = Identity(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exact) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


class Identity:
    """An object that equals only itself. It is kept alive, so that no other gets its identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
