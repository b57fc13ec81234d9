"""Lists, dicts and other mutable nodes of the arguments, edited in place by the function of a call.

A function gets its own copy of a tree, and only the states of that copy come back. An edit of a
container in it, `tree["log"].append(x)`, would be lost. It is refused if the container's argument
holds states, or is given back. With any other argument the function may do what it likes, as in
JAX.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._ground.errors import FrozenStateError
from .._states.state import State
from .callables import Method, Partial, Several, Wrapper


#: An argument of a call: its group, and its position or name.
Argument = tuple[int, Any]

#: An edit: the argument, the key path of the container within the call, and the container's type.
Edit = tuple[Argument, tuple[Any, ...], str]


class Snapshot:
    """The mutable containers in the arguments of a call, as they are now."""

    def __init__(self, call: Any):
        self._call = call
        self._kept: list[tuple[Any, Any]] = []
        jtu.tree_leaves(call, is_leaf=self._visit)

    def __bool__(self) -> bool:
        return any(node is not self._call[2] for node, _ in self._kept)

    def _visit(self, node: Any) -> bool:
        if isinstance(node, State):
            return True
        contents = _contents(node)
        if contents is not None:
            self._kept.append((node, contents))
        return False

    def edits(self, argument_of: Callable[[Sequence[Any]], Argument]) -> Iterator[Edit]:
        """The containers that have changed, outermost first."""
        edited = [node for node, before in self._kept if not _same(_contents(node), before)]
        if not edited:
            return
        # The same walk again: a container that an edit removed from the tree no longer has a place.
        ids = set(map(id, edited))
        is_one = lambda node: id(node) in ids or isinstance(node, State)
        for key_path, node in jtu.tree_flatten_with_path(self._call, is_leaf=is_one)[0]:
            if id(node) in ids and len(key_path) > 1:  # not the dict of keyword arguments
                yield argument_of(key_path), key_path, type(node).__name__


def _contents(node: Any) -> Any:
    """The contents of a mutable node; `None` for any other."""
    if type(node) is list:
        return list(node)
    if isinstance(node, dict):
        return dict(node)
    if isinstance(node, list):
        return list(node)
    if isinstance(node, _IMMUTABLE) or not hasattr(node, "__dict__"):
        return None
    params = getattr(type(node), "__dataclass_params__", None)
    frozen = params is not None and params.frozen
    return None if frozen or _is_leaf(node) else dict(vars(node))


_IMMUTABLE = (eqx.Module, tuple, Method, Partial, Several, Wrapper, type(None))


def _is_leaf(node: Any) -> bool:
    return jtu.all_leaves([node])


def _same(now: Any, before: Any) -> bool:
    if isinstance(before, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in before)
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def refuse_edit(edit: Edit, place: Callable[[Sequence[Any]], str], fn: str) -> None:
    """Raise for an edit that would be lost."""
    _, key_path, kind = edit
    where = place(key_path)
    root = where.partition(".")[0].partition("[")[0]
    raise FrozenStateError(
        f"The {kind} `{where}` was edited in place in {fn}. A call gives back only states and what its "
        "function returns, so the edit would be lost. Write to the state that is there, state.value = "
        "...; keep what changes in a state, ps.State(...); or edit the live copy of a recording, "
        f"which keeps the edit:\n    with ps.record({root}) as live:\n        ...\n"
        f"    {root} = ps.freeze(live)"
    )
