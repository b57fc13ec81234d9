"""Trees that pstate gave back remember how they are taken apart.

Equinox takes a module apart in Python, at about a microsecond per module. A module is immutable, and so
is everything in it but lists and dicts; so what a call has put together, the next call need not take
apart. What is remembered is known by the identity of the tree, and is gone with the tree. Whether its
lists and dicts still hold what they held is checked each time.

A leaf may lead back to the tree, such as a method of an object that holds it. So all is forgotten when
Python begins a full garbage collection.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._ground.remembering import when_collecting
from .forms import Form, Statics, are_settled, statics_of
from .outlines import Contents, Outline, contents_of, hold_the_same


class Known(weakref.ref[Any]):
    """What is remembered of a tree: its form, its leaves, and its items in an outline.

    `made` are its lists and dicts that are rebuilt with it, `inside` those inside its items.
    """

    __slots__ = ("_statics", "form", "inside", "items", "key", "leaves", "made", "outline")

    form: Form
    leaves: tuple[Any, ...]
    outline: Outline
    items: Sequence[Any]
    made: Sequence[Contents]
    inside: Sequence[Contents]
    key: int
    _statics: Statics | None

    @property
    def statics(self) -> Statics:
        """The static leaves, as a key.

        **Raises:** `TypeError` for an unhashable leaf.
        """
        if self._statics is not None:
            return self._statics
        statics = statics_of(self.leaves)
        if are_settled(self.leaves):
            self._statics = statics
        return statics


_table: dict[int, Known] = {}
when_collecting(_table.clear)


def _forget(known: Known) -> None:
    if _table.get(known.key) is known:
        _table.pop(known.key, None)  # a collection may have emptied the table just now


def known(tree: Any) -> Known | None:
    """What is remembered of a tree, if it is still so."""
    found = _table.get(id(tree))
    if found is None or found() is not tree:
        return None
    if hold_the_same(found.made) and hold_the_same(found.inside):
        return found
    _forget(found)
    return None


def remember(
    tree: Any,
    form: Form,
    leaves: tuple[Any, ...],
    outline: Outline,
    items: Sequence[Any],
    made: Sequence[Contents],
    inside: Sequence[Contents],
    statics: Statics | None = None,
) -> None:
    """Remember a module that was put together from the items of an outline that `knows` it."""
    found = Known(tree, _forget)
    found.form, found.leaves, found._statics = form, leaves, statics
    found.outline, found.items, found.made, found.inside = outline, items, made, inside
    found.key = id(tree)
    _table[found.key] = found


def can_be_remembered(tree: Any) -> bool:
    """Whether a tree can be referenced weakly, and is immutable itself."""
    return isinstance(tree, eqx.Module)


def remember_as_it_is(tree: Any, form: Form, leaves: tuple[Any, ...], outline: Outline) -> None:
    """Remember a module in which nothing was written."""
    remember(tree, form, leaves, outline, (), (), contents_of(tree))  # nothing that refers to the tree


class Lent:
    """A known tree among the arguments of a call: a node with the leaves of the tree."""

    __slots__ = ("known",)

    def __init__(self, known: Known):
        self.known = known


jtu.register_pytree_node(
    Lent,
    lambda lent: (lent.known.leaves, lent.known.form),
    lambda form, leaves: form.treedef.unflatten(leaves),
)
