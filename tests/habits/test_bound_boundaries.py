"""`pure` of a bound module inside a loop: it would start from the same module on each step."""

import functools as ft
import re

import equinox as eqx
import jax.numpy as jnp
import pytest

import pstate as ps


class Rnn(eqx.Module):
    hidden: ps.HiddenState

    def __call__(self, x):
        self.hidden.value = self.hidden.value + x
        return self.hidden.value


def rnn():
    return Rnn(ps.HiddenState(jnp.zeros(())))


XS = jnp.arange(4.0)

LOOPS = {
    "for_loop": lambda f: ps.for_loop(f, XS),
    "scan": lambda f: ps.scan(f, 0.0, XS),
    "while_loop": lambda f: ps.while_loop(lambda c: c < 3, f, 0.0),
    "condition": lambda f: ps.while_loop(f, lambda c: c + 1, 0.0),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(
    "bind",
    [lambda m: m, lambda m: m.__call__, lambda m: ft.partial(Rnn.__call__, m), lambda m: ps.jit(m)],
    ids=["module", "method", "partial", "transform"],
)
def test_a_bound_boundary_is_refused_in_a_loop(loop, bind):
    """Each loop refuses `pure` of something bound, before anything runs."""
    with pytest.raises(TypeError, match="nothing would go from one call to the next"):
        loop(ps.pure(bind(rnn())))


def test_the_message():
    """The advised line threads the state."""
    line = "out, rnn = ps.pure(lambda rnn: ps.for_loop(rnn, ...))(rnn)"
    with pytest.raises(TypeError, match=re.escape(line)):
        ps.for_loop(ps.pure(rnn()), XS)
    names = {"ps": ps, "rnn": rnn(), "XS": XS}
    exec(line.replace("...", "XS"), names)
    assert names["out"].tolist() == [0.0, 1.0, 3.0, 6.0]
    assert names["rnn"].hidden.value == 6.0


def test_an_unbound_boundary_threads_its_carry():
    """`pure` of a function gets its tree on each step, and a branch is called once: both are fine."""
    step = lambda model, x: (ps.pure(Rnn.__call__)(model, x)[1], None)
    model, _ = ps.scan(step, rnn(), XS)
    assert model.hidden.value == 6.0
    out, model = ps.cond(True, ps.pure(rnn()), ps.pure(rnn()), 2.0)
    assert (out, model.hidden.value) == (2.0, 2.0)
