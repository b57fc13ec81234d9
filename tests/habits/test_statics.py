"""Static fields of equal value but different type: what comes back has the statics that came in."""

import dataclasses
import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import pstate as ps
from pstate._trees.structures import Ambiguity


class Model(eqx.Module):
    count: ps.State
    weight: ps.ParamState
    static: Any = eqx.field(static=True)

    def __call__(self, x):
        self.count.value = self.count.value + 1
        return self.weight.value * x


@dataclasses.dataclass(frozen=True)
class Config:
    depth: Any


@jtu.register_pytree_with_keys_class
class Node:
    """A node of the user's own, whose static part is its aux data."""

    def __init__(self, count, static):
        self.count, self.static = count, static

    def tree_flatten_with_keys(self):
        return ((jtu.GetAttrKey("count"), self.count),), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(*children, static)


EQUAL = {
    "int and float": (2, 2.0),
    "float and int": (2.0, 2),
    "int and bool": (1, True),
    "zeros": (0.0, -0.0),
    "in a tuple": ((1, "a"), (1.0, "a")),
    "in a dataclass": (Config(1), Config(True)),
}


def model(static):
    return Model(ps.State(jnp.zeros((), jnp.int32)), ps.ParamState(jnp.ones(())), static)


def exact(x):
    if dataclasses.is_dataclass(x):
        return type(x), exact(x.depth)
    if isinstance(x, tuple):
        return tuple(map(exact, x))
    return type(x), repr(x)


def call(m, x):
    return m(x)


X = jnp.ones(())
XS = jnp.ones(3)

BACK = {
    "pure": lambda m: ps.pure(call)(m, X)[1],
    "bound": lambda m: ps.pure(m)(X)[1],
    "jit": lambda m: ps.pure(ps.jit(call))(m, X)[1],
    "bound jit": lambda m: ps.pure(ps.jit(m))(X)[1],
    "donate": lambda m: ps.pure(ps.jit(call, donate=ps.State))(m, X)[1],
    "vmap2": lambda m: ps.pure(ps.vmap2(call, in_axes=(None, 0)))(m, XS)[1],
    "pmap2": lambda m: ps.pure(ps.pmap2(call, in_axes=(None, 0)))(m, XS)[1],
    "chunks": lambda m: ps.pure(ps.vmap2(call, in_axes=(None, 0), chunk_size=2))(m, XS)[1],
    "checkpoint": lambda m: ps.pure(ps.checkpoint(call))(m, X)[1],
    "grad": lambda m: ps.pure(ps.grad(call))(m, X)[1],
    "gradient": lambda m: ps.pure(ps.grad(call))(m, X)[0],
    "for_loop": lambda m: ps.pure(lambda m: ps.for_loop(m, XS))(m)[1],
    "carry": lambda m: ps.scan(lambda c, x: (c, x), m, XS)[0],
    "cond": lambda m: ps.pure(lambda m: ps.cond(True, call, call, m, X))(m)[1],
    "pack": lambda m: ps.pack(m).unpack(),
    "packed jit": lambda m: ps.pure(ps.jit(call))(ps.pack(m), X)[1].unpack(),
    "record": lambda m: recorded(m),
    "update": lambda m: ps.update(m, {("count",): 3}),
    "filled": lambda m: ps.pure(ps.jit(fill))(dataclasses.replace(m, count=ps.State()))[1],
}


def fill(m):
    m.count.value = jnp.zeros(())


def recorded(m):
    with ps.record(m) as live:
        live.count.value += 1
    return ps.freeze(live)


@pytest.mark.parametrize("back", BACK.values(), ids=BACK)
@pytest.mark.parametrize(("first", "second"), EQUAL.values(), ids=EQUAL)
def test_what_comes_back_has_its_own_statics(back, first, second):
    """The static field of each of two models, one after the other, is that of the model that went in."""
    for static in (first, second, first):
        assert exact(back(model(static)).static) == exact(static)


COMPUTE = {
    "pure": lambda f: f,
    "jit": ps.jit,
    "vmap2": lambda f: ps.vmap2(f, in_axes=(None, 0)),
    "pmap2": lambda f: ps.pmap2(f, in_axes=(None, 0)),
    "checkpoint": ps.checkpoint,
    "grad": lambda f: lambda m, x: ps.value_and_grad(lambda m, x: f(m, x).mean())(m, x)[0],
    "cond": lambda f: lambda m, x: ps.cond(True, f, f, m, x),
    "for_loop": lambda f: lambda m, x: ps.for_loop(ft.partial(f, m), x[None])[0],
}


def typed(m, x):
    """What a function computes may depend on the type of a static field."""
    m.count.value = m.count.value + 1
    return x * (10 if type(m.static) is float else 1)


@pytest.mark.parametrize("wrap", COMPUTE.values(), ids=COMPUTE)
@pytest.mark.parametrize("packed", [lambda m: m, ps.pack], ids=["tree", "packed"])
def test_what_is_computed_is_of_its_own_statics(wrap, packed):
    """No program that was compiled, or traced, for one static field serves the other."""
    step = ps.pure(wrap(typed))
    for static, expected in ((2, 1.0), (2.0, 10.0), (2, 1.0)):
        out, _ = step(packed(model(static)), XS)
        assert (out == expected).all()


@pytest.mark.parametrize(("first", "second"), EQUAL.values(), ids=EQUAL)
def test_nodes_of_the_users_own(first, second):
    """The same for the aux data of a registered node."""
    bump = lambda node: node.count.replace(node.count.value)
    for static in (first, second):
        node = Node(ps.State(jnp.zeros(())), static)
        _, new = ps.pure(ps.jit(lambda node: bump(node)))(node)
        assert exact(new.static) == exact(static)


def test_keys_of_dicts():
    """A dict with the key `1` is not a dict with the key `True`."""

    def add(tree):
        (state,) = tree.values()
        state.value += 1

    for key in (1, True, 1.0):
        _, new = ps.pure(ps.jit(add))({key: ps.State(0)})
        assert [type(k) for k in new] == [type(key)]
        assert [type(path[0]) for path in ps.states(new)] == [type(key)]


def test_structures_without_numbers_cost_nothing():
    """Where nothing could be mixed up, structures are compared by JAX alone."""
    assert not Ambiguity(jtu.tree_structure(model("a name")))
    assert not Ambiguity(jtu.tree_structure(model(jax.nn.relu)))
    assert Ambiguity(jtu.tree_structure(model(3)))
