"""How a tree is put together again after some of its states were written.

Only nodes on the way from the root to a written state are rebuilt, and lists and dicts, which may be
edited in one tree and not in the other. A module that is not on the way comes back as the same object.
"""

import dataclasses
import operator
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._states.state import State
from .._states.threads import local
from .slots import LEAF


#: A list or dict of a tree; its keys, if it is a dict; and its values.
Contents = tuple[Any, tuple[Any, ...], tuple[Any, ...]]


@dataclasses.dataclass(slots=True)
class _Node:
    """A node of a tree. `state` is its number among the states, `one` its own structure."""

    value: Any
    parent: int
    state: int | None = None
    one: Any = LEAF
    children: list[int] = dataclasses.field(default_factory=list)
    on_the_way: bool = False

    @property
    def is_item(self) -> bool:
        unwritten = isinstance(self.value, eqx.Module) and not self.on_the_way
        return unwritten or self.state is not None or self.one == LEAF

    @property
    def is_known(self) -> bool:
        """Whether nothing in the node itself can change, unless it is a list or a dict."""
        value = self.value
        if isinstance(value, tuple):  # another subclass may have attributes of its own
            return type(value) is tuple or hasattr(value, "_fields")
        known = self.one == LEAF or value is None or isinstance(value, State | eqx.Module)
        return known or type(value) in _EDITABLE


_EDITABLE = (list, dict)


class Outline:
    """A tree down to its *items*: its states, the modules without a written state, and other leaves.

    `of_states` has the item of each written state, by its number among the states of the tree.
    `shares` says whether modules are among the items, and `looks_inside` whether these hold lists or
    dicts. `knows` says that nothing can change in the tree but lists and dicts.
    """

    __slots__ = ("_stops", "knows", "looks_inside", "of_states", "shares", "treedef")

    def __init__(self, tree: Any, written: Collection[int]):
        nodes = _preorder(tree)
        _mark_the_way(nodes, written)
        visited = list(_visited(nodes))
        items = [node for node in visited if node.is_item]
        self.of_states = {node.state: i for i, node in enumerate(items) if node.state in written}
        self.shares = any(isinstance(node.value, eqx.Module) for node in items)
        editable = lambda some: sum(type(node.value) in _EDITABLE for node in some)
        self.looks_inside = editable(visited) < editable(nodes)
        self.knows = all(node.is_known for node in nodes)
        self._stops = [(node.is_item and node.one != LEAF) or node.state is not None for node in visited]
        self.treedef = _skeleton(nodes, visited) if self.knows else self._flat(tree)[1]

    def items(self, tree: Any) -> list[Any]:
        """The items of a tree of this structure."""
        return self._flat(tree)[0]

    def inside(self, items: Sequence[Any]) -> list[Contents]:
        """The lists and dicts inside modules among the items."""
        if not self.looks_inside:
            return []
        return contents_of(tuple([item for item in items if isinstance(item, eqx.Module)]))

    def build(self, items: Sequence[Any]) -> tuple[Any, list[Contents]]:
        """The tree with these items, and the lists and dicts that were made for it, if it `knows`."""
        made: list[Contents] = []
        outer, local.made = local.made, made
        try:
            return self.treedef.unflatten(items), made
        finally:
            local.made = outer

    def _flat(self, tree: Any) -> tuple[list[Any], Any]:
        # JAX asks at each node that it comes to, the root first.
        stop = iter(self._stops).__next__
        return jtu.tree_flatten(tree, is_leaf=lambda _: stop())


def _preorder(tree: Any) -> list[_Node]:
    """The nodes of a tree, down to its states, in the order in which JAX comes to them."""
    nodes: list[_Node] = []
    states = 0
    ahead = [_Node(tree, -1)]  # not by recursion: trees may be deep
    while ahead:
        node = ahead.pop()
        index = len(nodes)
        nodes.append(node)
        if index:
            nodes[node.parent].children.append(index)
        if isinstance(node.value, State):
            node.state, states = states, states + 1
            continue
        children, node.one = jtu.tree_flatten(node.value, is_leaf=lambda x, own=node.value: x is not own)
        if node.one != LEAF:
            ahead += [_Node(child, index) for child in reversed(children)]
    return nodes


def _mark_the_way(nodes: Sequence[_Node], written: Collection[int]) -> None:
    for node in nodes:
        if node.state is None or node.state not in written:
            continue
        while not node.on_the_way:
            node.on_the_way = True
            if node.parent >= 0:
                node = nodes[node.parent]


def _visited(nodes: Sequence[_Node]) -> Iterator[_Node]:
    """The nodes that are not inside an item."""
    inside: set[int] = set()
    for index, node in enumerate(nodes):
        if node.parent in inside:
            inside.add(index)
            continue
        if node.is_item:
            inside.add(index)
        yield node


def _skeleton(nodes: Sequence[_Node], visited: Sequence[_Node]) -> Any:
    """The structure down to the items, with nodes in it that note the lists and dicts that are made."""
    made: dict[int, Any] = {}
    for node in reversed(visited):
        children = [made[id(nodes[child])] for child in node.children] if not node.is_item else []
        if node.is_item:
            made[id(node)] = _ITEM
        elif type(node.value) in _EDITABLE:
            made[id(node)] = _Editable(node.one, children)
        else:
            made[id(node)] = node.one.unflatten(children)
    return jtu.tree_structure(made[id(nodes[0])])


#: Stands for an item in a skeleton.
_ITEM = object()


class _Editable:
    """A list or a dict in a skeleton."""

    __slots__ = ("children", "one")

    def __init__(self, one: Any, children: list[Any]):
        self.one = one
        self.children = children


def _make(one: Any, children: Any) -> Any:
    made = one.unflatten(children)
    if local.made is not None:
        local.made.append(_contents(made))
    return made


jtu.register_pytree_node(_Editable, lambda node: (node.children, node.one), _make)


# Lists and dicts ------------------------------------------------------------------------------------


def _contents(node: Any) -> Contents:
    return (node, tuple(node), tuple(node.values())) if type(node) is dict else (node, (), tuple(node))


def contents_of(tree: Any) -> list[Contents]:
    """The lists and dicts of a tree, and what they hold."""
    found: list[Contents] = []

    def visit(node: Any) -> bool:
        if type(node) in _EDITABLE:
            found.append(_contents(node))
        return isinstance(node, State)

    jtu.tree_leaves(tree, is_leaf=visit)
    return found


def hold_the_same(contents: Sequence[Contents]) -> bool:
    """Whether these lists and dicts hold the objects that they held."""
    for node, keys, values in contents:
        if len(node) != len(values):
            return False
        if not all(map(operator.is_, node.values() if type(node) is dict else node, values)):
            return False
        if not all(map(operator.is_, node, keys)):  # no keys, for a list
            return False
    return True
