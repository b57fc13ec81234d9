"""Names that a function uses: rebinding one compiles again, and an attribute of that name does not."""

import functools as ft
import gc
import sys
import types
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps
from pstate._programs.bindings import bindings


def module(source):
    """A module with this source, as a user's script is."""
    made = types.ModuleType("script")
    exec(f"import jax, jax.numpy as jnp, functools as ft, pstate as ps\n{source}", vars(made))
    return made


STEP = """
runs = []
value = model = count = None

def step(state, x):
    runs.append(None)
    state.value = state.value + x
    return state.value
"""


@pytest.mark.parametrize("wrap", [ps.jit, ps.vmap2], ids=["jit", "vmap2"])
def test_attributes_are_no_globals(wrap):
    """A global called `value`, rebound on each step, compiles nothing and is not kept alive."""
    script = module(STEP)
    step = ps.pure(wrap(script.step))
    state, seen = ps.State(jnp.zeros(1)), []
    for _ in range(6):
        _, state = step(state, jnp.ones(1))
        script.value = state.value
        script.model = [state]
        seen.append(weakref.ref(state))
    assert len(script.runs) == 1
    del state
    script.value = script.model = None
    gc.collect()
    assert sum(ref() is not None for ref in seen) == 0


HELPERS = """
scale = 1.0

def inner(x):
    return x * scale

def helper(x):
    return inner(x) + offset

offset = 0.0

class Box:
    def __init__(self, x):
        self.x = x * scale

def step(x):
    return helper(x)

def through_default(x, f=helper):
    return f(x)

def recursive(x, n=2):
    return recursive(x, n - 1) if n else helper(x)

def nested(x):
    return [helper(y) for y in (x, x)][0] + (lambda: 0 * scale)()

def boxed(x):
    return Box(x).x

@ps.jit
def compiled(x):
    return helper(x)

def through_transform(x):
    return compiled(x)

def make(f):
    def closed(x):
        return f(x)
    return closed

through_closure = make(helper)
"""

ROUTES = (
    "step",
    "through_default",
    "recursive",
    "nested",
    "boxed",
    "through_transform",
    "through_closure",
)


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("wrap", [ps.jit, ps.vmap2], ids=["jit", "vmap2"])
def test_a_helper_whose_global_is_rebound(wrap, name):
    """A global of a helper, of its helper in turn, and of a class, is seen however it is reached."""
    script = module(HELPERS)
    call = wrap(getattr(script, name))
    x = jnp.ones(()) if wrap is ps.jit else jnp.ones((1,))
    assert float(call(x).sum()) == 1.0
    script.scale = 3.0
    assert float(call(x).sum()) == 3.0
    if name != "boxed":
        script.offset = 5.0
        assert float(call(x).sum()) == 8.0
        script.helper = lambda x: x * 0
        if name not in ("through_default", "through_closure"):
            assert float(call(x).sum()) == 0.0


class Slotted:
    """A class with slots that have the names of what a function holds."""

    __slots__ = ("__closure__", "__code__", "__defaults__", "__kwdefaults__", "__wrapped__")


@pytest.mark.parametrize("wrap", [ps.jit, ps.vmap2], ids=["jit", "vmap2"])
@pytest.mark.parametrize(
    "cls", [types.FunctionType, types.MethodType, types.CodeType, ft.partial, property, Slotted]
)
@pytest.mark.parametrize("how", ["closure", "default", "global"])
def test_names_of_classes(wrap, cls, how):
    """A name may be bound to any class, that of functions too, whose attributes are descriptors."""
    script = module(STEP)
    if how == "closure":

        def step(state, x):
            assert not isinstance(x, cls)
            state.value += x

    elif how == "default":

        def step(state, x, cls=cls):
            assert not isinstance(x, cls)
            state.value += x

    else:
        script.cls = cls
        exec(
            "def typed(state, x):\n    assert not isinstance(x, cls)\n    state.value += x", vars(script)
        )
        step = script.typed
    state = ps.State(jnp.zeros(2))
    axes = {} if wrap is ps.jit else {"state_in_axes": {0: ps.State}, "state_out_axes": {0: ps.State}}
    for _ in range(2):
        _, state = ps.pure(wrap(step, **axes))(state, jnp.ones(2))
    assert state.value.tolist() == [2, 2]


def test_a_function_that_wraps_itself():
    """A `__wrapped__` that leads back to the function ends."""

    def f(x):
        return x + 1

    f.__wrapped__ = f
    assert ps.jit(f)(jnp.ones(())) == 2.0
    assert ps.vmap2(f)(jnp.ones(2)).tolist() == [2.0, 2.0]


def test_libraries_are_not_followed():
    """A function of another package is one binding, whatever it uses itself."""

    def f(x):
        return ft.reduce(jnp.add, [jax.nn.relu(x)])

    assert len(bindings(f)) <= 4
    assert sys.modules["jax"] in bindings(f)


LIBRARY = """
def decorate(f):
    def decorated(x):
        return f(x)
    return decorated

offset = 0.25

def helper(x):
    return x + offset
"""


def through(f):
    return lambda x: f(x)


@pytest.mark.parametrize("wrap", [ps.jit, ps.vmap2], ids=["jit", "vmap2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda other, f: other.decorate(f),
        lambda other, f: lambda x: f(x) + 0 * other.helper(x),
        lambda other, f: through(ft.partial(f)),
        lambda other, f: lambda x, g=other.helper, f=f: f(x) + 0 * g(x),
        lambda other, f: through(types.MethodType(lambda self, x: f(x), other)),
    ],
    ids=["decorated", "closure", "partial", "default", "method"],
)
def test_modules_of_one_program(wrap, make):
    """Functions of another module that is not installed are helpers, and lead to helpers."""
    script, other = module(HELPERS), module(LIBRARY)
    other.decorate.__module__ = other.helper.__module__ = "other"
    call = wrap(make(other, script.step))
    x = jnp.ones(()) if wrap is ps.jit else jnp.ones((1,))
    assert float(call(x).sum()) == 1.0
    script.scale = 3.0
    assert float(call(x).sum()) == 3.0


def test_what_a_library_holds_is_followed():
    """A function of an installed package is followed through its closure, and not through its names."""
    script, library = module(HELPERS), module(LIBRARY)
    decorated = library.decorate(script.step)
    decorated.__module__ = library.helper.__module__ = "jax.decorating"
    helper = library.helper
    assert script.scale in bindings(lambda x: decorated(x))
    assert library.offset not in bindings(lambda x: helper(x))
    assert len(bindings(lambda x: eqx.filter_eval_shape(jnp.sum, x))) < 10


def test_a_helper_of_a_helper_in_another_module():
    """A global of a helper that another module defines is seen, by its own name."""
    other = module(LIBRARY)
    other.helper.__module__ = "other"
    helper = other.helper
    call = ps.jit(lambda x: helper(x))
    assert call(jnp.ones(())) == 1.25
    other.offset = 5.0
    assert call(jnp.ones(())) == 6.0
