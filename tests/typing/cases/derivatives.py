"""`grad` and the others: with respect to the carrier they have its type."""

from typing import reveal_type

import jax.numpy as jnp
from jax import Array
from models import Norm, energy, loss, loss_and_aux, m, of_arrays, of_dict, special, x

import pstate as ps


reveal_type(ps.grad(loss))  # is: GradOf[(model: Norm, x: Array) -> Array]
reveal_type(ps.grad(energy)(m, x))  # is: Norm
reveal_type(ps.pure(ps.grad(loss))(m, x))  # is: tuple[Norm, Norm]
reveal_type(ps.pure(ps.grad(loss_and_aux, has_aux=True))(m, x))  # is: tuple[tuple[Norm, dict[str, Array]], Norm]
reveal_type(ps.pure(ps.value_and_grad(loss))(m, x))  # is: tuple[tuple[Array, Norm], Norm]
reveal_type(ps.pure(ps.jit(ps.value_and_grad(loss)))(m, x))  # is: tuple[tuple[Array, Norm], Norm]
(value, gradient), model = ps.pure(ps.jit(ps.value_and_grad(loss, wrt=ps.ParamState)))(m, x)
reveal_type(value)  # is: Array
reveal_type(gradient)  # is: Norm
with_aux = ps.value_and_grad(loss_and_aux, has_aux=True)
reveal_type(ps.pure(with_aux)(m, x))  # is: tuple[tuple[tuple[Array, dict[str, Array]], Norm], Norm]

# Of other arguments, and of what may be a bound method, it is not known.
reveal_type(ps.pure(ps.value_and_grad(loss, argnums=0))(m, x))  # is: tuple[tuple[Array, Norm], Norm]
reveal_type(ps.pure(ps.value_and_grad(loss, argnums=1))(m, x))  # is: tuple[tuple[Array, Any], Norm]
reveal_type(ps.grad(of_arrays)(x, x))  # is: Any
reveal_type(ps.value_and_grad(of_arrays, argnums=(0, 1))(x, x))  # is: tuple[Array, Any]
reveal_type(ps.pure(ps.value_and_grad(m.loss))(x))  # is: tuple[tuple[Array, Any], Any]
reveal_type(ps.pure(ps.value_and_grad(m.loss))(x=x))  # is: tuple[tuple[Array, Any], Any]
reveal_type(ps.value_and_grad(lambda y: jnp.sum(y**2))(x))  # is: tuple[Array, Any]
reveal_type(ps.grad(lambda y: jnp.sum(y**2))(x))  # is: Any

# Modules and decorated methods.
reveal_type(ps.pure(ps.jit(ps.value_and_grad(Norm.loss)))(m, x))  # is: tuple[tuple[Array, Norm], Norm]
reveal_type(ps.pure(m.slope)(x))  # is: tuple[tuple[Array, Norm], Norm]
reveal_type(ps.pure(special.slope)(x))  # is: tuple[tuple[Array, Special], Special]


@ps.value_and_grad(wrt=ps.ParamState)
def slope(model: Norm, y: Array) -> Array:
    return model.loss(y)


@ps.grad(has_aux=True)
def slope_with_aux(model: Norm, y: Array) -> tuple[Array, dict[str, Array]]:
    return model.loss_and_aux(y)


@ps.grad(argnums=1)
def slope_of_other(model: Norm, y: Array) -> Array:
    return model.loss(y)


reveal_type(ps.pure(slope)(m, x))  # is: tuple[tuple[Array, Norm], Norm]
reveal_type(ps.pure(slope_with_aux)(m, x))  # is: tuple[tuple[Norm, dict[str, Array]], Norm]
reveal_type(ps.pure(slope_of_other)(m, x))  # is: tuple[Any, Norm]


class Scaled(Norm):
    """A module whose call is a scalar."""

    def __call__(self, x: Array) -> Array:
        return jnp.sum(x * self.weight.value)


scaled = Scaled(m.weight, m.scale, m.calls)
reveal_type(ps.grad(scaled)(x))  # is: Scaled
reveal_type(ps.pure(ps.value_and_grad(scaled))(x))  # is: tuple[tuple[Array, Scaled], Scaled]

# Jacobians of functions that return one array.
reveal_type(ps.jacfwd(energy)(m, x))  # is: Norm
reveal_type(ps.pure(ps.jacrev(loss))(m, x))  # is: tuple[Norm, Norm]
reveal_type(ps.jacrev(scaled)(x))  # is: Scaled
reveal_type(ps.jacrev(lambda y: y**2)(x))  # is: Any
reveal_type(ps.pure(ps.jacfwd(loss_and_aux, has_aux=True))(m, x))  # is: tuple[Any, Norm]
reveal_type(ps.pure(ps.hessian(loss))(m, x))  # is: tuple[Any, Norm]

# `vjp` and `jvp`.
out, pull_back = ps.vjp(of_arrays, x, x)
reveal_type(out)  # is: Array
reveal_type(pull_back(out))  # is: tuple[Any, ...]
reveal_type(ps.jvp(of_arrays, (x, x), (x,)))  # is: tuple[Array, Array]
tree = {"w": ps.ParamState(1.0), "n": ps.State(0)}
reveal_type(ps.pure(of_dict)(tree, x))  # is: tuple[Array, dict[str, State[Array]]]
