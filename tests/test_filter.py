"""Filters: literals, classes, operators, and how they are told apart."""

import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps
from pstate.filter import (
    All,
    Any,
    Everything,
    Not,
    Nothing,
    OfType,
    PathContains,
    Trainable,
    WithTag,
    to_predicate,
)


def shown(value):
    """A test's name, the same in each process: functions print their address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


TREE = {
    "array": jnp.ones(2),
    "hidden": ps.HiddenState(1.0, tag="slow"),
    "layers": [ps.ParamState(1.0), ps.ParamState(2.0, tag=("slow", "frozen"))],
    "steps": jnp.arange(2),
}


def chosen(filter_):
    """The paths in `TREE` that a filter selects."""
    flat = jax.tree_util.tree_flatten_with_path(TREE, is_leaf=lambda x: isinstance(x, ps.State))[0]
    predicate = to_predicate(filter_)
    paths = [(tuple(getattr(k, "key", getattr(k, "idx", None)) for k in path), x) for path, x in flat]
    return [path for path, leaf in paths if predicate(path, leaf)]


ARRAY, HIDDEN, FIRST, SECOND, STEPS = (
    ("array",),
    ("hidden",),
    ("layers", 0),
    ("layers", 1),
    ("steps",),
)
ALL = [ARRAY, HIDDEN, FIRST, SECOND, STEPS]

SELECTED = [
    (ps.State, [HIDDEN, FIRST, SECOND]),
    (ps.ParamState, [FIRST, SECOND]),
    (ps.ShortTermState, [HIDDEN]),
    (jax.Array, [ARRAY, STEPS]),
    ("slow", [HIDDEN, SECOND]),
    ("absent", []),
    (lambda path, leaf: path[0] == "layers", [FIRST, SECOND]),
    (..., ALL),
    (True, ALL),
    (None, []),
    (False, []),
    ((), []),
    ((ps.HiddenState, "frozen"), [HIDDEN, SECOND]),
    ([ps.HiddenState, ["frozen", None]], [HIDDEN, SECOND]),
    (OfType(ps.HiddenState), [HIDDEN]),
    (WithTag("frozen"), [SECOND]),
    (PathContains("layers"), [FIRST, SECOND]),
    (PathContains(1), [SECOND]),
    (Any(ps.HiddenState, "frozen"), [HIDDEN, SECOND]),
    (Any(), []),
    (All(ps.ParamState, "slow"), [SECOND]),
    (All(), ALL),
    (Not("slow"), [ARRAY, FIRST, STEPS]),
    (Everything, ALL),
    (Nothing, []),
    (Trainable, [ARRAY, FIRST, SECOND]),
]


@pytest.mark.parametrize(("filter_", "expected"), SELECTED, ids=lambda x: shown(x)[:40])
def test_what_filters_select(filter_, expected):
    """Each literal and each class selects what the table in the module says."""
    assert chosen(filter_) == expected


@pytest.mark.parametrize(
    "literal",
    [ps.ParamState, "slow", lambda path, leaf: "layers" in path, ..., True, None, False, (), ["slow"]],
    ids=shown,
)
def test_operators_take_literals_on_either_side(literal):
    """`|`, `&` and `~` mean any, all and not, reflected too."""
    tagged = WithTag("frozen")
    either = [path for path in ALL if path in chosen(literal) or path in chosen(tagged)]
    both = [path for path in ALL if path in chosen(literal) and path in chosen(tagged)]
    assert chosen(tagged | literal) == chosen(literal | tagged) == either
    assert chosen(tagged & literal) == chosen(literal & tagged) == both
    assert chosen(~to_predicate([literal])) == [path for path in ALL if path not in chosen(literal)]


def test_operators_combine():
    """Expressions nest as written."""
    assert chosen((OfType(ps.State) & ~WithTag("frozen")) | PathContains("steps")) == [
        HIDDEN,
        FIRST,
        STEPS,
    ]


def test_de_morgan():
    """`~(a | b)` selects what `~a & ~b` selects, for all pairs of the table."""
    filters = [to_predicate(f) for f, _ in SELECTED[:6]]
    for a, b in itertools.combinations(filters, 2):
        assert chosen(Not(Any(a, b))) == chosen(All(Not(a), Not(b)))


EQUAL = [
    lambda: OfType(ps.State),
    lambda: WithTag("a"),
    lambda: PathContains("a"),
    lambda: Any(ps.State, "a"),
    lambda: All(ps.State, "a"),
    lambda: Not("a"),
    lambda: OfType(ps.State) & ~WithTag("a") | PathContains(0),
]


def test_filters_compare_by_value():
    """Filters written twice are equal and hash alike; different ones differ."""
    for i, make in enumerate(EQUAL):
        for j, other in enumerate(EQUAL):
            assert (make() == other()) == (i == j)
        assert hash(make()) == hash(make())
    assert len({make() for make in EQUAL * 2}) == len(EQUAL)
    assert Not("a") != "a"


def test_to_predicate_normalises():
    """Literals become filters that are equal to the ones written out; filters stay what they are."""
    assert to_predicate(ps.State) == OfType(ps.State)
    assert to_predicate("a") == WithTag("a")
    assert to_predicate([ps.State, "a"]) == to_predicate((ps.State, "a")) == Any(ps.State, "a")
    assert to_predicate(...) is to_predicate(True) is Everything
    assert to_predicate(None) is to_predicate(False) is Nothing
    for filter_ in (Trainable, Not("a"), print):
        assert to_predicate(filter_) is filter_


def test_reprs_are_code():
    """A filter shows itself as one would write it."""
    filter_ = Any(ps.ParamState, All("a", Not(PathContains("b"))), Trainable, Everything, Nothing)
    names = {name: getattr(ps.filter, name) for name in ps.filter.__all__}
    assert eval(repr(filter_), {**names, "ParamState": ps.ParamState}) == filter_


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_trainable_is_inexact(dtype):
    """Raw inexact arrays are trainable, of whatever precision; integers and other leaves are not."""
    assert Trainable((), jnp.ones(2, dtype))
    assert Trainable((), np.ones(2))
    assert Trainable((), jax.ShapeDtypeStruct((), dtype))
    for leaf in (jnp.arange(2), jnp.ones(2, bool), 1.0, "text", None, jax.random.key(0), jnp.tanh):
        assert not Trainable((), leaf)


def test_trainable_states():
    """Of the states the parameters are trainable, whatever they hold."""
    assert Trainable((), ps.ParamState())
    assert Trainable((), ps.ParamState(1))
    assert not Trainable((), ps.BatchState(1.0))


def test_callables_that_are_modules():
    """A callable module is a callable, and so a filter."""

    class Deep(eqx.Module):
        depth: int

        def __call__(self, path, leaf):
            return len(path) >= self.depth

    assert chosen(Deep(2)) == [FIRST, SECOND]
