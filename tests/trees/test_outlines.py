"""Random trees, put together with some states written: what is new, and what is the same object."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from hypothesis import given, settings, strategies as st

import pstate as ps
from pstate._states.state import is_state
from pstate._trees.outlines import Outline, contents_of, hold_the_same


class Two(eqx.Module):
    """A module with a static field."""

    a: Any
    b: Any
    name: Any = eqx.field(static=True, default="two")


class One(eqx.Module):
    """A module with one field."""

    a: Any


class Pair(NamedTuple):
    """A named tuple."""

    left: Any
    right: Any


class Other:
    """A node that is neither a module nor a builtin container."""

    def __init__(self, content):
        self.content = content


jtu.register_pytree_with_keys(
    Other, lambda x: (((jtu.GetAttrKey("content"), x.content),), None), lambda _, c: Other(*c)
)


class Mark:
    """Stands for a state in a tree that is drawn, without JAX. With tag `None` it is an empty one."""

    def __init__(self, tag):
        self.tag = tag


def _with_states(tree: Any) -> Any:
    state = lambda mark: ps.State() if mark.tag is None else ps.State(np.ones(1), tag=mark.tag)
    return jtu.tree_map(lambda x: state(x) if isinstance(x, Mark) else x, tree)


_keys = st.sampled_from(["x", "y", "z"])


def _trees(*more: Any) -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(),
        st.builds(lambda: np.zeros(1)),
        st.sampled_from(["relu", 3]),
        st.builds(Mark, st.sampled_from([(), "t", None])),
    )

    def inside(children: Any) -> Any:
        return st.one_of(
            st.builds(One, children),
            st.builds(Two, children, children, st.sampled_from(["n", 1])),
            st.builds(Pair, children, children),
            st.lists(children, max_size=3),
            st.lists(children, max_size=3).map(tuple),
            st.dictionaries(_keys, children, max_size=3),
            *(st.builds(kind, children) for kind in more),
        )

    return st.recursive(leaves, inside, max_leaves=12)


def _states(tree: Any) -> list[Any]:
    return [x for x in jtu.tree_leaves(tree, is_leaf=is_state) if is_state(x)]


def _nodes(tree: Any) -> list[Any]:
    """The nodes of a tree above its leaves, in order, the root first."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        found.append(node)
        return is_state(node)

    jtu.tree_leaves(tree, is_leaf=visit)
    return found


def _rebuilt(tree: Any, written: set[int]) -> tuple[Outline, Any, list[Any], Any]:
    outline = Outline(tree, written)
    items = outline.items(tree)
    for number, place in outline.of_states.items():
        assert items[place] is _states(tree)[number]
        items[place] = items[place].replace(np.full(1, 7.0))
    inside = outline.inside(items)
    built, made = outline.build(items)
    return outline, built, items, [*made, *inside]


def _check(tree: Any, written: set[int]) -> None:
    outline, built, _, contents = _rebuilt(tree, written)
    before, after = _states(tree), _states(built)
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert (new is old) == (number not in written)
        assert type(new) is type(old)
        assert new.tag == old.tag
    assert jtu.tree_structure(built, is_leaf=is_state) == jtu.tree_structure(tree, is_leaf=is_state)
    ids = {id(before[number]) for number in written}
    for old, new in zip(_nodes(tree), _nodes(built), strict=True):
        is_module = isinstance(old, eqx.Module)
        holds_one = any(id(state) in ids for state in _states(old))
        if is_module and not holds_one:
            assert new is old
        if is_module and holds_one:
            assert new is not old
            assert vars(new).keys() == vars(old).keys()
    if not outline.knows:
        return
    # Every list and dict of the new tree is watched, once, and any change of it is seen.
    editable = [node for node in _nodes(built) if type(node) in (list, dict)]
    assert sorted(map(id, editable)) == sorted(id(node) for node, _, _ in contents)
    assert hold_the_same(contents)
    for node in editable:
        kept = node.copy()
        _edit(node)
        assert not hold_the_same(contents)
        _restore(node, kept)
        assert hold_the_same(contents)


def _edit(node: Any) -> None:
    if isinstance(node, list):
        node.append(1)
    else:
        node["new"] = 1


def _restore(node: Any, kept: Any) -> None:
    node.clear()
    (node.extend if isinstance(node, list) else node.update)(kept)


@settings(max_examples=150, deadline=None)
@given(_trees(), st.data())
def test_known_trees(tree, data):
    """Modules, tuples, lists, dicts, `None`, states and leaves."""
    tree = _with_states(tree)
    n = len(_states(tree))
    written = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    _check(tree, written)


@settings(max_examples=100, deadline=None)
@given(_trees(Other), st.data())
def test_other_trees(tree, data):
    """Other nodes are rebuilt as JAX does it, and make a tree unknown."""
    tree = _with_states(tree)
    n = len(_states(tree))
    written = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    _check(tree, written)
    has_other = any(type(node) is Other for node in _nodes(tree))
    assert Outline(tree, written).knows != has_other


def test_one_module_at_two_places():
    """A module that is shared, and not written, stays shared."""
    shared = One([np.zeros(1)])
    tree = Two(shared, [shared, ps.State(np.ones(1))])
    _, built, _, _ = _rebuilt(tree, {0})
    assert built.a is shared is built.b[0]


def test_what_lists_and_dicts_hold():
    """By identity, with keys and their order."""
    one, other = np.zeros(1), np.zeros(1)
    tree = {"x": [one, other], "y": one}
    contents = contents_of(tree)
    edits = (
        (lambda: tree["x"].reverse(), lambda: tree["x"].reverse()),
        (lambda: tree.update(y=other), lambda: tree.update(y=one)),
    )
    for edit, undo in edits:
        edit()
        assert not hold_the_same(contents)
        undo()
        assert hold_the_same(contents)


def test_deep_trees():
    """Nesting that JAX can take apart is no deeper here."""
    tree: Any = ps.State(np.ones(1))
    for _ in range(700):
        tree = One(tree)
    _, built, _, _ = _rebuilt(tree, {0})
    assert _states(built)[0].value == 7
