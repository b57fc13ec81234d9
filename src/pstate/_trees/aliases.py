"""One state at two places of a tree, by identity."""

import operator
from collections.abc import Sequence
from typing import Any


_cell_of = operator.attrgetter("_cell")


def is_live(states: Sequence[Any]) -> bool:
    """Whether any of these states is live."""
    return any(map(_cell_of, states))


def find_aliases(states: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Pairs of indices that hold the same state object, or live copies of the same one.

    Empty states do not count: nothing can be lost there.
    """
    ids: list[Any] = list(map(id, states))
    if is_live(states):
        ids = [id(s) if s._cell is None else s._cell.identity for s in states]
    if len(set(ids)) == len(ids):
        return ()
    seen: dict[Any, list[int]] = {}
    pairs = []
    for index, identity in enumerate(ids):
        earlier = seen.setdefault(identity, [])
        if earlier and not _is_empty(states[index]):
            pairs.extend((other, index) for other in earlier)
        earlier.append(index)
    return tuple(pairs)


def _is_empty(state: Any) -> bool:
    # Not through the value, which may be deferred and would be computed.
    cell = state._cell
    return (state._child if cell is None else cell.value) is None


def alias_message(first: str, second: str) -> str:
    """The message for one state object at two places."""
    return (
        f"`{first}` and `{second}` are one state object at two places, and it was written: each place "
        "would get its own value, and the sharing would be lost. Give each place its own state, "
        "or share on purpose: eqx.nn.Shared(tree, where, get)."
    )
