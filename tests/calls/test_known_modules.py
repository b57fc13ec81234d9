"""Modules whose method is called: they are remembered like any tree that pstate gave back."""

import functools as ft
import types
import warnings
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from pstate._trees.known import known


RUNS: list[None] = []
jitted = ps.jit
mapped = ft.partial(ps.vmap2, in_axes=None, axis_size=2)


class Inner(eqx.Module):
    """No state of it is written."""

    weight: ps.ParamState
    more: list[Any]


class Counter(eqx.Module):
    """A counter with methods of all sorts."""

    count: ps.ShortTermState
    inner: Inner
    extra: dict[str, Any]
    unit: float = eqx.field(static=True, default=1.0)

    def add(self, x):
        RUNS.append(None)
        self.count.value += self.unit * x
        return self.count.value + self.inner.weight.value + self.extra["shift"]

    def __call__(self, x):
        return self.add(x)

    def read(self, x):
        return self.count.value * x

    def scale(self, x):
        self.count.value += 1
        return self.unit * x

    jitted = ps.jit(add)
    mapped = ps.vmap2(add, in_axes=None, axis_size=2)


def counter(unit: Any = 1.0) -> Counter:
    zero = jnp.zeros(())
    inner = Inner(ps.ParamState(jnp.asarray(0.5)), [jnp.ones(2)])
    return Counter(ps.ShortTermState(zero), inner, {"shift": jnp.asarray(0.25)}, unit)


BOUND = {
    "method": lambda transform, module: transform(module.add),
    "module": lambda transform, module: transform(module),
    "Python's own method": lambda transform, module: transform(types.MethodType(Counter.add, module)),
    "decorated": lambda transform, module: module.mapped if transform is mapped else module.jitted,
}
every_way = pytest.mark.parametrize("bound", BOUND.values(), ids=BOUND)
each_transform = pytest.mark.parametrize("transform", [jitted, mapped], ids=["jit", "vmap2"])
ONE = jnp.asarray(1.0)


def remembered(bound: Any, transform: Any, module: Any = None) -> Any:
    """A module that came back from two calls, so that its program is there."""
    module = counter() if module is None else module
    for _ in range(3):
        _, module = ps.pure(bound(transform, module))(ONE)
    assert known(module) is not None
    return module


@pytest.fixture
def taken_apart(monkeypatch):
    """Each call that is taken apart adds to this list."""
    calls: list[Any] = []
    for cls in {type(jitted(print)), type(mapped(print))}:
        take_apart = cls._take_apart

        def counting(self, args, kwargs, take_apart=take_apart):
            calls.append(self)
            return take_apart(self, args, kwargs)

        monkeypatch.setattr(cls, "_take_apart", counting)
    return calls


@every_way
@each_transform
def test_it_is_not_taken_apart_again(bound, transform, taken_apart):
    """A loop calls a method of what came back: one run of the body, and no call is taken apart."""
    module = remembered(bound, transform)
    RUNS.clear()
    taken_apart.clear()
    for i in range(4, 9):
        out, module = ps.pure(bound(transform, module))(ONE)
        np.testing.assert_allclose(out, jnp.full(np.shape(out), i + 0.75))
        np.testing.assert_allclose(module.count.value, i)
    assert not RUNS
    assert not taken_apart


@every_way
@each_transform
def test_unwritten_modules_come_back(bound, transform):
    """What is inside the module, and has no written state, is the same object."""
    module = counter()
    for _ in range(4):
        _, new = ps.pure(bound(transform, module))(ONE)
        assert new.inner is module.inner
        module = new


EDITS = {
    "a list inside": lambda module: module.inner.more.append(jnp.ones(1)),
    "a dict": lambda module: module.extra.update(shift=jnp.asarray(3.0)),
    "a dict, with more": lambda module: module.extra.update(other=jnp.asarray(3.0)),
}


@every_way
@each_transform
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_between_calls(bound, transform, edit):
    """Lists and dicts of the module are looked at again."""
    module = remembered(bound, transform)
    edit(module)
    out, new = ps.pure(bound(transform, module))(ONE)
    np.testing.assert_allclose(out, jnp.full(np.shape(out), 4.5 + float(module.extra["shift"])))
    assert jtu.tree_structure(new) == jtu.tree_structure(module)


@each_transform
def test_other_methods_and_static_parts(transform):
    """Methods of one module, and modules with other static parts, have programs of their own."""
    module, other = remembered(BOUND["method"], transform), counter(2)
    module_of = lambda f: ps.pure(transform(f))
    for _ in range(3):
        total = float(module.count.value)
        out, same = module_of(module.read)(ONE)
        assert same is module
        assert np.all(out == total)
        _, module = module_of(module.add)(ONE)
        assert module.count.value == total + 1
        before = float(other.count.value)
        _, other = module_of(other.add)(ONE)
        assert other.count.value == before + 2


def test_static_parts_are_distinguished_exactly():
    """`2` and `2.0` are equal, and make other programs."""
    modules = {type(unit): counter(unit) for unit in (2, 2.0)}
    for _ in range(3):
        for kind, module in modules.items():
            out, modules[kind] = ps.pure(ps.jit(module.scale))(jnp.asarray(1))
            assert out == 2
            assert jnp.issubdtype(out.dtype, jnp.integer) == (kind is int)


@every_way
@each_transform
def test_a_stale_module_is_warned_of(bound, transform):
    """A bound function that is called again starts from the module that it was made from."""
    module = remembered(bound, transform)
    step = ps.pure(bound(transform, module))
    step(ONE)
    with pytest.warns(ps.StaleStateWarning, match="was called again"):
        _, new = step(ONE)
    assert new.count.value == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(ONE)  # told once


def test_reading_again_is_not_warned_of():
    """A method that writes nothing may be called any number of times."""
    module = remembered(BOUND["method"], jitted)
    read = ps.pure(ps.jit(module.read))
    for x in (1.0, 2.0, 3.0):
        out, same = read(jnp.asarray(x))
        assert out == 3 * x
        assert same is module


@every_way
@each_transform
def test_other_options_of_pure(bound, transform):
    """`argnums` and `writes` mean what they mean for a module that is not remembered."""
    module = remembered(bound, transform)
    _, (new,) = ps.pure(bound(transform, module), argnums=())(ONE)
    assert new.count.value == 4
    with pytest.raises(ps.FrozenStateError, match="writes"):
        ps.pure(bound(transform, module), writes=ps.ParamState)(ONE)


@every_way
@each_transform
def test_states_in_other_arguments(bound, transform):
    """A state in an argument beside a remembered module is threaded, or refused."""

    class Adder(eqx.Module):
        count: ps.ShortTermState

        def add(self, other):
            self.count.value += other.value
            other.value = self.count.value

        def __call__(self, other):
            self.add(other)

        jitted = ps.jit(add)
        mapped = ps.vmap2(add, in_axes=None, axis_size=2)

    ways = dict(BOUND)
    ways["Python's own method"] = lambda transform, m: transform(types.MethodType(Adder.add, m))
    way = next(ways[name] for name, value in BOUND.items() if value is bound)
    module, other = Adder(ps.ShortTermState(0.0)), ps.State(1.0)
    for total in (1, 2, 4):
        _, (module, other) = ps.pure(way(transform, module), argnums=(0,))(other)
        assert module.count.value == other.value == total
    with pytest.raises(ps.FrozenStateError, match="argument 0"):
        ps.pure(way(transform, module))(other)


def test_a_method_that_is_replaced():
    """A class whose method is bound to another function runs the other function."""

    class Box(eqx.Module):
        value: ps.State

        def __call__(self, x):
            self.value.value += x

    box = Box(ps.State(0.0))
    for _ in range(3):
        _, box = ps.pure(ps.jit(box))(ONE)
    call = ps.pure(ps.jit(box))

    def subtract(self, x):
        self.value.value -= x

    Box.__call__ = subtract
    for bound in (call, ps.pure(ps.jit(box))):
        _, new = bound(ONE)
        assert new.value.value == 2


def test_inside_a_trace():
    """A remembered module that is called under a transform of JAX is part of that trace."""
    module = remembered(BOUND["module"], jitted)
    _, new = jax.jit(ps.pure(ps.jit(module)))(ONE)
    assert new.count.value == 4
    grads = jax.grad(lambda x: ps.pure(ps.jit(module))(x)[0])(ONE)
    assert grads == 1


def test_donated_buffers_are_named():
    """The error for a buffer that is gone names the module."""
    module = remembered(BOUND["method"], jitted)
    module.count.value.delete()
    with pytest.raises(ps.StateError, match=r"`counter\.count` was donated"):
        ps.pure(ps.jit(module.add))(ONE)


def test_nothing_is_kept():
    """A module and its values are gone with the last reference to it, though its class lives on."""

    class Box(eqx.Module):
        value: ps.State

        def __call__(self, x):
            self.value.value += x

    box = Box(ps.State(jnp.zeros(())))
    for _ in range(4):
        _, box = ps.pure(ps.jit(box))(ONE)
    gone = [weakref.ref(box), weakref.ref(box.value.value)]
    del box
    assert [one() for one in gone] == [None, None]
