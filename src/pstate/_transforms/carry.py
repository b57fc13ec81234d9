"""The carry of a loop: the body gets it, and returns the same tree with the same types.

States in a carry are data: they may be read, and come back in a new carry. Non-array leaves are
static.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.flat_function import FlatFunction
from .._calls.signature import ARGS
from .._ground.errors import StateTypeError
from .._ground.exact import exact_key
from .._ground.paths import to_place
from .._trees.leaves import operand_mask
from .carried_states import same_type, shown_type


#: The carry is the first argument.
CARRY = (ARGS, 0)


def refuse_live(call: Call, codes: Callable[[], tuple[str, str, str]]) -> None:
    """Raise if there is a live state in the carry.

    `codes` gives the loop as code, and the rewritten call: for a carry that has more than the tree
    of that state, and for one that is that tree. The rewritten calls take the name of the tree.
    """
    signature = call.signature
    for index, state in enumerate(call.states):
        if signature.argument_of_slot[index] != CARRY or state._cell is None:
            continue
        fn_code, line, alone = codes()
        place = call.place(index)
        whole = not isinstance(call.args[0], dict | list | tuple) or _is_all_states(call)
        tree = signature.root(index, call.names) if whole else "model"
        raise StateTypeError(
            f"`{place}` ({type(state).__name__}) is live and is in the carry of {fn_code}, which "
            "would give back a copy in which writes are not recorded. A loop threads the states that "
            "its function is bound to. Rewrite the line, and let the function take the tree first and "
            f"not return it:\n    {(alone if whole else line).format(tree=tree)}\n"
            "If the function makes a new tree and writes nothing, carry the tree as data: "
            f"ps.freeze({tree})."
        )


def _is_all_states(call: Call) -> bool:
    layout, signature = call.signature.layout, call.signature
    start, stop = signature.starts[0], signature.starts[1]
    return None not in layout.slot_of_leaf[start:stop]


def data_of(body: FlatFunction) -> Callable[[int], str | None]:
    """The states of a carry, which are data, and the message for a write to one."""

    def about(index: int) -> str | None:
        if body.signature.argument_of_slot[index] != CARRY:
            return None
        kind = body.signature.layout.slots[index].kind.__name__
        return (
            f"`{body.place(index)}` ({kind}) is in the carry of {body.described.fn} and was "
            "written. A carry is data that the body returns: return a new carry, with "
            "state.replace(value) in it; or thread the state: bind the function to the tree that holds "
            "it, ft.partial(f, tree)."
        )

    return about


def new_leaves(body: FlatFunction, leaves: Sequence[Any], indices: Sequence[int], new: Any) -> list[Any]:
    """The arrays of a carry that a body returned, in the order of `indices`.

    **Raises:** `TypeError` if it has another tree, other types, or other static leaves.
    """
    treedef = body.signature.treedef.children()[ARGS].children()[0]
    got, got_treedef = jtu.tree_flatten(new)
    fn = body.described.fn
    start = body.signature.n_fn
    came = leaves[start : start + treedef.num_leaves]
    if got_treedef != treedef:
        raise TypeError(
            f"The carry of {fn} came in as {shown_type(treedef.unflatten(came))} but the body returned "
            f"{shown_type(new)}. A loop keeps the tree of its carry: return a carry with the same "
            "containers and states."
        )
    # A number may be returned if it converts to the carry's type, as in JAX.
    numbers = (bool, int, float, complex)
    mask = operand_mask(came)
    got = [
        jnp.asarray(x) if is_array and type(x) in numbers else x
        for x, is_array in zip(got, mask, strict=True)
    ]
    key_paths = body.signature.layout.key_path_of_leaf[start : start + len(came)]
    for old, now, is_array, key_path in zip(came, got, mask, key_paths, strict=True):
        place = to_place("carry", body.signature.within(key_path))
        if is_array and not same_type(old, now):
            raise TypeError(
                f"`{place}` came into {fn} as {shown_type(old)}, but the body returned "
                f"{shown_type(now)}. A loop keeps the types of its carry: return the same shape and "
                "dtype, jnp.asarray(new, old.dtype), or give it the other type before the loop."
            )
        if not is_array and exact_key(old) != exact_key(now):
            raise TypeError(
                f"`{place}` came into {fn} as {old!r}, which is not an array and therefore static, "
                f"but the body returned {now!r}. Carry an array: jnp.asarray(...)."
            )
    return [got[i - start] for i in indices]
