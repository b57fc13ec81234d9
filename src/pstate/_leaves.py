"""Leaves of a call: arrays, which are operands, and the rest, which is static.

A static leaf is part of the program, by type and value: `1`, `1.0` and `True` differ, and so do `0.0`
and `-0.0`; `nan` equals itself.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ._cell import Deferred


_OPERANDS = (jax.Array, np.ndarray, np.number, np.bool_, jax.ShapeDtypeStruct, Deferred)


class _IsOperand(dict[type, bool]):
    """Whether leaves of a type are operands; asked of an instance once per type.

    An `isinstance` with `jax.Array` costs about 0.3 us, which a call with many leaves would feel.
    """

    def of(self, leaf: Any) -> bool:
        known = self.get(type(leaf))
        if known is None:
            known = self[type(leaf)] = isinstance(leaf, _OPERANDS)
        return known


_is_operand = _IsOperand()


def operand_mask(leaves: Sequence[Any]) -> list[bool]:
    """For each leaf whether it is an operand."""
    of = _is_operand.of
    return [of(leaf) for leaf in leaves]


def static_key(leaf: Any) -> Any:
    """What makes two static leaves the same.

    **Raises:** `TypeError` where the leaf is unhashable.
    """
    if type(leaf) is float:
        return float, leaf.hex()
    if type(leaf) is complex:
        return complex, leaf.real.hex(), leaf.imag.hex()
    hash(leaf)
    return type(leaf), leaf
