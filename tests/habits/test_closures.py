"""States that a function reaches through a closure: never stale, whether it also gets them or not."""

import functools as ft
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


def tree():
    return {"n": ps.State(jnp.zeros(())), "other": ps.State(jnp.ones(()))}


def bump(m):
    m["n"].value = m["n"].value + 1


READS = {
    "value": lambda m: m["n"].value,
    "leaves": lambda m: jax.tree.leaves(m["n"])[0],
    "pure": lambda m: ps.pure(lambda m: m["n"].value)(m)[0],
    "jit": lambda m: ps.jit(lambda m: m["n"].value)(m),
    "map": lambda m: jax.tree.map(lambda x: x, m)["n"].value,
}


def with_while(m, read):
    return ps.while_loop(lambda c: read(m) < 3, ft.partial(lambda m, c: (bump(m), c)[1], m), 0)


def with_while_body(m, read):
    def body(inner, c):
        bump(inner)
        return c + read(m)

    return ps.while_loop(ft.partial(lambda m, c: m["n"].value < 3, m), ft.partial(body, m), 0.0)


def lifted(lift):
    """A function that writes what it gets, and reads the tree outside by closure."""

    def call(m, read):
        def f(inner):
            bump(inner)
            return read(m)

        return lift(f, m)

    return call


STALE = {
    "while_loop condition": with_while,
    "while_loop body": with_while_body,
    "for_loop": lifted(lambda f, m: ps.for_loop(ft.partial(f, m), length=2)),
    "scan": lifted(lambda f, m: ps.scan(ft.partial(lambda m, c, x: (c, f(m)), m), 0, length=2)),
    "cond": lifted(lambda f, m: ps.cond(True, f, f, m)),
    "one branch": lifted(lambda f, m: ps.cond(True, lambda m: jnp.zeros(()), f, m)),
    "switch": lifted(lambda f, m: ps.switch(0, [f, f], m)),
    "checkpoint": lifted(lambda f, m: ps.checkpoint(f)(m)),
    "grad": lifted(lambda f, m: ps.grad(f, wrt=ps.State)(m)),
    "jacfwd": lifted(lambda f, m: ps.jacfwd(f, wrt=ps.State)(m)),
    "vjp": lifted(lambda f, m: ps.vjp(f, m, wrt=ps.State)[0]),
    "vmap2": lifted(lambda f, m: ps.vmap2(f, in_axes=None, out_axes=None, axis_size=2)(m)),
    "pmap2": lifted(lambda f, m: ps.pmap2(f, in_axes=None, out_axes=None, axis_size=2)(m)),
    "jit": lifted(lambda f, m: ps.jit(f)(m)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("call", STALE.values(), ids=STALE)
@pytest.mark.parametrize("live", [True, False], ids=["live", "frozen"])
def test_a_threaded_state_is_not_read_by_closure(call, read, live):
    """A state that a call threads and writes, read by closure inside it, is refused before it runs."""
    m = tree()
    run = (lambda: ps.pure(lambda m: call(m, read))(m)) if live else (lambda: call(m, read))
    with pytest.raises(ps.CapturedStateError):
        run()
    assert m["n"].value == 0


def test_the_message():
    """It names the state and the tree outside, and the advised line is right."""
    message = (
        "`m['n']` (State) is written by a function of ps.while_loop(f, ft.partial(f, m)), and was also "
        "read through a closure: from the `m` outside, which has the value from before and goes stale. "
        "Read it from the `m` that the function gets; if it gets none, bind the function to it: "
        "ft.partial(f, m)."
    )
    with pytest.raises(ps.CapturedStateError, match=f"^{re.escape(message)}"):
        ps.pure(lambda m: with_while(m, READS["value"]))(tree())

    def right(m):
        f = lambda m, c: m["n"].value < 3
        return ps.while_loop(ft.partial(f, m), ft.partial(lambda m, c: (bump(m), c)[1], m), 0)

    assert ps.pure(right)(tree())[1]["n"].value == 3


@pytest.mark.parametrize("name", ["for_loop", "cond", "checkpoint", "grad", "vmap2"])
def test_what_is_not_written_may_be_read(name):
    """A threaded state that the call only reads, and another state of the tree, are no danger."""

    def call(m):
        def f(inner):
            bump(inner)
            return m["other"].value + inner["other"].value

        lift = {
            "for_loop": lambda f, m: ps.for_loop(ft.partial(f, m), length=2).sum(),
            "cond": lambda f, m: ps.cond(True, f, f, m),
            "checkpoint": lambda f, m: ps.checkpoint(f)(m),
            "grad": lambda f, m: ps.value_and_grad(f, wrt=ps.State)(m)[0],
            "vmap2": lambda f, m: ps.vmap2(f, in_axes=None, out_axes=None, axis_size=2)(m),
        }[name]
        return lift(f, m)

    out, new = jax.jit(ps.pure(call))(tree())
    assert out == (4.0 if name == "for_loop" else 2.0)
    assert new["n"].value == (2.0 if name == "for_loop" else 1.0)


def test_without_jit():
    """`jax.disable_jit()` runs loops step by step, and the stale read is refused after the first."""
    with jax.disable_jit(), pytest.raises(ps.CapturedStateError, match="through a closure"):
        ps.pure(lambda m: with_while(m, READS["value"]))(tree())


# Captured states ------------------------------------------------------------------------------------

CAPTURED = {"s": ps.State(jnp.ones(3)), "k": ps.State({"a": jnp.ones(3)})}
TAKES = {
    "leaves": lambda: jax.tree.leaves(CAPTURED)[0],
    "flatten": lambda: jax.tree.flatten(CAPTURED["k"])[0][0],
    "with path": lambda: jax.tree_util.tree_flatten_with_path(CAPTURED["s"])[0][0][1],
    "map": lambda: jax.tree.map(lambda x: x * 2, CAPTURED)["s"].value,
}


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_taking_leaves_is_a_read(take):
    """Leaves of a captured tree are not baked into what `jit` and mappings compile."""
    f = lambda x: x + take()
    with pytest.raises(ps.CapturedStateError, match=r"reads the state .*State"):
        ps.jit(f)(jnp.ones(3))
    with pytest.raises(ps.CapturedStateError, match=r"reads the state .*State"):
        ps.pmap2(f)(jnp.ones((4, 3)))
    with pytest.warns(ps.CapturedStateWarning, match="so it runs uncompiled"):
        ys = ps.vmap2(f)(jnp.ones((4, 3)))
    np.testing.assert_array_equal(ys, jnp.ones((4, 3)) + take())


def test_what_a_body_makes_is_its_own():
    """States that a compiled body makes, copies and takes apart are no captures, whatever they hold."""

    def f(x):
        made = {"s": ps.State(np.ones(3)), "r": ps.RandomState(0)}
        copied = jax.tree.map(lambda leaf: leaf, made)
        assert len(jax.tree.leaves(copied)) == 2
        return x + copied["s"].value + jax.tree.leaves(made)[1]

    np.testing.assert_array_equal(ps.jit(f)(jnp.ones(3)), np.full(3, 3.0))


def test_what_came_in_is_its_own():
    """Leaves of the arguments are traced, and of a tree that was rebuilt from them."""

    def f(m, x):
        halves = jax.tree.map(lambda leaf: leaf / 2, m)
        return x + jax.tree.leaves(m)[0] + halves["n"].value + sum(jax.tree.leaves(halves))

    assert ps.jit(f)(tree(), jnp.ones(())) == 1.5
