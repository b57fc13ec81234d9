"""One state at two places of a tree: written or differentiated it is refused, wherever that happens."""

import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


def add_one(tree):
    tree["a"].value += 1.0


def through_pure(tree):
    """A body that runs a boundary of its own and goes on with the tree that comes back."""
    _, tree = ps.pure(add_one)(tree)
    return tree["a"].value + tree["b"].value


def tied():
    state = ps.State(jnp.zeros(()))
    return {"a": state, "b": state}


LIFTED = {
    "plain": lambda f: f,
    "jit": ps.jit,
    "checkpoint": ps.checkpoint,
    "grad": lambda f: ps.grad(f, wrt=lambda path, leaf: path == ("a",)),
    "while_loop": lambda f: (
        lambda tree: ps.while_loop(
            lambda c: c < 2.0, lambda c: jnp.asarray(3.0) + 0 * ft.partial(f, tree)(), jnp.zeros(())
        )
    ),
    "cond": lambda f: lambda tree: ps.cond(True, f, f, tree),
    "lane": lambda f: ps.vmap2(f, in_axes=None, axis_size=2).lane(0),
}


@pytest.mark.parametrize("lift", LIFTED.values(), ids=LIFTED)
def test_a_boundary_inside_sees_the_alias(lift):
    """`pure` inside a lifted body refuses the write that it refuses outside, and changes nothing."""
    tree = tied()
    with pytest.raises(ps.AliasedStateError, match="are one state object at two places"):
        lift(through_pure)(tree)
    assert tree["a"] is tree["b"]
    assert tree["a"].value == 0.0


@pytest.mark.parametrize("lift", [LIFTED[n] for n in ("plain", "jit", "checkpoint", "cond")])
def test_in_a_recording(lift):
    """The same for a tree that is live already."""
    with ps.record(tied()) as live, pytest.raises(ps.AliasedStateError, match="one state object"):
        lift(through_pure)(live)


def test_reading_is_allowed():
    """An alias that nobody writes hurts nobody."""
    both = lambda tree: ps.pure(lambda tree: tree["a"].value + tree["b"].value)(tree)[0]
    assert ps.jit(both)(tied()) == 0.0
    assert ps.grad(both, wrt=lambda path, leaf: path == ("a",))(tied())["a"].value == 1.0


class Tied(eqx.Module):
    embed: ps.ParamState
    head: ps.ParamState

    def __init__(self):
        self.embed = self.head = ps.ParamState(jnp.full((2,), 3.0))

    def __call__(self, x):
        return jnp.sum(self.embed.value * x * self.head.value)


DERIVATIVES = {
    "grad": lambda model, x: ps.grad(model)(x),
    "value_and_grad": lambda model, x: ps.value_and_grad(lambda m, x: m(x))(model, x),
    "jacfwd": lambda model, x: ps.jacfwd(model)(x),
    "jacrev": lambda model, x: ps.jacrev(model)(x),
    "hessian": lambda model, x: ps.hessian(model)(x),
    "vjp": lambda model, x: ps.vjp(model, x),
    "jvp": lambda model, x: ps.jvp(model, (x,), (model,)),
    "in jit": lambda model, x: ps.jit(lambda m, x: ps.grad(m)(x))(model, x),
}


@pytest.mark.parametrize("derive", DERIVATIVES.values(), ids=DERIVATIVES)
def test_tied_parameters_are_not_untied(derive):
    """A derivative with respect to one parameter at two places is refused, with the way to tie it."""
    message = re.escape("an update would make two states of it") + ".*" + re.escape("eqx.nn.Shared")
    with pytest.raises(ps.AliasedStateError, match=message):
        derive(Tied(), jnp.ones(2))


def test_the_advice_on_tied_parameters():
    """Tied by `eqx.nn.Shared` there is one parameter, with the gradient of both places."""
    shared = eqx.nn.Shared(Tied(), lambda m: m.head, lambda m: m.embed)
    x = jnp.ones(2)
    gradient = ps.grad(lambda shared, x: shared()(x))(shared, x)
    expected = jax.grad(lambda w: jnp.sum(w * x * w))(jnp.full((2,), 3.0))
    assert (gradient.pytree.embed.value == expected).all()
    updated = eqx.apply_updates(shared, gradient)()
    assert (updated.embed.value == updated.head.value).all()


def test_one_of_the_two_may_be_chosen():
    """A filter that selects one place asks for that derivative alone."""
    wrt = lambda path, leaf: path == ("embed",)
    assert (ps.grad(Tied(), wrt=wrt)(jnp.ones(2)).embed.value == 3.0).all()
