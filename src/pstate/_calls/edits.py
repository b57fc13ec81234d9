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


class Containers:
    """Where calls of one structure have mutable containers; false if there are none.

    A walk through all nodes would take a fifth of the time of a short call. This looks only at the
    containers, and at what is between them.
    """

    def __init__(self, call: Any):
        self._outermost = _Level(call, call[2])  # the dict of keyword arguments is not the user's
        queue = [self._outermost]
        while queue:
            queue += queue.pop().go_on()

    def __bool__(self) -> bool:
        return bool(self._outermost)

    def snapshot(self, call: Any) -> "Snapshot":
        """The containers in a call of that structure, as they are now."""
        kept: list[Kept] = []
        queue = [(self._outermost, call)]
        while queue:
            level, tree = queue.pop()
            try:
                found = level.treedef.flatten_up_to(tree)
            except (TypeError, ValueError):
                # A node that looks at its children may have others now.
                return Snapshot(call, _walked(call))
            for position, inner in level.containers:
                node = found[position]
                kept.append((node, _contents(node)))
                if inner:
                    queue.append((inner, node))
        return Snapshot(call, kept)


class _Level:
    """A tree down to the containers in it, which are leaves here; each is a level of its own."""

    __slots__ = ("_trees", "containers", "treedef")

    def __init__(self, tree: Any, *more: Any):
        whole = (tree, *more)
        is_one = lambda node: (
            isinstance(node, State)
            or (_contents(node) is not None and all(node is not one for one in whole))
        )
        leaves, self.treedef = jtu.tree_flatten(tree, is_leaf=is_one)
        self._trees = [(i, x) for i, x in enumerate(leaves) if _contents(x) is not None]
        self.containers: list[tuple[int, _Level]] = []

    def __bool__(self) -> bool:
        return bool(self.containers)

    def go_on(self) -> list["_Level"]:
        """Make the levels below, and let go of the trees."""
        self.containers = [(i, _Level(tree)) for i, tree in self._trees]
        self._trees = []
        return [level for _, level in self.containers]


#: A container and its contents as they were.
Kept = tuple[Any, Any]


def _walked(call: Any) -> list[Kept]:
    kept: list[Kept] = []

    def visit(node: Any) -> bool:
        if isinstance(node, State):
            return True
        contents = _contents(node)
        if contents is not None:
            kept.append((node, contents))
        return False

    jtu.tree_leaves(call, is_leaf=visit)
    return kept


class Snapshot:
    """The mutable containers in the arguments of a call, as they were at some time."""

    def __init__(self, call: Any, kept: Sequence[Kept]):
        self._call = call
        self._kept = kept

    def edits(self, argument_of: Callable[[Sequence[Any]], Argument]) -> Iterator[Edit]:
        """The containers that have changed, outermost first."""
        edited = [node for node, before in self._kept if not _same(_contents(node), before)]
        if not edited:
            return
        # The same walk again: a container that an edit removed from the tree no longer has a place.
        ids = set(map(id, edited))
        is_one = lambda node: id(node) in ids or isinstance(node, State)
        for key_path, node in jtu.tree_flatten_with_path(self._call, is_leaf=is_one)[0]:
            if id(node) in ids:
                yield argument_of(key_path), key_path, type(node).__name__


def _contents(node: Any) -> Any:
    """The contents of a mutable node; `None` for any other."""
    if type(node) is list:
        return list(node)
    if type(node) is dict:
        return dict(node)
    if isinstance(node, dict | list):
        # JAX takes a subclass apart only if it was told how. A leaf belongs to whoever made it.
        return None if _is_leaf(node) else dict(node) if isinstance(node, dict) else list(node)
    if isinstance(node, _IMMUTABLE) or not hasattr(node, "__dict__"):
        return None
    params = getattr(type(node), "__dataclass_params__", None)
    frozen = params is not None and params.frozen
    return None if frozen or _is_leaf(node) else dict(vars(node))


# A kind that a user makes without slots has a dictionary, which is not part of it.
_IMMUTABLE = (State, eqx.Module, tuple, Method, Partial, Several, Wrapper, type(None))


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
