"""Where a call has mutable containers, found without a walk through all of its nodes."""

import collections
import dataclasses
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import pstate as ps
from pstate._calls.edits import Containers


class Layer(eqx.Module):
    weight: jax.Array
    count: ps.State


class Net(eqx.Module):
    layers: list[Layer]
    tables: dict[str, Any]


@jtu.register_dataclass
@dataclasses.dataclass
class Buffer:
    """A node with attributes that can be assigned."""

    items: Any
    count: ps.State


def net() -> Net:
    """A module with containers side by side, and in each other."""
    layer = lambda: Layer(jnp.ones(2), ps.State(0.0))
    tables = {"a": [jnp.ones(2), {"b": [layer()]}], "c": Buffer([1.0], ps.State(1.0))}
    return Net([layer(), layer()], tables)


EDITS = {
    "list `net.layers`": lambda net: net.layers.pop(),
    "dict `net.tables`": lambda net: net.tables.update(a=net.tables["a"][:1]),
    "list `net.tables['a']`": lambda net: net.tables["a"].append(1.0),
    "list `net.tables['a'][1]['b']`": lambda net: net.tables["a"][1]["b"].pop(),
    "Buffer `net.tables['c']`": lambda net: setattr(net.tables["c"], "items", []),
    "list `net.tables['c'].items`": lambda net: net.tables["c"].items.append(2.0),
}


@pytest.mark.parametrize("place", EDITS)
def test_an_edit_is_noticed_wherever_it_is(place):
    """Every container counts: in a module, in another container, in a node with attributes."""

    def f(net):
        EDITS[place](net)

    with pytest.raises(ps.FrozenStateError, match=re.escape(f"The {place} was edited in place")):
        ps.pure(f)(net())


@pytest.mark.parametrize("place", EDITS)
def test_an_edit_in_a_keyword_argument_is_noticed(place):
    """Keyword arguments are looked at too."""

    def f(tree, *, net):
        EDITS[place](net)

    with pytest.raises(ps.FrozenStateError, match=re.escape(f"The {place} was edited in place")):
        ps.pure(f)({"n": ps.State(0)}, net=net())


def test_a_call_without_containers_has_none():
    """The dict in which keyword arguments arrive is not the user's."""
    call = lambda *args, **kwargs: (None, args, kwargs)
    assert not Containers(call(Layer(jnp.ones(2), ps.State(0.0)), x=jnp.ones(2)))
    assert not Containers(call((1.0, None)))
    assert Containers(call([]))
    assert Containers(call(x={}))


@jtu.register_pytree_node_class
class Sorted:
    """A node whose children are its positive numbers: how many there are is up to the leaves."""

    def __init__(self, *items: Any):
        self.items = items

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        return tuple(x for x in self.items if not isinstance(x, float) or x > 0), None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Sorted":
        return cls(*children)


def test_kinds_that_users_make():
    """A kind without slots has a dictionary, and is a state like any other."""

    class Membrane(ps.HiddenState):
        pass

    def add(tree, x):
        for state in jtu.tree_leaves(tree, is_leaf=lambda x: isinstance(x, ps.State)):
            state.value += x

    for tree in ({"v": Membrane(1.0)}, [Membrane(1.0), [Membrane(2.0)]], Membrane(1.0)):
        count = len(Containers((None, (tree,), {})).snapshot((None, (tree,), {}))._kept)
        assert count == {dict: 1, list: 2}.get(type(tree), 0)
        _, new = ps.pure(ps.jit(add))(tree, jnp.asarray(1.0))
        assert jtu.tree_leaves(new)[0] == 2


def test_nodes_that_look_at_their_children():
    """Where the structure no longer fits, each node is visited, and every container found."""
    call = lambda *items: (None, (Sorted([jnp.ones(2)], *items),), {})
    containers = Containers(call(1.0))
    other = call(-1.0)
    snapshot = containers.snapshot(other)
    assert not list(snapshot.edits(lambda key_path: (1, 0)))
    other[1][0].items[0].append(2.0)
    (edit,) = snapshot.edits(lambda key_path: (1, 0))
    assert edit[2] == "list"


def test_containers_nested_deeply():
    """Containers in containers, deeper than Python calls may nest."""
    tree: Any = [ps.State(0.0)]
    for _ in range(900):
        tree = [tree]

    def f(tree):
        innermost = tree
        while isinstance(innermost[0], list):
            innermost = innermost[0]
        innermost[0].value += 1.0
        innermost.append(1.0)

    with pytest.raises(ps.FrozenStateError, match=re.escape("was edited in place")):
        ps.pure(f)(tree)


def test_the_tree_is_not_kept_alive():
    """What is known about a structure holds none of the arrays of the call that it was found in."""
    array = jnp.ones(3)
    containers = Containers((None, ([{"a": [array]}],), {}))
    queue, seen = [containers._outermost], 0
    while queue:
        level = queue.pop()
        seen += 1
        assert not level._trees
        queue += [inner for _, inner in level.containers]
    assert seen == 4


class Settings(dict[str, Any]):
    """A subclass that JAX does not take apart."""


class Entries(list[Any]):
    """The same of a list."""


@pytest.mark.parametrize("made", [Settings(a=1.0), collections.Counter("aab"), Entries([1.0])], ids=repr)
def test_a_subclass_that_is_a_leaf(made):
    """A dict or list that JAX takes for a leaf is passed on as it is, in a field or as an argument."""

    class Holder(eqx.Module):
        count: ps.State
        made: Any

    def f(holder, other):
        holder.count.value += len(holder.made) + len(other)
        return holder.made is made, other is made

    same, holder = ps.pure(f)(Holder(ps.State(0), made), made)
    assert same == (True, True)
    assert holder.made is made
    assert holder.count.value == 2 * len(made)
