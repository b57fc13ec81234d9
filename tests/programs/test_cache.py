"""Compiled programs: when a body runs again, what is never stale, and how a program is looked at."""

import contextlib
import dataclasses
import functools as ft
import gc
import math
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


same = np.testing.assert_array_equal
XS = jnp.arange(3.0)
SCALE = 2.0


class Counter(eqx.Module):
    count: ps.ShortTermState
    runs: list = eqx.field(static=True)

    def __call__(self, x):
        self.runs.append(None)
        self.count.value = self.count.value + x
        return x

    def through(self, xs):
        return ps.vmap2(self.__call__, state_in_axes=ps.ShortTermState)(xs)


class Recorder:
    """A list that compares by identity, so that it may stand in a static field."""

    def __init__(self):
        self.runs = 0

    def append(self, _):
        self.runs += 1


def counted(fn):
    """`fn` with a count of the runs of its body."""

    def body(*args, **kwargs):
        body.runs += 1
        return fn(*args, **kwargs)

    body.runs = 0
    return body


# Once ---------------------------------------------------------------------------------------------


def test_one_run_per_signature():
    """The body runs once for each structure, shape and static leaf, and not for new values."""
    body = counted(lambda t, x, *rest: t["s"].value + x)
    mapped = ps.vmap2(body, in_axes=(None, 0))
    for _ in range(3):
        mapped({"s": ps.State(1.0)}, XS)
        mapped({"s": ps.State(2.0)}, XS + 1)
    assert body.runs == 1
    mapped({"s": ps.State(1.0)}, jnp.arange(4.0))
    mapped({"s": ps.State(1.0)}, jnp.arange(3))
    mapped({"s": ps.HiddenState(1.0)}, XS)
    mapped({"s": ps.State(1.0, tag="t")}, XS)
    assert body.runs == 5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: ps.vmap2(f),
        lambda f: ps.vmap2(ps.vmap2(f, in_axes=None, axis_size=2)),
        lambda f: ps.vmap2(ft.partial(f)),
        lambda f: ps.vmap2(jax.tree_util.Partial(f), in_axes=(0,), axis_size=3),
        lambda f: ps.vmap2(ps.pure(f)),
        lambda f: ps.StatefulMapping(f, mapping_fn=ft.partial(jax.vmap, spmd_axis_name=None)),
    ],
    ids=["plain", "nested", "partial", "Partial", "pure", "mapping_fn"],
)
def test_a_wrapper_made_anew_does_not_compile_again(wrap):
    """The cache belongs to the function and the options, not to the wrapper."""
    body = counted(lambda x: x)
    for _ in range(3):
        wrap(body)(XS)
    assert body.runs == 1


def test_reducers_made_anew():
    """The reducer of the messages, a partial, is told apart by what it does."""
    body = counted(lambda t, x: setattr(t["s"], "value", x))
    for _ in range(3):
        key = ft.partial(jnp.sum, axis=0)
        ps.pure(ps.vmap2(body, in_axes=(None, 0), state_out_axes={key: ps.State}))(
            {"s": ps.State(0.0)}, XS
        )
    assert body.runs == 1


def test_modules_made_anew():
    """`vmap2(model)` and a mapping inside `__call__` compile once for all models of a structure."""
    runs = Recorder()
    for value in (0.0, 1.0, 2.0):
        model = Counter(ps.ShortTermState(jnp.full(3, value)), runs)
        _, new = ps.pure(ps.vmap2(model, state_in_axes=ps.ShortTermState))(XS)
        same(new.count.value, value + XS)
    assert runs.runs == 1
    for value in (0.0, 1.0, 2.0):
        model = Counter(ps.ShortTermState(jnp.full(3, value)), runs)
        _, new = ps.pure(model.through)(XS)
        same(new.count.value, value + XS)
    assert runs.runs == 2


# Never stale --------------------------------------------------------------------------------------


def test_a_rebound_closure_variable():
    """What a closure is bound to is part of the key, behind `functools.wraps` too."""
    scale = 2.0

    def body(x):
        return x * scale

    wrapped = ft.wraps(body)(lambda x: body(x))
    same(ps.vmap2(body)(XS), 2 * XS)
    same(ps.vmap2(wrapped)(XS), 2 * XS)
    scale = 3.0
    same(ps.vmap2(body)(XS), 3 * XS)
    same(ps.vmap2(wrapped)(XS), 3 * XS)


def test_rebound_defaults():
    """Defaults, of keywords too, are part of the key."""

    def body(x, scale=2.0, *, shift=0.0):
        return x * scale + shift

    mapped = ps.vmap2(body)
    same(mapped(XS), 2 * XS)
    body.__defaults__ = (3.0,)
    same(mapped(XS), 3 * XS)
    body.__kwdefaults__ = {"shift": 1.0}
    same(mapped(XS), 3 * XS + 1)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * SCALE,
        lambda x: (lambda y: y * SCALE)(x),
        lambda x: sum([x * scale for scale in [SCALE]]),
    ],
    ids=["direct", "lambda", "comprehension"],
)
def test_rebound_globals(body, monkeypatch):
    """Globals that a function names are part of the key, in inner functions too."""
    mapped = ps.vmap2(body)
    same(mapped(XS), 2 * XS)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    same(mapped(XS), 3 * XS)


HOLDER = {}


def recorded(t, x):
    with ps.record(t) as live:
        return live["s"].value * x


def product(t, x):
    return t["s"].value * x


@pytest.mark.parametrize(
    "read",
    [
        lambda t, x: t["s"].value * x,
        lambda t, x: eqx.combine(*eqx.partition(t, eqx.is_array))["s"].value * x,
        lambda t, x: ps.pure(lambda t, x: t["s"].value * x)(t, x)[0],
        lambda t, x: ps.vmap2(lambda t, x: t["s"].value * x, in_axes=None, axis_size=1)(t, x)[0],
        lambda t, x: ps.jit(product)(t, x),
        lambda t, x: ps.pure(ps.jit(product))(t, x)[0],
        lambda t, x: ps.jit(product)(t=t, x=x),
        lambda t, x: ps.jit(product)(ps.pack(t), x),
        lambda t, x: ps.checkpoint(product)(t, x),
        lambda t, x: ps.cond(True, product, product, t, x),
        lambda t, x: ps.for_loop(ft.partial(product, t), x[None])[0],
        lambda t, x: ps.grad(lambda x, t: product(t, x))(x, t) * x,
        recorded,
    ],
    ids=[
        *("value", "partition", "pure", "vmap2", "jit", "pure jit", "keyword", "pack"),
        *("checkpoint", "cond", "for_loop", "grad", "record"),
    ],
)
def test_captured_states_warn_and_are_never_stale(read, monkeypatch):
    """A state that is not an argument makes the mapping run uncompiled, with one warning."""
    mapped = ps.vmap2(lambda x: read(HOLDER["tree"], x))
    monkeypatch.setitem(HOLDER, "tree", {"s": ps.State(2.0)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same(mapped(XS), 2 * XS)
        monkeypatch.setitem(HOLDER, "tree", {"s": ps.State(3.0)})
        same(mapped(XS), 3 * XS)
    assert [w.category for w in caught] == [ps.CapturedStateWarning]


def test_a_captured_packed_tree_warns_and_is_never_stale(monkeypatch):
    """A packed tree that is not an argument is captured like the tree itself."""
    mapped = ps.vmap2(lambda x: ps.jit(product)(HOLDER["tree"], x))
    monkeypatch.setitem(HOLDER, "tree", ps.pack({"s": ps.State(2.0)}))
    with pytest.warns(ps.CapturedStateWarning, match=r"reads the state `State\(f32\[\]\)`"):
        same(mapped(XS), 2 * XS)
    monkeypatch.setitem(HOLDER, "tree", ps.pack({"s": ps.State(3.0)}))
    same(mapped(XS), 3 * XS)


def test_what_is_no_capture():
    """States that a body receives, makes or advances are its own: nothing warns."""

    def body(t, x):
        made = ps.State(np.ones(2))
        _, new = ps.pure(lambda t: setattr(t["s"], "value", x))(t)
        return new["s"].value + made.value.sum() + ps.State({"a": 1.0}).value["a"]

    same(ps.vmap2(body, in_axes=(None, 0))({"s": ps.State(0.0)}, XS), XS + 3)


# Static leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "results"),
    [
        ((0.0, -0.0), (1.0, -1.0)),
        ((1, 1.0, True), ("int", "float", "bool")),
        ((complex(0, 0.0), complex(0, -0.0)), (1.0, -1.0)),
        (("a", "b"), ("a", "b")),
    ],
    ids=["zeros", "ones", "complex", "strings"],
)
def test_static_leaves_by_type_and_value(values, results):
    """Values that Python calls equal are different programs where they differ."""

    def body(x, v):
        match v:
            case complex():
                return x, math.copysign(1.0, v.imag)
            case float() if v == 0:
                return x, math.copysign(1.0, v)
            case str():
                return x, v
        return x, type(v).__name__

    mapped = ps.vmap2(body, out_axes=(0, None))
    for _ in range(2):
        assert tuple(mapped(XS, v)[1] for v in values) == results


def test_one_warning_for_a_number_that_keeps_changing():
    """Every value is right, and the fifth compilation warns, once."""
    mapped = ps.vmap2(lambda x, n: x * n)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(8):
            same(mapped(XS, n), XS * n)
            ps.vmap2(mapped.fun)(XS, n)
    assert [w.category for w in caught] == [ps.RecompilationWarning]


# Lifetimes ----------------------------------------------------------------------------------------


def test_a_function_that_dies_frees_its_program():
    """Neither the function nor what it is bound to is kept alive by the cache."""

    class Big:
        pass

    big = Big()
    body = lambda x, big=big: x
    ps.vmap2(body)(XS)
    dead = [weakref.ref(body), weakref.ref(big)]
    del body, big
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_an_object_that_holds_its_mapping_dies():
    """The same where what the function is bound to leads back to the function."""

    class Model:
        def __init__(self):
            self.scale = 2.0
            self.mapped = ps.vmap2(lambda x: x * self.scale)

    model = Model()
    model.mapped(XS)
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


def test_no_tracer_outlives_a_call():
    """L7: after a call, and after a failed one, nothing holds a tracer."""

    def body(t, x):
        t["s"].value = t["s"].value + t["rng"].normal()
        if x.dtype == "int32":
            raise KeyError
        return x

    def tracers():
        gc.collect()
        return sum(isinstance(x, jax.core.Tracer) for x in gc.get_objects())

    t, before = {"s": ps.State(jnp.zeros(3)), "rng": ps.RandomState(0)}, tracers()
    with jax.checking_leaks():
        ps.pure(ps.vmap2(body))(t, XS)
        with contextlib.suppress(KeyError):
            ps.pure(ps.vmap2(body))(t, jnp.arange(3))
    assert tracers() == before


def test_an_exception_in_the_first_trace_poisons_nothing():
    """L8: the next call traces again and is compiled as usual."""
    fail = [True]

    @counted
    def body(t, x):
        t["s"].value = x
        if fail:
            raise KeyError("mine")
        return x

    mapped, t = ps.pure(ps.vmap2(body)), {"s": ps.State(jnp.zeros(3))}
    with pytest.raises(KeyError, match="mine"):
        mapped(t, XS)
    fail.clear()
    for _ in range(2):
        same(mapped(t, XS)[1]["s"].value, XS)
    assert body.runs == 2


# Looking ------------------------------------------------------------------------------------------


def test_keys_and_programs():
    """Calls share a key where they share a program; looking at it runs nothing again."""
    body = counted(lambda t, x: setattr(t["s"], "value", jnp.sin(x)))
    mapped, t = ps.vmap2(body), {"s": ps.State(XS)}
    ps.pure(mapped)(t, XS)
    key = mapped.get_arg_cache_key(t, XS)
    assert key == mapped.get_arg_cache_key(t, XS + 1) == ps.vmap2(body).get_arg_cache_key(t, XS)
    assert key == mapped.get_arg_cache_key(*jax.eval_shape(lambda: (t, XS)))
    assert hash(key) == hash(mapped.get_arg_cache_key(t, XS))
    assert key != mapped.get_arg_cache_key(t, jnp.arange(3))
    jaxpr = mapped.get_jaxpr_by_cache(key)
    assert ["sin" in str(eqn.primitive) for eqn in jaxpr.eqns] == [True]
    assert mapped.lower(t, XS).compile().as_text()
    assert body.runs == 1


@pytest.mark.parametrize("look", ["get_jaxpr_by_cache", "lower"])
def test_looking_at_a_mapping_that_captures_a_state(look):
    """The error is one of the library's own, since there is no compiled program to show."""
    state = ps.State(2.0)
    mapped = ps.vmap2(lambda x: x * state.value)
    argument = mapped.get_arg_cache_key(XS) if look == "get_jaxpr_by_cache" else XS
    with pytest.raises(ps.CapturedStateError):
        getattr(mapped, look)(argument)


@dataclasses.dataclass(unsafe_hash=True)
class Settings:
    """Static, and known by its value; which may be edited all the same."""

    factor: float


@pytest.mark.parametrize("limit", [256, 2])
def test_an_edited_static_leaf_poisons_nothing(limit, monkeypatch):
    """The programs of other values are made and found, also when the oldest have to go."""
    monkeypatch.setattr("pstate._programs.cache.MAX_PROGRAMS", limit)
    step = ps.pure(ps.jit(lambda tree, x: x * tree["settings"].factor))
    tree = lambda factor: {"settings": Settings(factor), "s": ps.State(0.0)}
    edited = tree(1.0)
    same(step(edited, XS)[0], XS)
    edited["settings"].factor = 10.0
    same(step(edited, XS)[0], 10 * XS)
    for factor in (2.0, 3.0, 4.0, 2.0):
        same(step(tree(factor), XS)[0], factor * XS)
