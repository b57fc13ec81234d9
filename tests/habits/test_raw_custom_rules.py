"""Rules by JAX's and Equinox's `custom_vjp` and `custom_jvp` thread no states: a write is refused."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


def write(model: Any, x: Any) -> Any:
    model["n"].value += 1.0
    return jnp.sum(x * x)


def jax_vjp(model: Any, x: Any) -> Any:
    f = jax.custom_vjp(lambda x: write(model, x))
    f.defvjp(lambda x: (write(model, x), x), lambda x, ct: (2 * x * ct,))
    return f(x)


def jax_vjp_of_the_tree(model: Any, x: Any) -> Any:
    f = jax.custom_vjp(write)
    f.defvjp(lambda model, x: (write(model, x), x), lambda x, ct: (None, 2 * x * ct))
    return f(model, x)


def jax_jvp(model: Any, x: Any) -> Any:
    f = jax.custom_jvp(lambda x: write(model, x))
    f.defjvp(lambda x, t: (write(model, x[0]), 2 * jnp.sum(x[0] * t[0])))
    return f(x)


def eqx_vjp(model: Any, x: Any) -> Any:
    f = eqx.filter_custom_vjp(lambda x: write(model, x))
    f.def_fwd(lambda perturbed, x: (write(model, x), None))
    f.def_bwd(lambda residuals, ct, perturbed, x: 2 * x * ct)
    return f(x)


RAW = {
    "jax.custom_vjp": (jax_vjp, jax_vjp_of_the_tree),
    "jax.custom_jvp": (jax_jvp,),
    "eqx.filter_custom_vjp": (eqx_vjp,),
}
each = pytest.mark.parametrize(
    ("name", "function"), [(name, f) for name, functions in RAW.items() for f in functions]
)


def model() -> dict[str, Any]:
    return {"n": ps.State(1.0)}


@each
@pytest.mark.parametrize(
    "wrap",
    [ps.jit, lambda f: ps.grad(f, argnums=1), ps.checkpoint, lambda f: ps.jit(ps.grad(f, argnums=1))],
    ids=["jit", "grad", "checkpoint", "jit of grad"],
)
def test_refused(name: str, function: Callable[..., Any], wrap: Callable[..., Any]) -> None:
    """Under a trace a write in the function, and in its rule, is refused, and ours is named."""
    given = model()
    counterpart = "custom_jvp" if "jvp" in name else "custom_vjp"
    message = rf"{name} (runs|made it for) `(write|f|<lambda>)`(.|\n)*f = ps\.{counterpart}\(f\)"
    with pytest.raises((ps.TraceScopeError, ps.FrozenStateError), match=message):
        ps.pure(wrap(function))(given, jnp.ones(2))
    assert given["n"].value == 1


def test_the_advice() -> None:
    """What the message advises runs."""

    def run(model: Any, x: Any) -> Any:
        f = ps.custom_vjp(write)
        fwd = lambda model, x: (write(model, x), x)
        f.defvjp(fwd, lambda x, ct, written: ({"n": written[0]["n"]}, 2 * x * ct))
        return f(model, x)

    gradient, after = ps.pure(ps.jit(ps.grad(run, argnums=1)))(model(), jnp.ones(2))
    assert jnp.array_equal(gradient, 2 * jnp.ones(2))
    assert after["n"].value == 2


def test_of_arrays_alone() -> None:
    """A raw rule of a function of arrays is fine in a stateful function."""

    @jax.custom_vjp
    def square(x: Any) -> Any:
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, ct: (20 * x * ct,))

    def run(model: Any, x: Any) -> Any:
        model["n"].value = square(x)
        return square(model["n"].value)

    gradient, after = ps.pure(ps.jit(ps.grad(run, argnums=1)))(model(), 1.0)
    assert (gradient, after["n"].value) == (400, 1)
