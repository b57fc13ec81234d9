"""Loops and branches: without states as in JAX, and with them as in the twin threaded by hand."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from laws.programs import program
from pstate._transforms.loop_options import LoopOptions
from transforms.flow import XS, add, advance, below, model, same


# JAX's conventions ----------------------------------------------------------------------------------

CALLS = {
    "int carry": lambda lib: lib.scan(lambda c, x: (c + 1, c), 0, XS),
    "int carry made float": lambda lib: lib.scan(lambda c, x: (c + 0.5, c), 0, XS),
    "bool and complex": lambda lib: lib.scan(lambda c, x: ((~c[0], c[1] * 1j), 1), (True, 1j), XS),
    "no xs": lambda lib: lib.scan(lambda c, x: (c * 2, x), 1.5, None, 3),
    "length 0": lambda lib: lib.scan(lambda c, x: (c + x, 2 * x), 0.0, jnp.zeros(0)),
    "length 1": lambda lib: lib.scan(lambda c, x: (c + x, 2 * x), 0.0, XS[:1]),
    "length and xs": lambda lib: lib.scan(lambda c, x: (c + x, 2 * x), 0.0, XS, length=3),
    "reverse": lambda lib: lib.scan(lambda c, x: (c * x, c), 1.0, XS, reverse=True),
    "unroll 2": lambda lib: lib.scan(lambda c, x: (c * x, c), 1.0, XS, unroll=2),
    "unroll all": lambda lib: lib.scan(lambda c, x: (c * x, c), 1.0, XS, unroll=True),
    "not unrolled": lambda lib: lib.scan(lambda c, x: (c * x, c), 1.0, XS, unroll=False),
    "tree of xs": lambda lib: lib.scan(lambda c, x: (c, x), None, {"a": XS, "b": (np.arange(3), None)}),
    "keys": lambda lib: lib.scan(lambda k, x: (jr.split(k)[0], x), jr.key(0), jr.split(jr.key(1), 3)),
    "while": lambda lib: lib.while_loop(lambda i: i < 5, lambda i: i + 2, 0),
    "while never": lambda lib: lib.while_loop(lambda i: i < 0, lambda i: i + 2, 0),
    "cond number": lambda lib: lib.cond(jnp.int32(1), lambda x, y: x + y, lambda x, y: x - y, 1, 2.5),
    "cond false": lambda lib: lib.cond(np.bool_(False), lambda x: {"a": x}, lambda x: {"a": -x}, 1),
    "cond numbers out": lambda lib: lib.cond(True, lambda: (1, 2.0, True), lambda: (3, 4.0, False)),
    "switch clamped": lambda lib: lib.switch(7, [lambda x: x, lambda x: 2 * x], 1.5),
    "switch negative": lambda lib: lib.switch(-3, [lambda x: x, lambda x: 2 * x], 1.5),
    "switch of one": lambda lib: lib.switch(3, [lambda x: 3 * x], jnp.asarray(1.5)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_states_as_in_jax(call):
    """Without states, results, dtypes and weak types are those of JAX, eagerly, compiled, and not."""
    expected = call(jax.lax)
    same(call(ps), expected)
    weak = lambda tree: [getattr(x, "weak_type", False) for x in jax.tree.leaves(tree)]
    assert weak(call(ps)) == weak(expected)
    same(jax.jit(lambda: call(ps))(), expected)
    if jax.__version_info__ >= (0, 7):  # before, JAX converts a predicate by an equation of its own
        assert program(lambda: call(ps)) == program(lambda: call(jax.lax))


@pytest.mark.parametrize(
    "call",
    [
        lambda lib: lib.scan(lambda c, x: (1.0, c), jnp.float32(0), XS),
        lambda lib: lib.while_loop(lambda i: i > 0, lambda i: 0, jnp.int32(3)),
        lambda lib: lib.scan(lambda c, x: (True, None), jnp.asarray(False, bool), XS),
    ],
    ids=["float", "int", "bool"],
)
def test_a_body_may_return_a_python_number(call):
    """JAX takes a number for the new carry where it becomes the carry's type."""
    same(call(ps), call(jax.lax))


@pytest.mark.parametrize(
    "call",
    [
        lambda lib, xs: lib.scan(lambda c, x: (c + x, c), np.zeros(()), xs),
        lambda lib, xs: lib.scan(lambda c, x: (c + x, c), np.float64(0), xs),
        lambda lib, xs: lib.while_loop(lambda i: i < 3, lambda i: i + 1, np.int64(0)) + xs,
    ],
    ids=["array", "scalar", "while"],
)
def test_a_numpy_carry_under_a_trace(call):
    """A carry of NumPy's default dtypes works under `jax.jit` as it does eagerly."""
    same(call(ps, XS), call(jax.lax, XS))
    same(jax.jit(ft.partial(call, ps))(XS), jax.jit(ft.partial(call, jax.lax))(XS))


@pytest.mark.parametrize("pred", [None, (), (True, False)], ids=repr)
def test_a_predicate_is_one_scalar(pred):
    """As in JAX, anything but a scalar is refused; an operand is never taken for the predicate."""
    with pytest.raises(TypeError):
        ps.cond(pred, lambda x: 1, lambda x: 2, jnp.asarray(True))


def test_sizes():
    """Sizes that disagree are listed; without any, the message asks for `length`, which works."""
    with pytest.raises(
        ValueError, match=r"^ps\.scan\(f\) has no array to loop over.* Pass it: length=10\."
    ):
        ps.scan(lambda c, x: (c, None), 0.0)
    assert ps.scan(lambda c, x: (c + 1, None), 0.0, length=10)[0] == 10
    with pytest.raises(ValueError) as error:
        ps.for_loop(lambda a, b: a, {"x": XS, "s": ps.State(jnp.ones(()))}, jnp.ones((2, 2)), length=5)
    assert str(error.value) == (
        "ps.for_loop(f) loops over the first axis of every array in xs, but their sizes differ:\n"
        "    a['s']: shape ()\n"
        "    a['x']: shape (3,)\n"
        "    b: shape (2, 2)\n"
        "    length=5\n"
        "Bind the function to arrays that are the same in all steps: ft.partial(f, array)."
    )
    np.testing.assert_allclose(
        ps.for_loop(ft.partial(lambda b, x: b.sum() * x, jnp.ones(2)), XS), 2 * XS
    )


def test_no_branches():
    """A choice among nothing is refused."""
    with pytest.raises(
        ValueError, match=r"has no branch to choose. Write ps.switch\(index, \[f, g\], \*op"
    ):
        ps.switch(0, [])


def test_options_are_told_apart_by_type():
    """A loop that is unrolled is another program than one that is not."""
    assert LoopOptions(True, None, False, 1, None) != LoopOptions(True, None, False, True, None)


# Derivatives and programs ---------------------------------------------------------------------------


def test_gradients():
    """Reverse mode goes through scans and choices, forward mode also through `while_loop`."""

    def loss(m, x):
        ys = ps.scan(m.carry, 0, x * XS)[1]
        return ys.sum() + ps.cond(x > 0, m.add, lambda x: x, x)

    def twin(w, x):
        total, out = 0.0, 0.0
        for v in XS:
            total += w * x * v
            out += 2 * total
        return out + 2 * (total + w * x)

    (y, grads), new = ps.pure(ps.value_and_grad(loss))(model(), 2.0)
    expected = jax.value_and_grad(twin)(3.0, 2.0)
    np.testing.assert_allclose((y, grads.factor.value), expected, rtol=1e-6)
    assert new.total.value == 42

    def forward(m, x):
        return ps.while_loop(m.below, m.advance, x) * 0 + m.total.value

    tangent, new = ps.pure(ps.jacfwd(forward))(model(), 1.0)
    assert (tangent.factor.value, new.total.value) == (6, 18)


def test_the_program_is_the_twins():
    """L2: states that no step writes or reads leave nothing in the program."""

    def run(m, x):
        ps.for_loop(ft.partial(add, m), x * XS)
        ps.while_loop(ft.partial(below, m), ft.partial(advance, m), x)
        return ps.cond(x > 1, m.add, lambda x: x, x)

    def twin(total, factor, x):
        def step(total, x):
            total = total + factor * x
            return total, 2 * total

        def go(carry):
            return (carry[1] < 4) & (carry[0] < 100)

        total, _ = jax.lax.scan(step, total, x * XS)
        total, _ = jax.lax.while_loop(go, lambda c: (step(c[0], c[1])[0], c[1] + 1.0), (total, x))
        return jax.lax.cond(x > 1, lambda t, x: step(t, x), lambda t, x: (t, x), total, x)

    m = eqx.filter(model(), eqx.is_array)
    x = jnp.float32(2)
    got = program(lambda m, x: ps.pure(run)(m, x), m, x)
    assert got == program(twin, m.total.value, m.factor.value, x)
