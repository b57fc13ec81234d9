"""The code that a mapping's messages suggest, made for the call at hand."""

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._calls.naming import Names
from .._calls.signature import ARGS, FN, KWARGS, Signature
from .._ground.paths import to_path
from .._states.messages import kind_code
from .._trees.slots import Slot


def broadcast_code(
    signature: Signature, names: Names, slot: Slot, axis: int, n: int, by_kind: bool = True
) -> str:
    """The line that gives `n` lanes to a state, and to the others of its kind.

    If others of its kind already have lanes, `by_kind` is false: the state is selected by its path.
    """
    tree, path = _tree_and_path(signature, names, slot)
    chosen = kind_code(slot.kind) if by_kind else f"lambda path, state: path == {path!r}"
    return f"{tree} = ps.broadcast({tree}, {{{axis}: {chosen}}}, {n})"


def all_alike(signature: Signature, slot: Slot, needs: Callable[[Slot], bool]) -> bool:
    """Whether `needs` is true for every state of this one's kind in the same tree."""
    tree = tree_of(signature, slot)
    return all(
        needs(other)
        for other in signature.layout.slots
        if issubclass(other.kind, slot.kind)
        and other.stop > other.start
        and tree_of(signature, other) == tree
    )


def tree_of(signature: Signature, slot: Slot) -> Hashable:
    """The tree that a state is in, as a key."""
    argument = signature.argument_of_slot[slot.index]
    start = to_path(signature.within(slot.key_path)[:2]) if argument[0] == FN else ()
    # Each argument of a partial is a tree of its own.
    return argument, start if start[:1] in (("args",), ("keywords",)) else ()


def update_code(
    signature: Signature, names: Names, slot: Slot, shape: tuple[int, ...], dtype: Any
) -> str:
    """The line that gives a state an array of another shape."""
    tree, path = _tree_and_path(signature, names, slot)
    given = "" if dtype == jnp.result_type(float) else f", jnp.{jnp.dtype(dtype).name}"
    return f"{tree} = ps.update({tree}, {{{path!r}: jnp.zeros({shape}{given})}})"


def _tree_and_path(signature: Signature, names: Names, slot: Slot) -> tuple[str, tuple[Any, ...]]:
    """The tree that a state is in, as code, and the state's path in it."""
    path = signature.path(slot.index)
    if signature.argument_of_slot[slot.index][0] == FN and path[:1] in (("args",), ("keywords",)):
        path = path[2:]  # each argument of a partial is a tree of its own
    place = signature.place(slot.key_path, names)
    within = slot.key_path[len(slot.key_path) - len(path) :]
    return place.removesuffix(jtu.keystr(tuple(within))), path


def mapped_too(
    signature: Signature, leaves: Sequence[Any], axes: Sequence[int | None], n: int
) -> str | None:
    """The `in_axes` that also map the arrays of `n` rows that a call shared; `None` if there are
    none.
    """
    positions = {
        signature.argument(signature.layout.key_path_of_leaf[i])
        for i, (leaf, axis) in enumerate(zip(leaves, axes, strict=True))
        if axis is None
        and signature.layout.slot_of_leaf[i] is None
        and getattr(leaf, "shape", ())[:1] == (n,)
    }
    found = {which for group, which in positions if group == ARGS}
    if not found:
        return None
    shared = [i for i in range(signature.n_args) if i not in found and _is_shared(signature, axes, i)]
    return f"in_axes=({', '.join('None' if i in shared else '0' for i in range(signature.n_args))},)"


def _is_shared(signature: Signature, axes: Sequence[int | None], position: int) -> bool:
    return all(
        axis is None for axis in axes[signature.starts[position] : signature.starts[position + 1]]
    )


def reducer_code(leaves: Collection[Any]) -> str:
    """A reducer that keeps the dtypes of these arrays, as code; empty if there is none."""
    dtypes = [leaf.dtype for leaf in leaves if hasattr(leaf, "dtype")]
    if not dtypes or any(jnp.issubdtype(d, jax.dtypes.prng_key) for d in dtypes):
        return ""
    if all(jnp.issubdtype(d, jnp.inexact) for d in dtypes):
        return "ft.partial(jnp.mean, axis=0)"
    if all(d == jnp.bool_ for d in dtypes):
        return "ft.partial(jnp.any, axis=0)"
    return "ft.partial(jnp.max, axis=0)"


def broadcast_argument(group: int, which: Any, n_args: int) -> str:
    """The `in_axes` that broadcasts one argument, as code."""
    return f"in_axes={{{which!r}: None}}" if group == KWARGS else with_none(which, n_args)


def with_none(position: int, n_args: int) -> str:
    """The `in_axes` that broadcasts the argument at a position, as code."""
    shown = ["0"] * max(n_args, position + 1)
    shown[position] = "None"
    return f"in_axes=({', '.join(shown)}{',' if len(shown) == 1 else ''})"


def part_message(place: str, kind: type, reason: str) -> str:
    """The message for a shared part of a state that is written with a value of each lane."""
    return (
        f"A part of {place} came in without an axis ({reason}) and was written with a value that "
        "differs between lanes, but no axis is declared for it. Give all parts an axis on the way in, "
        "or hold this one in a state of its own; or declare one axis for the way out: "
        f"state_out_axes={{0: {kind_code(kind)}}}."
    )
