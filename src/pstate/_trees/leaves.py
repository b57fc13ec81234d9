"""Leaves of a call: arrays, which are operands, and the rest, which is static.

A static leaf is part of the program, by type and value: `1`, `1.0` and `True` differ, and so do `0.0`
and `-0.0`; `nan` equals itself.
"""

import itertools as it
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from .._states.deferred import Deferred


class Number:
    """A Python number that is an operand. By itself a number is static."""

    __slots__ = ("number",)

    def __init__(self, number: bool | int | float):
        self.number = number


_OPERANDS = (jax.Array, np.ndarray, np.number, np.bool_, jax.ShapeDtypeStruct, Deferred, Number)


class LeafKinds:
    """For each leaf, whether it is an operand; which leaves are static; and what some of them are."""

    __slots__ = ("has_deferred", "has_numbers", "has_tracers", "mask", "statics")

    def __init__(self, leaves: Sequence[Any]):
        self.mask: tuple[bool, ...] = tuple(isinstance(leaf, _OPERANDS) for leaf in leaves)
        self.statics = tuple(i for i, is_one in enumerate(self.mask) if not is_one)
        self.has_tracers = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        self.has_deferred = any(isinstance(leaf, Deferred) for leaf in leaves)
        self.has_numbers = any(isinstance(leaf, Number) for leaf in leaves)

    def operands(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves that are operands."""
        operands = list(it.compress(leaves, self.mask))
        if self.has_numbers:
            return [x.number if type(x) is Number else x for x in operands]
        return operands


#: By the types of the leaves: an `isinstance` with `jax.Array` costs about 0.3 us, which would be
#: noticeable in a call with many leaves.
_known: dict[tuple[type, ...], LeafKinds] = {}
_MAX_KNOWN = 4096


def kinds_of(leaves: Sequence[Any]) -> LeafKinds:
    """What the leaves are. Worked out once for all leaves of the same types."""
    types = tuple(map(type, leaves))
    found = _known.get(types)
    if found is None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        found = _known[types] = LeafKinds(leaves)
    return found


def operand_mask(leaves: Sequence[Any]) -> tuple[bool, ...]:
    """For each leaf, whether it is an operand."""
    return kinds_of(leaves).mask
