"""Big trees and long chains of transforms: what JAX can do with them, pstate can do too."""

import io
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


DEPTH = 800
EVERY = 40  # modules that have a state: a path of up to 800 entries for each takes its time


class Node(eqx.Module):
    child: object
    state: ps.State | None


def nested(depth=DEPTH, kind=ps.State):
    """A chain of modules, each inside the one before."""
    tree, zero = None, jnp.zeros(())
    for i in range(depth):
        tree = Node(tree, None if (depth - 1 - i) % EVERY else kind(zero))
    return tree


def add(tree, x):
    """Write the state of every module."""
    while tree is not None:
        if tree.state is not None:
            tree.state.value += x
        tree = tree.child
    return x


def sums(tree):
    """Write the outermost state, and read all."""
    tree.state.value += 1.0
    total = 0.0
    while tree is not None:
        total += 0.0 if tree.state is None else tree.state.value
        tree = tree.child
    return total


def saved_and_loaded(tree):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree, filter_spec=ps.serialise_filter_spec)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, tree, filter_spec=ps.deserialise_filter_spec)


X = jnp.ones(())
TRACED = {
    "pure": lambda tree: ps.pure(add)(tree, X),
    "jit": lambda tree: ps.pure(ps.jit(add))(tree, X),
    "vmap2": lambda tree: ps.pure(ps.vmap2(add, in_axes=None, axis_size=2))(tree, X),
    "grad": lambda tree: ps.pure(ps.grad(sums))(tree),
    "checkpoint": lambda tree: ps.pure(ps.checkpoint(add))(tree, X),
    "switch": lambda tree: ps.pure(lambda tree, i: ps.switch(i, [add, add], tree, X))(
        tree, jnp.asarray(0)
    ),
}
LOOKED_AT = {
    "states, update": lambda tree: ps.update(tree, ps.states(tree)),
    "trainable": ps.trainable,
    "pack": lambda tree: ps.pack(tree).unpack(),
    "summary": lambda tree: str(ps.summary(tree)),
    "diff": lambda tree: str(ps.diff(tree, tree)),
    "save": saved_and_loaded,
}


@pytest.mark.parametrize("name", TRACED)
def test_a_deep_tree_is_traced(name):
    """Modules nested 800 deep are no deeper for Python: JAX itself takes such trees."""
    jax.make_jaxpr(TRACED[name])(nested(kind=ps.ParamState))


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_deep_tree_is_looked_at(name):
    """What works on whole trees does not recurse in Python either."""
    LOOKED_AT[name](nested(kind=ps.ParamState))


def test_a_deep_tree_is_recorded():
    """Every state of it is written, in a recording and eagerly by `pure`."""
    tree = nested()
    with ps.record(tree) as live:
        add(live, X)
    for written in (ps.freeze(live), ps.pure(add)(tree, X)[1]):
        np.testing.assert_array_equal(jax.tree.leaves(written), np.ones(DEPTH // EVERY))


@pytest.mark.parametrize("transform", [ps.jit, ps.vmap2, ps.checkpoint])
def test_a_long_chain_of_transforms_is_made(transform):
    """Making a transform does not walk the chain inside it, which may exceed Python's stack."""
    chain = add
    for _ in range(sys.getrecursionlimit()):
        chain = transform(chain)
    assert chain.__name__ == "add"


def around(transform, levels, function=add):
    """So many transforms around a function."""
    for _ in range(levels):
        function = transform(function)
    return function


NESTED = {
    "jit": ps.jit,
    "checkpoint": ps.checkpoint,
    "vmap2": lambda f: ps.vmap2(f, in_axes=None, axis_size=1),
    "cond": lambda f: lambda tree, x: ps.cond(x > 0, f, lambda tree, x: x, tree, x),
    "scan": lambda f: lambda tree, x: ps.for_loop(jtu.Partial(f, tree), x[None])[0],
}


@pytest.fixture
def deep_stack():
    """Python's own limit is too low for so many levels, also of JAX alone."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.usefixtures("deep_stack")
@pytest.mark.parametrize("name", ["jit", "checkpoint", "cond", "scan"])
def test_nested_transforms_run(name):
    """A hundred transforms around each other write once."""
    _, tree = jax.eval_shape(ps.pure(around(NESTED[name], 100)), nested(1), X)
    assert isinstance(tree.state, ps.State)


def calls_of_own_functions(run):
    """How many calls of pstate's functions a run takes."""
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event == "call" and frame.f_globals.get("__name__", "").startswith("pstate")

    outer = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(outer)
    return count


def test_warnings_about_many_states_take_linear_time():
    """A mapping that warns about each of its states works out the advice for all of them once."""

    def stacked(n):
        tree = [ps.State(jnp.zeros(())) for _ in range(n)]

        def step(tree, x):
            for state in tree:
                state.value += x

        mapped = ps.vmap2(step, in_axes=(None, 0), state_out_axes={0: ps.State})
        return lambda: jax.make_jaxpr(ps.pure(mapped))(tree, jnp.ones(2))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.BatchAxisWarning)
        stacked(2)()
        few, many = (calls_of_own_functions(stacked(n)) for n in (50, 100))
    assert many < 2.2 * few


@pytest.mark.parametrize("name", NESTED)
def test_nested_transforms_take_linear_time(name):
    """A level of nested transforms does not look at all levels inside it."""

    def trace(levels):
        return lambda: jax.make_jaxpr(ps.pure(around(NESTED[name], levels)))(nested(1), X)

    trace(2)()
    few, many = (calls_of_own_functions(trace(n)) for n in (8, 16))
    # Each level of a mapping looks up the line of a write in Python's stack.
    assert many < (2.8 if name == "vmap2" else 2.3) * few
