"""Derivatives of partials that hold states: the partial is the carrier, as a bound module is."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
import pytest

import pstate as ps


Model = dict[str, Any]
X = jnp.array([1.0, 2.0])
WEIGHT = jnp.array([0.5, -1.0])


def model() -> Model:
    return {"calls": ps.State(0), "w": ps.ParamState(WEIGHT)}


def loss(model: Model, x: Any) -> Any:
    model["calls"].value += 1
    return jnp.sum(jnp.sin(model["w"].value * x))


def by_hand(weight: Any, x: Any) -> Any:
    return jnp.sum(jnp.sin(weight * x))


partials = pytest.mark.parametrize("partial", [ft.partial, jtu.Partial], ids=["functools", "jax"])


@partials
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("name", ["grad", "jacfwd", "jacrev", "hessian"])
def test_of_what_the_partial_holds(partial: Any, by_keyword: bool, name: str) -> None:
    """The result is a partial with the derivative where the parameter stands; writes come back."""
    bound = partial(loss, model=model()) if by_keyword else partial(loss, model())
    run = ps.pure(getattr(ps, name)(bound))
    derivative, after = run(x=X) if by_keyword else run(X)
    assert isinstance(derivative, jtu.Partial)
    assert type(after) is partial

    def held(one: Any) -> Any:
        return one.keywords["model"] if by_keyword else one.args[0]

    found = held(derivative)["w"].value
    found = held(found)["w"].value if name == "hessian" else found
    assert jnp.allclose(found, getattr(jax, name)(by_hand)(WEIGHT, X))
    assert held(derivative)["calls"].tag == ()
    assert jax.tree.leaves(held(derivative)["calls"]) == []
    assert held(after)["calls"].value == 1


@partials
def test_value_vjp_and_jvp(partial: Any) -> None:
    """The other three, each against its twin; tangents are given as a partial."""
    bound = partial(loss, model())
    (value, gradient), _ = ps.pure(ps.value_and_grad(bound))(X)
    assert jnp.allclose(value, by_hand(WEIGHT, X))
    assert jnp.allclose(gradient.args[0]["w"].value, jax.grad(by_hand)(WEIGHT, X))

    def both(model: Model) -> Any:
        _, pull_back = ps.vjp(partial(loss, model), X)
        tangents = {"calls": ps.State(), "w": ps.ParamState(jnp.ones(2))}
        _, tangent = ps.jvp(partial(loss, model), (X,), (partial(loss, tangents),))
        return pull_back(jnp.float32(2.0)), tangent

    ((cotangent,), tangent), after = ps.pure(both)(model())
    assert jnp.allclose(cotangent.args[0]["w"].value, 2 * jax.grad(by_hand)(WEIGHT, X))
    assert jnp.allclose(tangent, jax.jvp(by_hand, (WEIGHT, X), (jnp.ones(2), jnp.zeros(2)))[1])
    assert after["calls"].value == 2


@partials
def test_argnums_count_what_the_caller_passes(partial: Any) -> None:
    """As with a bound module, positions do not count what the partial holds."""
    gradient, after = ps.pure(ps.grad(partial(loss, model()), argnums=0))(X)
    assert jnp.allclose(gradient, jax.grad(by_hand, argnums=1)(WEIGHT, X))
    assert after.args[0]["calls"].value == 1


@partials
def test_a_partial_without_states(partial: Any) -> None:
    """A partial that holds no states is no carrier, and argument 0 is differentiated."""
    gradient, _ = ps.pure(ps.grad(partial(loss, x=X)))(model())
    assert jnp.allclose(gradient["w"].value, jax.grad(by_hand)(WEIGHT, X))


@partials
def test_under_other_transforms(partial: Any) -> None:
    """The gradient is a pytree, so that compiled and mapped calls return it."""
    bound = partial(loss, model())
    expected = jax.grad(by_hand)(WEIGHT, X)
    for compiled in (ps.jit(ps.grad(bound)), ps.grad(ps.jit(bound)), ps.grad(ps.checkpoint(bound))):
        gradient, after = ps.pure(compiled)(X)
        assert jnp.allclose(gradient.args[0]["w"].value, expected)
        assert after.args[0]["calls"].value == 1
    per_lane, _ = ps.pure(ps.vmap2(ps.grad(bound)))(jnp.stack([X, 2 * X]))
    each = jax.vmap(jax.grad(by_hand), in_axes=(None, 0))(WEIGHT, jnp.stack([X, 2 * X]))
    assert jnp.allclose(per_lane.args[0]["w"].value, each)

    @eqx.filter_jit
    def step(bound: Any) -> Any:
        return ps.pure(ps.grad(bound))(X)[0]

    assert jnp.allclose(step(bound).args[0]["w"].value, expected)


def test_a_step_of_optax() -> None:
    """Of JAX's own partial the gradient has the structure of what is trained, so Optax takes it."""
    bound = jtu.Partial(loss, model())
    mask = ps.select(bound)
    gradient, bound = ps.pure(ps.grad(bound))(X)
    params = eqx.filter(bound, mask)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    optimiser = optax.sgd(0.5)
    updates, _ = optimiser.update(gradient, optimiser.init(params))
    trained = eqx.apply_updates(bound, updates)
    assert jnp.allclose(trained.args[0]["w"].value, WEIGHT - 0.5 * jax.grad(by_hand)(WEIGHT, X))
    assert trained.args[0]["calls"].value == 1


def test_nested_partials_and_modules() -> None:
    """A partial of a partial, and one of a module that holds parameters itself."""
    scaled = lambda model, scale, x: loss(model, scale * x)
    nested = ft.partial(ft.partial(scaled, model()), 2.0)
    gradient, _ = ps.pure(ps.grad(nested))(X)
    assert jnp.allclose(gradient.args[0]["w"].value, jax.grad(by_hand)(WEIGHT, 2 * X))

    class Scale(eqx.Module):
        scale: jax.Array

        def __call__(self, model: Model, x: Any) -> Any:
            return loss(model, self.scale * x)

    gradient, _ = ps.pure(ps.grad(ft.partial(Scale(jnp.float32(2.0)), model())))(X)
    assert jnp.allclose(gradient.args[0]["w"].value, jax.grad(by_hand)(WEIGHT, 2 * X))
    expected = jax.grad(lambda scale: by_hand(WEIGHT, scale * X))(2.0)
    assert jnp.allclose(gradient.func.scale, expected)


@partials
def test_what_is_refused(partial: Any) -> None:
    """A filter that selects nothing names the partial; tangents that do not fit are shown."""
    with pytest.raises(
        ValueError, match=r"selects no array in the partial, which has `model\['calls'\]`"
    ):
        ps.pure(ps.grad(partial(loss, model()), wrt=ps.BatchState))(X)
    with pytest.raises(ValueError, match=r"The tangents of ps.jvp\(partial\) do not fit"):
        ps.jvp(partial(loss, model()), (X,), (jnp.ones(2),))


def test_a_tracer_in_a_partial_that_is_returned() -> None:
    """A `functools.partial` is no pytree, and one that would leak a tracer is refused."""
    with pytest.raises(TypeError, match="`out` is a partial, which is not a pytree, and holds a tracer"):
        ps.jit(lambda x: ft.partial(print, {"x": x}))(X)
