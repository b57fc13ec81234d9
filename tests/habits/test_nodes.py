"""Nodes of the user's own that do tree operations on their children when taken apart or built."""

import dataclasses
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


@jtu.register_pytree_with_keys_class
class Partitioned:
    """Keeps non-arrays apart from the arrays, in its aux data."""

    def __init__(self, inner):
        self.inner = inner

    def tree_flatten_with_keys(self):
        dynamic, static = eqx.partition(self.inner, eqx.is_array)
        return ((jtu.GetAttrKey("inner"), dynamic),), jtu.Partial(lambda: None, Hidden(static))

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(eqx.combine(*children, aux.args[0].tree))


@dataclasses.dataclass(frozen=True, eq=False)
class Hidden:
    """A tree of non-arrays, in aux data; compared by its structure."""

    tree: object

    def __eq__(self, other):
        return jax.tree.structure(self.tree) == jax.tree.structure(other.tree)

    def __hash__(self):
        return hash(jax.tree.structure(self.tree))


@ft.partial(jtu.register_dataclass, data_fields=["first", "second"], meta_fields=[])
@dataclasses.dataclass
class Mapped:
    """Maps over its children when it is built."""

    first: ps.State
    second: ps.State

    def __post_init__(self):
        self.first, self.second = jtu.tree_map(lambda x: x, (self.first, self.second))


@jtu.register_pytree_with_keys_class
class Looking:
    """Flattens its children to count them, whenever it is taken apart."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def tree_flatten_with_keys(self):
        n = len(jtu.tree_leaves((self.second, self.first)))
        keys = jtu.GetAttrKey("first"), jtu.GetAttrKey("second")
        return tuple(zip(keys, (self.first, self.second), strict=True)), n

    @classmethod
    def tree_unflatten(cls, n, children):
        return cls(*children)


class Half(eqx.Module):
    first: ps.State
    second: ps.State
    name: str = eqx.field(static=True, default="half")


def state(x):
    return ps.State(jnp.float32(x))


NODES = {
    "mapped": lambda: Mapped(state(1.0), state(2.0)),
    "looking": lambda: Looking(state(1.0), state(2.0)),
    "partitioned": lambda: Partitioned(Half(state(1.0), state(2.0))),
    "partitioned, numbers": lambda: Partitioned({"half": Half(state(1.0), state(2.0)), "n": 3}),
}


def half(node):
    if not isinstance(node, Partitioned):
        return node
    return node.inner["half"] if isinstance(node.inner, dict) else node.inner


def write(tree, x):
    """Writes one state before, one in, and one behind the node."""
    before, node, after = tree
    before.value = before.value + x
    half(node).second.value = half(node).second.value * 10 + x
    after.value = after.value - x
    return before.value + half(node).first.value


def make(node):
    return (state(100.0), node(), state(200.0))


def values(tree):
    before, node, after = tree
    return [np.asarray(s.value).tolist() for s in (before, half(node).first, half(node).second, after)]


X = jnp.float32(1.0)
EXPECTED = [101.0, 1.0, 21.0, 199.0]

CALLS = {
    "pure": lambda tree: ps.pure(write)(tree, X),
    "jit": lambda tree: ps.pure(ps.jit(write))(tree, X),
    "donate": lambda tree: ps.pure(ps.jit(write, donate=...))(tree, X),
    "checkpoint": lambda tree: ps.pure(ps.checkpoint(write))(tree, X),
    "cond": lambda tree: ps.pure(lambda t: ps.cond(True, write, write, t, X))(tree),
    "for_loop": lambda tree: ps.pure(lambda t: ps.for_loop(ft.partial(write, t), X[None])[0])(tree),
    "grad": lambda tree: ps.pure(lambda t: ps.value_and_grad(write, wrt=ps.State)(t, X)[0])(tree),
    "jax.jit": lambda tree: jax.jit(ps.pure(write))(tree, X),
    "inner": lambda tree: ps.pure(lambda t, x: ps.jit(write)(t, x))(tree, X),
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_writes_land_where_they_were_made(call, node):
    """Each state of a tree with such a node gets its own write, once and again."""
    for _ in range(2):
        tree = make(node)
        out, new = call(tree)
        assert values(new) == EXPECTED
        assert out == 102.0
        if not any(leaf.is_deleted() for leaf in jtu.tree_leaves(tree) if eqx.is_array(leaf)):
            assert values(tree) == [100.0, 1.0, 2.0, 200.0]


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_in_a_recording(node):
    """The same in a recording: `written` names the states, `freeze` and `update` have their values."""
    tree = make(node)
    with ps.record(tree) as live:
        write(live, X)
        assert len(ps.written(live)) == 3
    assert values(ps.freeze(live)) == EXPECTED
    assert values(ps.update(tree, ps.written(live))) == EXPECTED


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}], ids=["whole", "chunks"])
def test_mapped(node, options):
    """Mapped along their lanes, and shared with a reducer, such states come back by lane."""
    tree = jtu.tree_map(lambda x: jnp.full((4,), x) if eqx.is_array(x) else x, make(node))
    mapped = ps.vmap2(write, in_axes=(0, 0), **options)
    ys, new = ps.pure(mapped)(tree, jnp.full(4, X))
    assert values(new) == [[x] * 4 for x in EXPECTED]
    assert ys.tolist() == [102.0] * 4


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_packed(node):
    """A packed tree with such a node is the tree."""
    _, packed = ps.pure(ps.jit(write))(ps.pack(make(node)), X)
    assert values(packed.unpack()) == EXPECTED


def test_the_error_names_the_right_state():
    """A message about a state behind the node names that state."""

    def outside(tree):
        tree[2].value += 1

    with pytest.raises(ps.FrozenStateError, match=r"`tree\[2\]` \(State\) was written"):
        ps.jit(outside)(make(NODES["looking"]))
    with pytest.raises(ps.AliasedStateError, match=r"`tree\[2\]`.*`out`"):
        ps.pure(lambda tree: tree[2])(make(NODES["looking"]))
