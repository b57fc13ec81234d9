"""`jit`: what comes back, what it can be put around, and what stays after errors."""

import functools as ft
import gc
import threading
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from programs.steps import add, deleted, nothing_left_over, zeros


clean_thread = pytest.fixture(autouse=True)(nothing_left_over)


def line_of(error):
    """The line of code at the end of a message."""
    return str(error.value).splitlines()[-1].strip()


# What comes back ------------------------------------------------------------------------------------


def test_outputs_that_came_in_are_the_same_objects():
    """States, arrays and static leaves that only pass through are the same objects."""
    x = jnp.ones(3)
    tree = {"f": jnp.tanh, "s": zeros(), "x": x}

    def body(tree, y):
        return tree, y, tree["x"], tree["f"], "name", None

    for disabled in (False, True):
        with jax.disable_jit(disabled):
            out, *rest = ps.jit(body)(tree, x)
        assert out["s"].value is tree["s"].value
        assert out["x"] is rest[0] is rest[1] is x
        assert rest[2:] == [jnp.tanh, "name", None]


def test_static_leaves_come_out():
    """A constructor gives a module whose functions and numbers are those it was made with."""

    class Net(eqx.Module):
        weight: ps.ParamState
        act: object
        rate: float

        def __init__(self, key):
            self.weight = ps.ParamState(jax.random.normal(key, (2,)))
            self.act = jax.nn.relu
            self.rate = 0.5

    net = ps.jit(Net)(jax.random.key(0))
    assert net.act is jax.nn.relu
    assert net.rate == 0.5
    assert type(net.rate) is float
    out, same = ps.pure(ps.jit(lambda net, x: net.act(net.weight.value * x)))(net, jnp.ones(2))
    assert same.weight.value is net.weight.value
    assert out.shape == (2,)


def test_numbers_come_out_as_arrays():
    """A Python number is an output as in JAX, weak type and all."""
    out = ps.jit(lambda x: (1, 2.5, True, np.ones(2, np.int8)))(0)
    expected = jax.jit(lambda: (1, 2.5, True, np.ones(2, np.int8)))()
    for one, other in zip(out, expected, strict=True):
        assert (one.dtype, one.weak_type, one.shape) == (other.dtype, other.weak_type, other.shape)


def test_states_that_change_their_structure():
    """Empty states are filled, containers change their shape and states are emptied, live or not."""

    def fill(tree):
        tree["a"].value = {"u": jnp.ones(2), "v": [jnp.zeros(1)]}

    def empty(tree):
        tree["a"].value = None

    tree = {"a": ps.State(), "b": zeros()}
    _, filled = ps.pure(ps.jit(fill))(tree)
    with ps.record(tree) as live:
        ps.jit(fill)(live)
    assert jtu.tree_structure(ps.freeze(live)) == jtu.tree_structure(filled)
    np.testing.assert_array_equal(filled["a"].value["u"], np.ones(2))
    assert filled["b"].value is tree["b"].value
    _, emptied = ps.pure(ps.jit(empty))(filled)
    assert jtu.tree_structure(emptied) == jtu.tree_structure(tree)
    with pytest.raises(
        ps.UninitializedStateError, match=r"`tree\['a'\]` \(State\) is empty and was read"
    ):
        ps.jit(lambda tree: tree["a"].value)(emptied)


def test_keywords():
    """Keywords may come in any order and share one program; a written one is refused."""
    runs = []

    def body(state, *, x, y):
        runs.append(None)
        state.value += x - y
        return state.value

    step = ps.pure(ps.jit(body))
    one, _ = step(zeros(), x=jnp.ones(3), y=2)
    two, _ = step(zeros(), y=2, x=jnp.ones(3))
    np.testing.assert_array_equal(one, two)
    assert len(runs) == 1
    with pytest.raises(TypeError, match=r"threads the states of argument 0, but no positional argument"):
        ps.pure(ps.jit(add))(state=zeros(), x=1)


def test_argnums_of_pure():
    """`pure` gives back what it is told to; a write elsewhere names the argnums that will do."""

    def both(a, b):
        a.value += 1
        b.value += 2

    _, (b, a) = ps.pure(ps.jit(both), argnums=(1, 0))(zeros(), zeros())
    assert (a.value[0], b.value[0]) == (1, 2)
    with pytest.raises(ps.FrozenStateError, match=r"Include it: argnums=\(0, 1\)\.$"):
        ps.pure(ps.jit(both))(zeros(), zeros())


# Callables ------------------------------------------------------------------------------------------


class Layer(eqx.Module):
    count: ps.State

    def step(self, x):
        self.count.value += x
        return self.count.value

    @ps.jit
    def compiled(self, x):
        return self.step(x)

    @ps.jit(donate=ps.State)
    def donating(self, x):
        return self.step(x)

    @staticmethod
    @ps.jit
    def plain(x):
        return x + 1

    def __call__(self, x):
        return self.step(x)


class Object:
    def __init__(self, factor):
        self.factor = factor

    def step(self, state, x):
        return add(state, self.factor * x)


CALLABLES = {
    "method": lambda layer: ps.jit(layer.step),
    "decorated": lambda layer: layer.compiled,
    "donating": lambda layer: layer.donating,
    "module": lambda layer: ps.jit(layer),
    "partial": lambda layer: ps.jit(ft.partial(Layer.step, layer)),
    "Partial": lambda layer: ps.jit(jtu.Partial(layer)),
    "nested": lambda layer: ps.jit(ps.jit(ps.checkpoint(layer))),
    "mapped": lambda layer: ps.jit(ps.vmap2(layer, state_in_axes={0: ps.State})),
}


@pytest.mark.parametrize("make", CALLABLES.values(), ids=CALLABLES)
def test_carriers_of_callables(make):
    """Whatever holds the states is given back in its own type, and its program is compiled once."""
    layer = Layer(zeros())
    out, new = ps.pure(make(layer))(jnp.ones(3))
    np.testing.assert_array_equal(out, np.ones(3))
    if isinstance(new, ft.partial):  # also `jax.tree_util.Partial`
        (new,) = (*new.args, *([] if new.args else [new.func]))
    assert type(new) is Layer
    np.testing.assert_array_equal(new.count.value, np.ones(3))


def test_methods_of_plain_objects_and_static_methods():
    """A plain object is static; each has its own program. A static method is a function."""
    for factor in (2.0, 3.0):
        _, new = ps.pure(ps.jit(Object(factor).step))(zeros(), jnp.ones(3))
        np.testing.assert_array_equal(new.value, np.full(3, factor))
    assert Layer.plain(jnp.ones(())) == Layer(zeros()).plain(jnp.ones(())) == 2
    _, layer = ps.pure(Layer.compiled)(Layer(zeros()), jnp.ones(3))
    np.testing.assert_array_equal(layer.count.value, np.ones(3))


def test_stacked_decorators():
    """Decorators in a class body may stand in any order, and are inherited."""

    class Base(eqx.Module):
        s: ps.State

        @ps.pure
        @ps.jit(donate=ps.State)
        def outside(self, x):
            self.s.value += x

        @ps.jit
        @ps.pure
        def inside(self, x):
            self.s.value += x

        @ps.pure
        @ps.jit
        @ps.vmap2(state_in_axes={0: ps.State})
        def lanes(self, x):
            self.s.value += x

    class Derived(Base):
        pass

    for name in ("outside", "inside", "lanes"):
        _, new = getattr(Derived(zeros()), name)(jnp.ones(3))
        assert type(new) is Derived
        np.testing.assert_array_equal(new.s.value, np.ones(3))


def test_one_heart_many_callables():
    """Subclasses, static fields and rebound methods have programs of their own."""

    class Base(eqx.Module):
        s: ps.State
        f: object = eqx.field(static=True)

        def __call__(self, x):
            return self.f(self.shift(x))

        def shift(self, x):
            return x + 1

    class Derived(Base):
        def shift(self, x):
            return x + 2

    x, double, triple = jnp.ones(()), lambda x: 2 * x, lambda x: 3 * x
    calls = Base(zeros(), double), Derived(zeros(), double), Base(zeros(), triple)
    assert [ps.jit(layer)(x).item() for layer in calls] == [4, 6, 6]
    Base.__call__ = lambda self, x: x * 10
    assert ps.jit(calls[0])(x) == 10


def test_live_aliases():
    """A live state that is passed twice may be read; a write is refused with both places."""
    with ps.record(zeros()) as live:
        np.testing.assert_array_equal(ps.jit(lambda a, b: a.value + b.value)(live, live), np.zeros(3))
        with pytest.raises(
            ps.AliasedStateError, match=r"`a` and `b` are one state object at two places"
        ):
            ps.jit(lambda a, b: add(a, 1.0), donate=...)(live, live)
    assert deleted(live) == [False]


def test_a_keyword_called_self():
    """Keywords of any name reach the function."""
    assert ps.jit(lambda x, self: x + self)(jnp.ones(()), self=2.0) == 3


def test_functions_of_other_libraries():
    """What is compiled or wrapped already is a function like any other."""
    x = jnp.arange(3.0)
    for fn in (jnp.sin, jax.jit(jnp.sin), jax.vmap(jnp.sin), eqx.filter_jit(jnp.sin)):
        np.testing.assert_allclose(ps.jit(fn)(x), np.sin(x), rtol=1e-6)


# What stays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"donate": ps.State}, {"donate_argnums": 0}], ids=["plain", "donate", "argnums"]
)
@pytest.mark.parametrize("pack", [lambda tree: tree, ps.pack], ids=["tree", "packed"])
def test_an_exception_half_way(options, pack):
    """The exception comes out as it is, inputs stay usable, and the next call works."""
    bad = True

    def body(tree, x):
        tree["s"].value += x
        if bad:
            raise KeyError("half way")

    tree = pack({"s": zeros()})
    step = ps.pure(ps.jit(body, **options))
    with pytest.raises(KeyError, match="half way"):
        step(tree, jnp.ones(3))
    assert deleted(tree) == [False]
    with ps.record({"s": zeros()}) as live:
        with pytest.raises(KeyError, match="half way"):
            ps.jit(body, **options)(live, jnp.ones(3))
        assert ps.written(live) == {}
    bad = False
    _, new = step(tree, jnp.ones(3))
    np.testing.assert_array_equal(jtu.tree_leaves(new)[0], np.ones(3))


WRAPS = {
    "jit": ps.jit,
    "donate": ft.partial(ps.jit, donate=...),
    "vmap2": lambda f: ps.jit(ps.vmap2(f)),
    "grad": lambda f: ps.jit(ps.grad(lambda state, x: f(state, x).sum(), wrt=...)),
    "partial": lambda f: ps.jit(ft.partial(f)),
    "eager grad": lambda f: ps.grad(lambda state, x: f(state, x).sum(), wrt=...),
    "checkpoint": ps.checkpoint,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("pack", [lambda tree: tree, ps.pack], ids=["tree", "packed"])
def test_nothing_is_kept(wrap, pack):
    """A function, what it closes over, and the model are collected after use."""
    constant = jnp.ones(3)

    def body(state, x):
        return add(state, x + constant.sum())  # noqa: F821 (deleted below)

    model = pack(zeros())
    seen = [weakref.ref(x) for x in (body, constant, jtu.tree_leaves(model)[0])]
    result = ps.pure(wrap(body))(model, jnp.ones(3))
    del body, constant, model, result
    gc.collect()
    assert [ref() for ref in seen] == [None, None, None]


def test_a_decorated_method_keeps_no_model():
    """The program of a method belongs to the class, and holds no instance."""
    layer = Layer(zeros())
    seen = weakref.ref(layer.count.value)
    ps.pure(layer.compiled)(jnp.ones(3))
    ps.pure(ps.jit(layer))(jnp.ones(3))
    del layer
    gc.collect()
    assert seen() is None


def test_threads():
    """Many threads share one wrapper, with trees and packed trees, donated and not."""
    runs, errors = [], []

    def body(tree, x):
        runs.append(None)
        tree["s"].value += x
        return tree["s"].value * 2

    steps = ps.pure(ps.jit(body)), ps.pure(ps.jit(body, donate=...))

    def work(start):
        try:
            for step in steps:
                for carrier in (
                    {"s": ps.State(jnp.full(3, start))},
                    ps.pack({"s": ps.State(jnp.full(3, start))}),
                ):
                    for k in range(10):
                        out, carrier = step(carrier, jnp.ones(3))
                        np.testing.assert_array_equal(out, np.full(3, 2 * (start + k + 1)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(runs) <= 2 * 2 * len(threads)


@pytest.mark.parametrize("checks", [jax.checking_leaks, lambda: jax.debug_key_reuse(True)])
def test_under_the_checks_of_jax(checks):
    """Leak checking and key-reuse checking pass, with typed and raw keys, trees and packed trees."""

    def body(tree, x):
        tree["n"].value += x
        return tree["rng"].normal() + tree["n"].value

    with checks():
        for key in (jax.random.key(0), jax.random.PRNGKey(0)):
            for options in ({}, {"donate": ...}):
                step = ps.pure(ps.jit(body, **options))
                for pack in (lambda tree: tree, ps.pack):
                    tree = pack({"n": ps.State(0.0), "rng": ps.RandomState(jnp.copy(key))})
                    one, tree = step(tree, jnp.ones(()))
                    two, tree = step(tree, jnp.ones(()))
                    assert one + 1 != two
        ps.jit(body).lower({"n": ps.State(0.0), "rng": ps.RandomState(0)}, jnp.ones(()))


def test_random_states_in_lanes():
    """In a lane a compiled function draws the lane's numbers, and a state nobody draws from stays."""

    def draws(rng, x):
        return x + rng.normal()

    def twice(f):
        return lambda rng, x: rng.normal() + f(rng, x)

    rng, xs = ps.RandomState(0), jnp.arange(3.0)
    for by in (lambda f: f, twice):
        compiled, new = ps.pure(ps.vmap2(by(ps.jit(draws))))(rng, xs)
        plain, same = ps.pure(ps.vmap2(by(draws)))(rng, xs)
        np.testing.assert_array_equal(compiled, plain)
        assert new.value == same.value
    _, new = ps.pure(ps.vmap2(lambda rng, x: ps.jit(lambda rng, x: x)(rng, x)))(rng, xs)
    assert new.value is rng.value


# Messages -------------------------------------------------------------------------------------------


@ps.jit(donate=ps.ShortTermState)
def decorated(state, x):
    return add(state, x)


@pytest.mark.parametrize(
    "step",
    [
        ps.jit(add),
        ps.jit(add, donate=ps.State),
        ps.jit(add, donate_argnums=(0, 1)),
        ps.jit(add, donate=[ps.ParamState, "tag"], donate_argnums=1),
        decorated,
        ps.jit(ps.checkpoint(add)),
    ],
    ids=["plain", "donate", "argnums", "both", "decorated", "nested"],
)
def test_the_line_that_is_right(step):
    """A write that nobody takes names the line to write, which runs."""
    state = zeros(ps.ShortTermState)
    kept, x = state.replace(jnp.zeros(3)), jnp.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.UnmatchedFilterWarning)
        with pytest.raises(
            ps.FrozenStateError, match=r"`state` \(ShortTermState\) was written"
        ) as error:
            step(state, jnp.copy(x))
        names = {"ps": ps, "add": add, "decorated": decorated, "state": kept, "x": x}
        exec(line_of(error), names)
    np.testing.assert_array_equal(names["state"].value, np.ones(3))


def test_an_echo():
    """A state that also stands in the output is named with both places; the advice runs."""
    message = (
        r"came in as `state` and is also in the output as `out\[0\]`.*state\.replace\(state\.value\)"
    )
    with pytest.raises(ps.AliasedStateError, match=message):
        ps.pure(ps.jit(lambda state: (state, 1)))(zeros())
    with ps.record(zeros()) as live, pytest.raises(ps.AliasedStateError, match=message):
        ps.jit(lambda state: (state, 1))(live)
    (out, _), _ = ps.pure(ps.jit(lambda state: (state.replace(state.value), 1)))(zeros())
    np.testing.assert_array_equal(out.value, np.zeros(3))
    same, _ = ps.jit(lambda state: (state, 1))(state := zeros())
    assert same.value is state.value


class Holder:
    def __init__(self, value):
        self.value = value


class HolderModule(eqx.Module):
    value: jax.Array


@pytest.mark.parametrize("transform", [ps.jit, ps.vmap2, ps.checkpoint])
def test_an_output_that_is_no_pytree_and_holds_a_tracer(transform):
    """It would leak the tracer: refused with its place; as a module it can be returned."""
    no_pytree = "which is not a pytree, and holds a tracer"
    with pytest.raises(TypeError, match=rf"`out\['h'\]` is a Holder, {no_pytree}"):
        transform(lambda x: {"h": Holder(2 * x)})(jnp.ones(3))
    with pytest.raises(TypeError, match=f"`out` is a function, {no_pytree}"):
        transform(lambda x: lambda: x)(jnp.ones(3))
    out = transform(lambda x: {"h": HolderModule(2 * x)})(jnp.ones(3))
    np.testing.assert_array_equal(out["h"].value, np.full(3, 2.0))
