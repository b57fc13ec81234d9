"""An argument of a call, put together with what the call wrote in it."""

from collections.abc import Sequence
from typing import Any

import jax.tree_util as jtu

from .._ground.values import is_leaf
from .._ground.versions import is_eager
from .._states.state import make_frozen
from .._states.threads import local
from .._trees.forms import Form, form_of
from .._trees.known import Known, can_be_remembered, remember, remember_as_it_is
from .._trees.outlines import Outline
from .._trees.slots import Slot
from .call import Call
from .running import Writes
from .signature import Signature


class Rebuilding:
    """How an argument is put together if these states of it change: those written, and live ones.

    `where` leads to the argument in `(callable, args, kwargs)`.
    """

    __slots__ = ("_form", "_places", "_treedef", "changed", "outline", "start", "stop")

    def __init__(self, signature: Signature, where: tuple[int, ...], tree: Any, changed: Sequence[int]):
        layout = signature.layout
        _, first, end = descend(layout.outer, where)
        #: Each item's place among all states of the call, followed by all leaves.
        self._places = layout.items[first:end]
        self._treedef, self.start, self.stop = subtree(signature, where)
        first_state = min((place for place in self._places if place < len(layout.slots)), default=0)
        self.outline = Outline(tree, {index - first_state for index in changed})
        #: The states that change, and their places among the items.
        self.changed: tuple[tuple[Slot, int], ...] = tuple(
            [(layout.slots[i], self.outline.of_states[i - first_state]) for i in changed]
        )
        self._form: Form | None = None

    def form(self, tree: Any) -> Form:
        """The form of the argument."""
        if self._form is None:
            self._form = form_of(self._treedef, tree)
        return self._form

    def tree(self, call: Call, position: int | None, tree: Any, writes: Writes) -> Any:
        """The argument with these writes. It is remembered, for the next call."""
        known = call.known[position] if call.known and position is not None else None
        if not self.changed:
            if known is None and self._remembers(call, tree):
                leaves = tuple(call.leaves[self.start : self.stop])
                remember_as_it_is(tree, self.form(tree), leaves, self.outline)
            return tree
        outline = self.outline
        items: list[Any] = self._items(call, tree, known)
        if len(writes) < len(self.changed):
            writes = {s.index: s.value(call.leaves) for s, _ in self.changed} | writes
        for slot, place in self.changed:
            items[place] = new = make_frozen(slot.kind, slot.tag, writes[slot.index])
            if local.watch is not None:
                local.watch.born.add(new)
        built, made = outline.build(items)
        if self._remembers(call, tree):
            slots = [slot for slot, _ in self.changed]
            leaves = with_writes(call.leaves, self.start, self.stop, slots, writes)
            if leaves is not None:
                inside = outline.inside(items)
                remember(built, self.form(tree), tuple(leaves), outline, items, made, inside)
        return built

    def _items(self, call: Call, tree: Any, known: Known | None) -> list[Any]:
        if known is not None and known.outline is self.outline:
            return list(known.items)
        if self.outline.shares or known is not None:
            return self.outline.items(tree)
        # Nothing but states and leaves, which are there already.
        pool = [*call.states, *call.leaves]
        return [pool[place] for place in self._places]

    def _remembers(self, call: Call, tree: Any) -> bool:
        return (
            self.outline.knows
            and can_be_remembered(tree)
            and not call.aliases
            and not call.kinds.has_deferred
            and local.watch is None
            and is_eager()
        )


def rebuilding(
    signature: Signature, where: tuple[int, ...], tree: Any, changed: Sequence[int]
) -> Rebuilding:
    """How an argument is put together, worked out once for all calls of a structure."""
    key = where, tuple(changed)
    try:
        return signature.rebuilding[key]
    except KeyError:
        if len(signature.rebuilding) >= _MAX_KEPT:
            signature.rebuilding.clear()
        return signature.rebuilding.setdefault(key, Rebuilding(signature, where, tree, changed))


#: How many sets of states that change are kept for one structure.
_MAX_KEPT = 64


def with_writes(
    leaves: Sequence[Any], start: int, stop: int, slots: Sequence[Slot], writes: Writes
) -> list[Any] | None:
    """The leaves of an argument with what was written in it; `None` if a value has another structure."""
    own = list(leaves[start:stop])
    for slot in slots:
        value = writes[slot.index]
        if slot.is_leaf and is_leaf(value):  # nearly always, and 1.5 us cheaper than flattening
            own[slot.start - start] = value
            continue
        new, treedef = jtu.tree_flatten(value)
        if treedef != slot.treedef:
            return None
        own[slot.start - start : slot.stop - start] = new
    return own


def subtree(signature: Signature, where: tuple[int, ...]) -> tuple[Any, int, int]:
    """A subtree's structure, and the range of its leaves."""
    try:
        return signature.subtrees[where]
    except KeyError:
        return signature.subtrees.setdefault(where, descend(signature.treedef, where))


def descend(treedef: Any, where: tuple[int, ...]) -> tuple[Any, int, int]:
    """The structure at a place, and the range of its leaves."""
    start = 0
    for position in where:
        children = treedef.children()
        start += sum(child.num_leaves for child in children[:position])
        treedef = children[position]
    return treedef, start, start + treedef.num_leaves
