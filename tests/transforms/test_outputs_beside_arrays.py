"""Derivatives of functions whose output, or auxiliary output, holds non-arrays."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


Model = dict[str, Any]
X = jnp.array([1.0, 2.0])


class Layer(eqx.Module):
    weight: jax.Array
    activation: Any = jnp.tanh
    size: int = 3


def model() -> Model:
    return {"calls": ps.State(0), "w": ps.ParamState(jnp.ones(2))}


BESIDE: dict[str, Any] = {
    "a string": "name",
    "a function": jnp.sin,
    "nothing": None,
    "a class": int,
    "a module": Layer(jnp.ones(2)),
    "a container": {"a": "b", "c": jnp.ones(2), "d": (None, jnp.cos)},
    "a state": ps.State(jnp.ones(2)),
}

every = pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)


def returning(beside: Any) -> Any:
    def function(model: Model, x: Any) -> Any:
        model["calls"].value += 1
        return jnp.sum(model["w"].value * x**2), beside

    return function


def with_compiled(derivative: Any, beside: Any) -> list[Any]:
    # Compiled, a state that was made outside would be a capture.
    return [derivative] if isinstance(beside, ps.State) else [derivative, ps.jit(derivative)]


def equal(a: Any, b: Any) -> bool:
    return bool(eqx.tree_equal(a, b))


@every
@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev", "hessian"])
def test_auxiliary(name: str, beside: Any) -> None:
    """What is auxiliary comes back as it is, whatever it is, eagerly and compiled."""
    derivative = getattr(ps, name)(returning(beside), has_aux=True)
    for run in with_compiled(derivative, beside):
        result, after = ps.pure(run)(model(), X)
        aux = result[0][1] if name == "value_and_grad" else result[1]
        assert equal(aux, beside)
        assert after["calls"].value == 1


@every
def test_auxiliary_of_statements(beside: Any) -> None:
    """The same of `vjp` and `jvp`."""
    tangents = {"calls": ps.State(), "w": ps.ParamState(jnp.ones(2))}
    function = returning(beside)
    (_, _, aux), _ = ps.pure(lambda m: ps.vjp(function, m, X, has_aux=True))(model())
    assert equal(aux, beside)
    (_, _, aux), _ = ps.pure(lambda m: ps.jvp(function, (m, X), (tangents,), has_aux=True))(model())
    assert equal(aux, beside)


@every
@pytest.mark.parametrize("name", ["grad", "value_and_grad"])
def test_of_a_number_alone(name: str, beside: Any) -> None:
    """`grad` differentiates one number; what stands beside it is refused, and the advice runs."""
    fixed = rf"auxiliary: ps.{name}\(function, has_aux=True\)\."
    with pytest.raises(TypeError, match=fixed):
        ps.pure(getattr(ps, name)(returning(beside)))(model(), X)
    with pytest.raises(TypeError, match=r"the function returned 'a string'. Return the number"):
        ps.pure(getattr(ps, name)(lambda model, x: "a string"))(model(), X)


@every
@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "hessian"])
def test_jacobians(name: str, beside: Any) -> None:
    """Non-arrays have no derivative, and `None` instead."""
    derivative = getattr(ps, name)(returning(beside))
    for run in with_compiled(derivative, beside):
        (of_number, of_beside), after = ps.pure(run)(model(), X)
        alone, _ = ps.pure(getattr(ps, name)(lambda m, x: returning(None)(m, x)[0]))(model(), X)
        assert equal(of_number, alone)
        assert after["calls"].value == 1
        kept = jax.tree.map(lambda x: x if eqx.is_array(x) else None, beside)
        is_one = lambda x: isinstance(x, dict) and "w" in x
        assert jax.tree.structure(of_beside, is_leaf=is_one) == jax.tree.structure(kept)


@every
def test_vjp(beside: Any) -> None:
    """`vjp` gives the whole output; cotangents are `None` where it has no array, as in Equinox."""
    function = returning(beside)
    (out, pull_back), _ = ps.pure(lambda m: ps.vjp(function, m, X))(model())
    assert equal(out[1], beside)
    cotangents = jax.tree.map(lambda x: jnp.ones_like(x) if eqx.is_array(x) else None, out)
    (found,) = pull_back(cotangents)
    assert jnp.array_equal(found["w"].value, X**2)
    _, twin = eqx.filter_vjp(
        lambda w: (jnp.sum(w * X**2), eqx.filter(beside, eqx.is_array)), jnp.ones(2)
    )
    assert jnp.array_equal(found["w"].value, twin(cotangents)[0])


@every
def test_jvp(beside: Any) -> None:
    """`jvp` gives the whole output, and a tangent with `None` where it has no array."""
    tangents = {"calls": ps.State(), "w": ps.ParamState(jnp.ones(2))}
    function = returning(beside)
    (out, tangent), _ = ps.pure(lambda m: ps.jvp(function, (m, X), (tangents,)))(model())
    assert equal(out[1], beside)
    assert jnp.array_equal(tangent[0], jnp.sum(X**2))
    kept = jax.tree.map(lambda x: x if eqx.is_array(x) else None, beside)
    assert jax.tree.structure(tangent[1]) == jax.tree.structure(kept)
    assert all(not leaf.any() for leaf in jax.tree.leaves(tangent[1]))


def test_a_tracer_in_what_is_no_array() -> None:
    """A function of the output that closed over a tracer would leak it, and is refused."""

    def holding(model: Model) -> Any:
        weight = model["w"].value
        return weight, lambda: weight

    with pytest.raises(TypeError, match=r"`out\[1\]` is a function, which is not a pytree, and holds a"):
        ps.pure(ps.jacfwd(holding))(model())


def test_a_number_that_comes_out_of_a_checkpoint() -> None:
    """A Python number that a checkpointed function returns or writes is an array afterwards."""

    def function(model: Model, x: Any) -> Any:
        model["calls"].value = x
        return x, 2.5

    out, after = ps.pure(ps.checkpoint(function))(model(), 1)
    assert [type(x).__name__ for x in out] == ["ArrayImpl", "ArrayImpl"]
    assert (out[0].item(), out[1].item(), after["calls"].value.item()) == (1, 2.5, 1)
