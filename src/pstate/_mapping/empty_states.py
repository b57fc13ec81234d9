"""States that come in empty: the axis along which the values written to them leave.

An empty state has no leaf that could be mapped. The `in_axes` or `in_specs` of its argument apply
to the value that is written to it, which then leaves as that of a filled state would. A function of
the leaf does not apply to a state without leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.signature import Signature, signature_of
from .._states.state import is_state, make_frozen
from .._trees.flattening import unflatten_frozen, unread


#: A placeholder for the value that an empty state does not have.
_VALUE = object()


def axes_of_empty(
    signature: Signature,
    prefix: Any,
    leaves: Sequence[Any],
    spread: Callable[[Signature, Any, Sequence[Any]], Sequence[Any]],
) -> dict[int, Any]:
    """For each slot whose state came in empty, its axis, or its spec, by the prefix alone.

    `spread` gives the axis of each leaf of a call.
    """
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
    unasked = jtu.tree_map(_unasked, prefix, is_leaf=lambda x: x is None)
    axes = spread(signature_of(treedef, filled_call), unasked, filled_leaves)
    found = [axis for axis, leaf in zip(axes, filled_leaves, strict=True) if leaf is _VALUE]
    return dict(zip(empty, found, strict=True))


def _unasked(axis: Any) -> Any:
    """An entry of a prefix; a function of the leaf is not called, since there is no value."""
    return (lambda leaf: None if leaf is _VALUE else axis(leaf)) if callable(axis) else axis
