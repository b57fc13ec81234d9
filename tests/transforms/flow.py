"""A model that the tests of loops and branches share, steps of it, and loops over them."""

import functools as ft
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import pstate as ps


XS = jnp.arange(1.0, 4.0)


class Model(eqx.Module):
    """A total that is written, a factor that is read, a key that is drawn from, and configuration."""

    total: ps.ShortTermState
    factor: ps.ParamState
    rng: ps.RandomState
    activation: Callable[[Any], Any] = jnp.tanh
    inference: bool = False

    def add(self, x):
        self.total.value = self.total.value + self.factor.value * x
        return 2 * self.total.value

    def carry(self, carry, x):
        return carry + 1, self.add(x)

    def advance(self, i):
        self.add(i)
        return i + 1.0

    def below(self, i):
        return (i < 4) & (self.total.value < 100)

    def __call__(self, x):
        return self.add(x)


def model(total=0.0) -> Model:
    return Model(ps.ShortTermState(total), ps.ParamState(3.0), ps.RandomState(0))


def add(model, x):
    return model.add(x)


def carry(model, carry, x):
    return model.carry(carry, x)


def advance(model, i):
    return model.advance(i)


def below(model, i):
    return model.below(i)


def leave(model, x):
    return x


def same(got, expected):
    """Equal trees of equal types."""
    got_leaves, got_treedef = jax.tree.flatten(got)
    leaves, treedef = jax.tree.flatten(expected)
    assert got_treedef == treedef
    for a, b in zip(got_leaves, leaves, strict=True):
        if not eqx.is_array(b):
            assert a is b or a == b
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = (jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_allclose(np.asarray(a, np.complex128), np.asarray(b, np.complex128), rtol=1e-6)


def advised(error: Any, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run the last indented line of a message."""
    (*_, line) = re.findall(r"^ {4}(.*)$", str(error.value), re.MULTILINE)
    namespace = {"ps": ps, "ft": ft, "jnp": jnp, "eqx": eqx, **namespace}
    exec(line, namespace)  # the line is what is under test
    return namespace


def stays(x):
    return x


def draws_by_hand(key: Any, n: int) -> tuple[list[Any], Any]:
    ys = []
    for _ in range(n):
        key, own = jr.split(key)
        ys.append(jr.normal(own))
    return ys, key


def draw_in_a_loop(m, x):
    return x + ps.for_loop(m.rng.normal, length=3)


UNDRAWN = {
    "for_loop": lambda m, x: ps.for_loop(ft.partial(lambda m, x: m.activation(x), m), x * XS),
    "scan": lambda m, x: ps.scan(ft.partial(lambda m, c, x: (c, m.factor.value * x), m), 0, x * XS),
    "while_loop": lambda m, x: ps.while_loop(m.below, ft.partial(lambda m, i: i + 1, m), x),
    "same branch": lambda m, x: ps.cond(True, leave, leave, m, x),
    "nested": lambda m, x: ps.for_loop(
        ft.partial(lambda m, i: ps.while_loop(m.below, lambda i: i + 1, i), m), x * XS
    ),
}
