"""States that come in empty: along which axis what a call writes into them leaves.

An empty state has no leaf that could be mapped. What its argument's `in_axes` say of it holds for the
value that it is given, which then leaves as that of a filled state would. A function of the leaf says
nothing of a state that has none.
"""

from collections.abc import Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.signature import Described, Signature, signature_of
from .._states.state import is_state, make_frozen
from .._trees.flattening import unflatten_frozen, unread
from .prefixes import spread_in_axes


#: Stands for the value that an empty state does not have.
_VALUE = object()


def axes_of_empty(
    signature: Signature, in_axes: Any, described: Described, leaves: Sequence[Any]
) -> dict[int, int | None]:
    """For each slot whose state came in empty, the axis by `in_axes` alone."""
    slots = signature.layout.slots
    empty = [slot.index for slot in slots if slot.stop == slot.start]
    if not empty:
        return {}
    indices = range(len(slots))
    with unread():
        call = unflatten_frozen(signature.treedef, list(leaves))
        supply = iter(indices)

        def filled(item: Any) -> Any:
            if not is_state(item) or next(supply) not in empty:
                return item
            return make_frozen(type(item), item.tag, _VALUE)

        filled_call = jtu.tree_map(filled, call, is_leaf=is_state)
        filled_leaves, treedef = jtu.tree_flatten(filled_call)
    unasked = jtu.tree_map(_unasked, in_axes, is_leaf=lambda x: x is None)
    axes = spread_in_axes(signature_of(treedef, filled_call), unasked, described, filled_leaves)
    found = [axis for axis, leaf in zip(axes, filled_leaves, strict=True) if leaf is _VALUE]
    return dict(zip(empty, found, strict=True))


def _unasked(axis: Any) -> Any:
    """An entry of `in_axes` that is not asked about a value that nobody has."""
    return (lambda leaf: None if leaf is _VALUE else axis(leaf)) if callable(axis) else axis
