"""Trees that pstate gave back: remembered, looked at again, and forgotten with them."""

import functools as ft
import gc
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from calls.known_trees import (
    RUNS,
    WAYS,
    Layer,
    Model,
    copied,
    every_way,
    model,
    remembered,
    same,
    step,
)
from pstate._trees.known import _table, known


def _set(mapping: Any, key: Any, value: Any) -> None:
    mapping[key] = value


EDITS: dict[str, Callable[[Model], Any]] = {
    "replaced in a list": lambda m: _set(
        m.layers, 1, Layer(ps.ParamState(7.0), ps.ShortTermState(1.0), jnp.tanh)
    ),
    "an equal one in a list": lambda m: _set(m.layers, 1, jtu.tree_map(lambda x: x, m.layers[1])),
    "appended": lambda m: m.layers.append(
        m.layers[0].__class__(ps.ParamState(9.0), ps.ShortTermState(0.0), jnp.sin)
    ),
    "removed": lambda m: m.layers.pop(),
    "reversed": lambda m: m.layers.reverse(),
    "set in a dict": lambda m: _set(m.extra, "shift", jnp.asarray(5.0)),
    "added to a dict": lambda m: _set(m.extra, "new", jnp.asarray(5.0)),
    "removed from a dict": lambda m: m.extra.pop("shift"),
    "renamed in a dict": lambda m: _set(m.extra, "renamed", m.extra.pop("shift")),
    "a list in a dict": lambda m: _set(m.extra["more"], 0, jnp.asarray(6.0)),
    "a list in a tuple": lambda m: m.pair[1].append(jnp.asarray(6.0)),
    "a dict in a module without states": lambda m: _set(m.norm.options, "eps", 2.0),
    "a number of another type": lambda m: _set(m.norm.options, "eps", 1),
    "a list in a module without states": lambda m: m.norm.history.append(jnp.ones(1)),
    "emptied": lambda m: m.extra.clear(),
}


@every_way
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_between_calls(way, edit):
    """What is edited in place between two calls is seen by the next one."""
    pure, tree = remembered(way)
    edit(tree)
    got, expected = pure(tree, jnp.asarray(1.0)), pure(copied(tree), jnp.asarray(1.0))
    assert same(got, expected)
    assert same(pure(got[1], jnp.asarray(1.0)), pure(copied(got[1]), jnp.asarray(1.0)))


@every_way
def test_edits_of_one_tree_do_not_reach_the_other(way):
    """Lists and dicts outside unwritten modules belong to one tree."""
    pure, tree = remembered(way)
    _, new = pure(tree, jnp.asarray(1.0))
    for a, b in ((tree.layers, new.layers), (tree.extra, new.extra), (tree.pair[1], new.pair[1])):
        assert a is not b
    assert new.norm is tree.norm
    new.extra["shift"] = jnp.asarray(50.0)
    assert tree.extra["shift"] == 1


def test_edits_of_arrays_in_place():
    """A NumPy array is read at each call."""

    class Holder(eqx.Module):
        n: ps.State
        data: np.ndarray

    def add(holder, x):
        holder.n.value += holder.data.sum() + x

    for way in (ps.jit(add), ps.vmap2(add, in_axes=None, axis_size=2)):
        data = np.ones(2, np.float32)
        _, holder = ps.pure(way)(Holder(ps.State(0.0), data), jnp.asarray(0.0))
        data[:] = 10
        _, holder = ps.pure(way)(holder, jnp.asarray(0.0))
        assert holder.n.value == 22


@every_way
def test_one_trace(way):
    """A remembered tree runs the program that was compiled for the first one."""
    if way is step:
        return
    jax.clear_caches()
    fresh = _fresh(way)
    pure, tree = ps.pure(fresh), model()
    before = len(RUNS)
    _, tree = pure(tree, jnp.asarray(1.0))
    once = len(RUNS) - before
    for _ in range(3):
        _, tree = pure(tree, jnp.asarray(1.0))
    again = 3 * once if isinstance(way, type(WAYS["checkpoint"])) else 0
    assert once == 1
    assert len(RUNS) - before == once + again


def _fresh(way: Any) -> Any:
    anew = lambda model, x: step(model, x)
    if isinstance(way, ps.StatefulMapping):
        return ps.vmap2(anew, in_axes=None, axis_size=2)
    return ps.jit(anew) if isinstance(way, type(WAYS["jit"])) else ps.checkpoint(anew)


@pytest.mark.parametrize("way", [*WAYS.values(), ps.jit(lambda model, x: x)], ids=[*WAYS, "read only"])
def test_gone_with_the_tree(way):
    """What is remembered is freed as soon as the tree is, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        _, tree = remembered(way)
        key, module = id(tree), weakref.ref(tree)
        arrays = [weakref.ref(leaf) for leaf in jtu.tree_leaves(tree.layers) if eqx.is_array(leaf)]
        assert key in _table
        del tree
        assert module() is None
        assert key not in _table
        assert all(array() is None for array in arrays)
    finally:
        gc.enable()


def test_a_loop_remembers_one_tree():
    """Passing a tree on leaves nothing behind."""
    pure, tree = remembered(WAYS["jit"])
    gc.collect()
    _, tree = pure(tree, jnp.asarray(1.0))
    size, arrays = len(_table), len(jax.live_arrays())
    for _ in range(50):
        _, tree = pure(tree, jnp.asarray(1.0))
    assert len(_table) <= size
    assert len(jax.live_arrays()) <= arrays + 1


def test_a_tree_that_its_own_leaf_leads_back_to_is_freed():
    """A tree that holds a method of its owner is a cycle, and the garbage collector finds it."""

    class Trainer:
        def __init__(self):
            model = Logged(ps.ShortTermState(0.0), self.log)
            for _ in range(2):
                _, model = ps.pure(Logged.__call__)(model, 1.0)
            self.model = model

        def log(self, value):
            return value

    class Logged(eqx.Module):
        count: ps.ShortTermState
        log: Any

        def __call__(self, x):
            self.count.value += self.log(x)

    trainer = Trainer()
    assert id(trainer.model) in _table
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("x", [np.float32(1), np.ones((), np.float32), jnp.ones(())], ids=str)
@pytest.mark.parametrize("transform", [ps.jit, ft.partial(ps.vmap2, in_axes=(None, None), axis_size=2)])
def test_each_call_remembers(transform, x):
    """Whatever the other arguments are, and whatever was written last, the tree is known."""

    class Noisy(eqx.Module):
        count: ps.ShortTermState
        rng: ps.RandomState

    def draw(noisy, x):
        noisy.rng.split_key()
        noisy.count.value += x

    pure, noisy = ps.pure(transform(draw)), Noisy(ps.ShortTermState(0.0), ps.RandomState(0))
    for i in range(4):
        assert (known(noisy) is not None) == (i > 0)
        _, noisy = pure(noisy, x)
    assert noisy.count.value == 4


@every_way
def test_read_only_trees_come_back_as_they_are(way):
    """A tree in which nothing was written is remembered too, and seen again if it is edited."""
    read = lambda model, x: model.extra["shift"] + x
    pure = ps.pure(ps.jit(read)) if way is not step else ps.pure(read)
    tree = model()
    for _ in range(3):
        out, new = pure(tree, jnp.asarray(1.0))
        assert new is tree
        assert out == 2
    tree.extra["shift"] = jnp.asarray(3.0)
    assert pure(tree, jnp.asarray(1.0))[0] == 4


class _Box:
    """A node with an attribute."""

    def __init__(self, content):
        self.content = content


class _Labelled(tuple):
    """A tuple with an attribute."""

    content: Any

    @classmethod
    def of(cls, content):
        labelled = cls()
        labelled.content = content
        return labelled


for _node, _make in ((_Box, _Box), (_Labelled, _Labelled.of)):
    jtu.register_pytree_node(
        _node, lambda node: ((node.content,), None), lambda _, c, make=_make: make(*c)
    )


@pytest.mark.parametrize("make", [_Box, _Labelled.of])
def test_other_nodes_are_not_remembered(make):
    """A node that may change in other ways is taken apart each time."""

    class Holder(eqx.Module):
        n: ps.State
        box: Any

    def add(holder, x):
        holder.n.value += holder.box.content + x

    pure = ps.pure(ps.jit(add))
    _, holder = pure(Holder(ps.State(0.0), make(jnp.asarray(1.0))), jnp.asarray(0.0))
    assert known(holder) is None
    holder.box.content = jnp.asarray(5.0)
    assert pure(holder, jnp.asarray(0.0))[1].n.value == 6


def test_cached_properties_do_not_go_stale():
    """What a module worked out for itself is not handed to its successor."""

    class Lazy(eqx.Module):
        n: ps.State

        @ft.cached_property
        def twice(self):
            return 2 * self.n.value

    def add(lazy, x):
        lazy.n.value += x
        return lazy.twice

    pure = ps.pure(ps.jit(add))
    lazy = Lazy(ps.State(1.0))
    for expected in (4.0, 6.0, 8.0):
        out, lazy = pure(lazy, jnp.asarray(1.0))
        assert out == expected == lazy.twice
