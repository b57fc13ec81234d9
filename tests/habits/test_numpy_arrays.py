"""NumPy arrays change in place: no state shares the memory of one, and no function edits one."""

import functools as ft

import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps
from habits.habits_between_calls import aligned


def write(state, x):
    state.value = x


def in_a_loop(state, x):
    ps.for_loop(ft.partial(write, state, x), length=2)


MADE = {
    "State": lambda x: ps.State(x),
    "a dict": lambda x: ps.State({"a": x}),
    "replace": lambda x: ps.State(0.0).replace(x),
    "update": lambda x: ps.update({"s": ps.State(0.0)}, {("s",): x}),
    "pure": lambda x: ps.pure(write)(ps.State(0.0), x)[1],
    "jit": lambda x: ps.pure(ps.jit(write))(ps.State(0.0), x)[1],
    "checkpoint": lambda x: ps.pure(ps.checkpoint(write))(ps.State(0.0), x)[1],
    "cond": lambda x: ps.pure(lambda s, x: ps.cond(True, write, write, s, x))(ps.State(0.0), x)[1],
    "for_loop": lambda x: ps.pure(in_a_loop)(ps.State(jnp.float32(0)), x)[1],
    "grad": lambda x: ps.pure(ps.grad(lambda s, x: write(s, x) or x, wrt=ps.State))(ps.State(0.0), x)[1],
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_no_state_shares_memory(make):
    """A buffer that its owner fills again changes no state that was made of it, or written."""
    buffer = aligned(1.0)
    made = make(buffer)
    buffer[...] = 9
    (state,) = ps.states(made).values()
    value = state.value["a"] if isinstance(state.value, dict) else state.value
    assert isinstance(value, jnp.ndarray)
    assert value == 1.0


EDITED = {
    "pure": lambda f: ps.pure(f),
    "grad": lambda f: ps.pure(ps.grad(f, wrt=ps.State)),
    "disable_jit": lambda f: ps.pure(ps.vmap2(f, in_axes=None, axis_size=2).lane(0)),
}


@pytest.mark.parametrize("call", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("edit", ["tree", "argument"])
def test_arrays_of_arguments_are_not_edited(call, edit):
    """NumPy refuses an edit in place in the tree, and in another argument; the caller's stay."""

    def f(tree, x):
        if edit == "tree":
            tree["buffer"][0] = 1
        else:
            x -= 1
        return tree["s"].value

    tree, x = {"s": ps.State(0.0), "buffer": np.zeros(2)}, np.ones(2)
    with pytest.raises(ValueError, match="read-only"):
        call(f)(tree, x)
    assert not tree["buffer"].any()
    assert x.all()
    tree["buffer"][0] = 1  # the caller may
    x -= 1


def test_what_is_not_edited_is_the_very_array():
    """In the tree that comes back, in outputs, nested calls and recordings."""
    buffer, x = np.zeros(2), np.ones(2)
    tree = {"s": ps.State(0.0), "buffer": buffer}

    def f(tree, x):
        tree["s"].value += 1.0
        (again, same), _ = ps.pure(lambda tree, x: (tree["buffer"], x))(tree, x)
        assert again is tree["buffer"]
        assert same is x
        return again, {"x": x}

    (out, more), new = ps.pure(f)(tree, x)
    assert out is new["buffer"] is buffer
    assert more["x"] is x
    with ps.record(tree) as live, pytest.raises(ValueError, match="read-only"):
        live["buffer"][0] = 1
    assert ps.freeze(live) is tree
    with ps.record(tree) as live:
        live["s"].value += 1.0
    assert ps.freeze(live)["buffer"] is buffer
