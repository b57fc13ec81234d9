"""Recordings as a context: `record`, `freeze`, `written`.

`record(tree)` yields a live copy of the tree; writes go into the copy's cells. `freeze` returns the
immutable result, and `written` what changed.
"""

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import jax.tree_util as jtu

from .._ground.paths import Path, to_path, to_place
from .._ground.public import public
from .._ground.typing import Filter, PyTree
from .._ground.values import copy
from .._states.cell import Recording
from .._states.deferred import Deferred
from .._states.state import State, is_state
from ..filter import to_predicate
from .aliases import find_aliases
from .flattening import collect, thaw, unflatten_frozen
from .guard import Guard
from .lending import given_back
from .slots import layout_of, root_name, states_of


T = TypeVar("T")
Unpacked = TypeVar("Unpacked")
_Out = TypeVar("_Out", covariant=True)


class _Packed(Protocol[_Out]):
    """A packed tree, to a type checker. The file of its own imports this one."""

    form: Any
    leaves: tuple[Any, ...]

    def unpack(self) -> _Out: ...


@public
class record(Generic[T]):  # noqa: N801 (used like a function)
    """A context in which the states of a tree are live.

    **Arguments:**

    - `tree`: any pytree with states. It is never changed.
    - `writes`: a filter, as a contract: which states may be written.

    **Returns:** a context manager that yields a live copy of `tree`. `pstate.freeze` makes an
    immutable tree of it, inside the context or after it.

    **Raises:** `AliasedStateError` when a state that is at two places in `tree` is written;
    `FrozenStateError` for a write that `writes` does not allow, for a write after the context
    ended, and, when the context ends, for a container that was edited in place and not written
    back.

    !!! example

        >>> import pstate as ps
        >>> tree = {"count": ps.State(1)}
        >>> with ps.record(tree) as live:
        ...     live["count"].value += 1
        >>> ps.freeze(live)["count"].value.item(), tree["count"].value.item()
        (2, 1)
    """

    if TYPE_CHECKING:

        @overload
        def __init__(self: "record[Unpacked]", tree: "_Packed[Unpacked]", writes: Filter = ...): ...
        @overload
        def __init__(self, tree: T, writes: Filter = ...): ...

    def __init__(self, tree: Any, writes: Filter = ...):
        to_predicate(writes)
        self._tree = tree
        self._writes = writes
        self._recordings: list[Recording] = []

    def __enter__(self) -> T:
        tree, root = self._tree, root_name(self._tree)
        leaves, treedef, collected = collect(tree)
        if collected.has_packed:
            tree = unflatten_frozen(treedef, leaves)
        layout, states = layout_of(tree), states_of(tree)
        slots = layout.slots

        def place_of(index: int) -> str:
            return to_place(root, slots[index].key_path)

        aliases = find_aliases(states)
        guard = Guard(
            place_of,
            lambda index: to_path(slots[index].key_path),
            lambda index: states[index],
            aliases,
            self._writes,
        )
        recording = Recording(
            place_of,
            guard=guard,
            original=tree,
            frozen=states,
            title=f"ps.record({root})",
            aliases=aliases,
        )
        self._recordings.append(recording)
        return thaw(layout, leaves, recording)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._recordings.pop().close(check=error is None)


@public
def freeze(live: T) -> T:
    """An immutable tree with the current values of a live tree.

    **Arguments:**

    - `live`: any pytree. States that are already frozen stay as they are.

    **Returns:** the tree with frozen states. If nothing was written, it is the same object that was
    recorded.
    """
    _, _, states = collect(live)
    if not any(s._cell is not None or type(s._tag) is not tuple for s in states):
        if any(type(s._child) is Deferred for s in states):
            jtu.tree_leaves(live)  # computes what was deferred
        return live
    leaves, treedef, _ = collect(live)
    leaves = [given_back(leaf) for leaf in leaves]
    original = _original(states)
    if original is not None:
        original_leaves, original_treedef = jtu.tree_flatten(original)
        if original_treedef == treedef and all(
            a is b for a, b in zip(leaves, original_leaves, strict=True)
        ):
            return original
    return unflatten_frozen(treedef, leaves, keep_packed=True)


def _original(states: list[State]) -> Any:
    """The tree that was recorded, if its states were frozen and none of them was written."""
    cells = [s._cell for s in states]
    if any(cell is None or cell.written for cell in cells):
        return None
    original = cells[0].recording.original  # pyright: ignore[reportOptionalMemberAccess]
    _, _, original_states = collect(original)
    frozen = all(s._cell is None and type(s._tag) is tuple for s in original_states)
    return original if frozen and original_states else None


@public
def written(live: PyTree) -> dict[Path, Any]:
    """The values written into a live tree: `{path: new value}`, which `pstate.update` takes.

    !!! example

        >>> import pstate as ps
        >>> with ps.record({"a": ps.State(1), "b": ps.State(2)}) as live:
        ...     live["b"].value += 1
        >>> {path: value.item() for path, value in ps.written(live).items()}
        {('b',): 3}
    """
    flat, _ = jtu.tree_flatten_with_path(live, is_leaf=is_state)
    return {
        to_path(key_path): copy(state._peek())
        for key_path, state in flat
        if isinstance(state, State) and state._cell is not None and state._cell.written
    }
