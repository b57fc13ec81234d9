"""Python numbers that loops and choices get: arrays, as in JAX, without an array being made first."""

import functools as ft
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


XS = jnp.arange(3.0)

seen: list[tuple[str, bool]] = []


def keep(tree, carry, x):
    seen.append((str(carry.dtype), carry.weak_type))
    tree["n"].value += 1
    return carry, x


def run(tree, carry):
    return ps.scan(ft.partial(keep, tree), carry, XS)[0]


@pytest.mark.parametrize("number", [True, 3, -2.5, -0.0, math.inf, math.nan, 1e30, 2**31 - 1, 2j])
def test_a_number_is_the_array_that_jax_makes_of_it(number):
    """The body gets the same dtype and weak type, and the carry has the same value, in every way of
    running the loop.
    """
    expected = jnp.asarray(number)
    seen.clear()
    eager, _ = ps.pure(run)({"n": ps.State(0)}, number)
    compiled, _ = ps.pure(ps.jit(lambda tree: run(tree, number)))({"n": ps.State(0)})
    with jax.disable_jit():
        uncompiled, _ = ps.pure(run)({"n": ps.State(0)}, number)
    for found in (eager, compiled, uncompiled):
        assert isinstance(found, jax.Array)
        assert (found.dtype, found.weak_type) == (expected.dtype, expected.weak_type)
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
    assert set(seen) == {(str(expected.dtype), expected.weak_type)}


def test_numbers_and_arrays_share_a_program():
    """Neither another number nor an array of its type is traced again; another type is."""
    seen.clear()
    f = ps.pure(run)
    for carry in (0.0, 1.0, jnp.asarray(2.0), -0.0, math.nan):
        f({"n": ps.State(0)}, carry)
    once = len(seen)
    f({"n": ps.State(0)}, 1)
    assert len(seen) == 2 * once


def test_a_number_that_does_not_fit_is_refused_as_by_jax():
    """The message is that of `jnp.asarray`."""
    with pytest.raises(OverflowError) as expected:
        jnp.asarray(2**31)
    with pytest.raises(OverflowError) as found:
        ps.pure(run)({"n": ps.State(0)}, 2**31)
    assert str(found.value) == str(expected.value)


def test_a_loop_that_runs_uncompiled_gets_arrays():
    """A body that reads a captured state runs uncompiled, and its carry is still an array."""
    outside = ps.State(1.0)

    def body(carry, x):
        return carry + outside.value, x

    with pytest.warns(ps.CapturedStateWarning):
        carry, _ = ps.scan(body, 0.5, XS)
    assert carry.item() == 3.5
    assert ps.scan(body, 1.5, XS)[0].item() == 4.5


def test_numbers_in_choices_and_other_loops():
    """Predicates, indices, operands and first carries may be numbers."""
    add, double = lambda x, y: x + y, lambda x, y: 2 * x
    assert ps.cond(True, add, double, 1.0, 2).item() == 3.0
    assert ps.cond(False, add, double, 1.0, 2).item() == 2.0
    assert ps.switch(1, [add, double], 4, 1).item() == 8
    assert ps.fori_loop(0, 3, lambda i, c: c + i, 1).item() == 4
    assert ps.while_loop(lambda c: c < 5, lambda c: 2 * c, 1).item() == 8


def test_options_that_only_look_equal():
    """`True` is no axis, whether or not 1 was one before; and a wrong count is refused each time."""
    identity, x = lambda x: x, jnp.ones((2, 3))
    assert ps.for_loop(identity, x, in_axes=1).shape == (3, 2)
    for _ in range(2):
        with pytest.raises(TypeError, match="in_axes of a loop are integers"):
            ps.for_loop(identity, x, in_axes=True)
        with pytest.raises(ValueError, match="length is the number of steps"):
            ps.for_loop(lambda: x, length=-1)
    assert ps.for_loop(lambda: x, length=1).shape == (1, 2, 3)
    assert ps.for_loop(lambda: x, length=2).shape == (2, 2, 3)
