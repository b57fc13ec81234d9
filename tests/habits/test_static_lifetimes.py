"""No static field outlives its model: what is remembered of structures is forgotten."""

import functools as ft
import gc
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import pstate as ps
from pstate._calls.signature import Signature


class Held:
    """A hashable object, to stand in a static field."""


class Model(eqx.Module):
    count: ps.State
    weight: ps.ParamState
    rng: ps.RandomState
    held: Any = eqx.field(static=True)


def model(held, n=3):
    return Model(ps.State(jnp.zeros(n)), ps.ParamState(jnp.ones(n)), ps.RandomState(0), held)


def make_step():
    """A new function: what is compiled lives as long as it does."""

    def step(model, x):
        model.count.value = model.count.value + x
        return jnp.sum(model.weight.value * x)

    return step


ONE = jnp.asarray(1.0)
XS = jnp.ones(2)
LANES = {None: ps.RandomState, 0: (ps.State, ps.ParamState)}


def recorded(step, tree):
    with ps.record(tree) as live:
        step(live, ONE)
        ps.written(live)
    return ps.freeze(live)


def of_loop(loop):
    """A loop that runs the step of a live model, eagerly."""

    def run(step, tree):
        with ps.record(tree) as live:
            loop(step, live)
        return ps.freeze(live)

    return run


def carrying(step):
    return lambda model, carry, x: (carry, step(model, x))


def adding(step):
    return lambda model, carry: carry + step(model, carry)


def mapped(step, **options):
    return ps.vmap2(step, in_axes=(None, None), state_in_axes=LANES, axis_size=3, **options)


def saved(tree, path):
    eqx.tree_serialise_leaves(path, tree, filter_spec=ps.serialise_filter_spec)
    return eqx.tree_deserialise_leaves(path, tree, filter_spec=ps.deserialise_filter_spec)


USES = {
    "pure": lambda f, m: ps.pure(f)(m, ONE),
    "pure of a partial": lambda f, m: ps.pure(ft.partial(f, m))(ONE),
    "pack": lambda f, m: ps.pack(m).unpack(),
    "pure, packed": lambda f, m: ps.pure(f)(ps.pack(m), ONE),
    "record": recorded,
    "states and update": lambda f, m: ps.update(m, ps.states(m)),
    "select": lambda f, m: ps.select(m),
    "axes": lambda f, m: ps.axes(m, {0: ps.ParamState}),
    "broadcast": lambda f, m: ps.broadcast(m, {0: ps.ParamState}, 4),
    "summary": lambda f, m: str(ps.summary(m)),
    "diff": lambda f, m: str(ps.diff(m, recorded(f, m))),
    "jit": lambda f, m: ps.pure(ps.jit(f))(m, ONE),
    "jit, packed": lambda f, m: ps.pure(ps.jit(f))(ps.pack(m), ONE),
    "jit with donation": lambda f, m: ps.pure(ps.jit(f, donate=...))(m, ONE),
    "vmap2": lambda f, m: ps.pure(mapped(f))(m, ONE),
    "chunks": lambda f, m: ps.pure(mapped(f, chunk_size=2))(m, ONE),
    "explain": lambda f, m: str(mapped(f).explain(m, ONE)),
    "lane": lambda f, m: ps.pure(mapped(f).lane(0))(m, ONE),
    "grad": lambda f, m: ps.pure(ps.grad(f))(m, ONE),
    "value_and_grad": lambda f, m: ps.pure(ps.value_and_grad(f))(m, ONE),
    "jacfwd": lambda f, m: ps.pure(ps.jacfwd(f))(m, ONE),
    "jacrev": lambda f, m: ps.pure(ps.jacrev(f))(m, ONE),
    "hessian": lambda f, m: ps.pure(ps.hessian(f))(m, ONE),
    "checkpoint": lambda f, m: ps.pure(ps.checkpoint(f))(m, ONE),
    "for_loop": of_loop(lambda f, m: ps.for_loop(ft.partial(f, m), XS)),
    "scan": of_loop(lambda f, m: ps.scan(ft.partial(carrying(f), m), 0.0, XS)),
    "while_loop": of_loop(lambda f, m: ps.while_loop(lambda c: c < 20, ft.partial(adding(f), m), 1.0)),
    "cond": lambda f, m: ps.pure(lambda m: ps.cond(True, f, f, m, ONE))(m),
    "switch": lambda f, m: ps.pure(lambda m: ps.switch(0, [f, f], m, ONE))(m),
    "loop in pure": lambda f, m: ps.pure(lambda m: ps.for_loop(ft.partial(f, m), XS))(m),
    "vmap of pure": lambda f, m: jax.vmap(lambda x: ps.pure(f)(m, x)[0])(XS),
}


def kept(use):
    """How many of several static objects are alive after their models are gone."""
    refs = []
    for _ in range(3):
        held, step = Held(), make_step()
        refs.append(weakref.ref(held))
        use(step, model(held))
        del held, step
    gc.collect()
    return sum(ref() is not None for ref in refs)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_static_object_is_kept(use):
    """After model and function are gone, the static objects are."""
    assert kept(use) == 0


def test_saving_keeps_nothing(tmp_path):
    """Nor does saving and loading."""
    assert kept(lambda f, m: saved(m, tmp_path / "model.eqx")) == 0


def test_pmap2_keeps_nothing():
    """Nor does a program for devices."""
    axes = {"state_in_axes": {None: ps.RandomState}, "devices": jax.devices()[:1]}

    def use(step, tree):
        return ps.pure(ps.pmap2(step, in_axes=(0, None), **axes))(model(tree.held, (1, 3)), ONE)

    assert kept(use) == 0


def test_eager_functions_keep_nothing_while_they_live():
    """What is not compiled is forgotten with the model, though the function lives on."""
    step = make_step()
    assert kept(lambda _, m: ps.pure(step)(m, ONE)) == 0
    assert kept(lambda _, m: recorded(step, ps.pack(m).unpack())) == 0


def test_a_program_is_found_after_a_collection():
    """What was dropped is worked out again when it is used: nothing compiles again."""
    runs, held = [], Held()

    def step(tree, x):
        runs.append(x)
        tree.count.value = tree.count.value + x

    for make in (model, lambda held: ps.pack(model(held))):
        runs.clear()
        tree, compiled = make(held), ps.pure(ps.jit(step))
        for _ in range(3):
            _, tree = compiled(tree, ONE)
            gc.collect()
            _, other = compiled(make(held), ONE)
            assert jtu.tree_structure(other) == jtu.tree_structure(tree)
        assert len(runs) == 1


def test_forms_are_one_while_packed_trees_live():
    """Packed trees of one structure share a form, also across a collection."""
    held = Held()
    first = ps.pack(model(held))
    gc.collect()
    assert ps.pack(model(held)).form is first.form


def test_what_a_collection_finds_in_use_is_kept(monkeypatch):
    """A collection in the middle of a call does not make the next call work out the structure again."""
    made: list[None] = []
    init = Signature.__init__

    def counting(self, *args):
        made.append(None)
        init(self, *args)

    monkeypatch.setattr(Signature, "__init__", counting)

    def step(model, x):
        gc.collect()
        model.count.value = model.count.value + x

    held = Held()
    tree, gone = model(held), weakref.ref(held)
    for _ in range(3):
        _, tree = ps.pure(step)(tree, ONE)
    assert len(made) == 1
    del held, tree
    gc.collect()
    assert gone() is None
