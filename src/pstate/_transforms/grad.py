"""`grad` and its kin: derivatives of stateful functions.

Results have the argument's tree, with `None` where nothing was differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._ground.integers import Positions, as_argnums
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import Filter
from ..filter import Trainable, to_predicate
from .derivatives import Derivative, Grad, Jacobian, Jvp, ValueAndGrad, Vjp


def _derivative(
    cls: type[Derivative], fn: Any, wrt: Filter, argnums: Positions | None, **options: Any
) -> Any:
    """The derivative of `fn`, or a decorator where there is no `fn` yet."""
    chosen = to_predicate(wrt)
    numbers = as_argnums(argnums)
    make = lambda fn: cls(fn, wrt=chosen, argnums=numbers, **options)
    return make if fn is None else make(fn)


@public
def grad(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Any:
    """The gradient of a stateful function of a scalar.

    As `jax.grad`, with respect to the leaves that `wrt` selects in the bound module, or else in argument
    0. Usable as a decorator, with options and without.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one, that returns an
        array of shape `()`.
    - `wrt`: a filter; which leaves are differentiated. They hold floating-point (or complex) arrays.
    - `argnums`: positional arguments, as the caller counts them, in the place of the default. A tuple
        gives a tuple.
    - `has_aux`: whether `fn` returns a pair, `(value, aux)`; what `aux` holds is not differentiated.
    - `holomorphic`: as in `jax.grad`.

    **Returns:** a stateful function, called like `fn`. It returns the gradient, or `(gradient, aux)`:
    the argument's tree, with an array of the same shape and dtype for each leaf that was selected and
    `None` for every other leaf. Optax and `eqx.apply_updates` take it as it is. What `fn` writes is
    written.

    **Raises:** when called: `ValueError` where `wrt` selects nothing; `TypeError` where it selects an
    array that is not floating-point, or where `fn` returns no scalar; and what a call of `fn` raises.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def loss(model, x):
        ...     model["calls"].value += 1
        ...     return jnp.sum(model["w"].value * x**2)
        >>> model = {"w": ps.ParamState(jnp.ones(2)), "calls": ps.State(0)}
        >>> gradient, model = ps.pure(ps.grad(loss))(model, jnp.array([1.0, 2.0]))
        >>> gradient["w"].value, gradient["calls"], model["calls"].value.item()
        (Array([1., 4.], dtype=float32), State(), 1)
    """
    return _derivative(Grad, fn, wrt, argnums, has_aux=has_aux, holomorphic=holomorphic)


@public
def value_and_grad(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Any:
    """The value of a stateful function of a scalar, and its gradient.

    **Arguments:** those of `grad`.

    **Returns:** a stateful function, called like `fn`, that returns `(value, gradient)`, or
    `((value, aux), gradient)`.

    **Raises:** as `grad`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> loss = lambda model, x: jnp.sum(model["w"].value * x)
        >>> value, gradient = ps.value_and_grad(loss)({"w": ps.ParamState(2.0)}, jnp.ones(3))
        >>> value.item(), gradient["w"].value.item()
        (6.0, 3.0)
    """
    return _derivative(ValueAndGrad, fn, wrt, argnums, has_aux=has_aux, holomorphic=holomorphic)


@public
def jacfwd(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Any:
    """The Jacobian of a stateful function, in forward mode: for few inputs.

    **Arguments:** those of `grad`; `fn` returns arrays of any shape.

    **Returns:** a stateful function, called like `fn`. It returns the output's tree, with, for each
    leaf, the argument's tree of derivatives: of shape `leaf.shape + input.shape`, and `None` for every
    input that was not selected. With `has_aux`, `(jacobian, aux)`.

    **Raises:** as `grad`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> scale = lambda model: jnp.arange(2.0) * model["w"].value
        >>> ps.jacfwd(scale)({"w": ps.ParamState(3.0)})["w"].value
        Array([0., 1.], dtype=float32)
    """
    options = {"has_aux": has_aux, "holomorphic": holomorphic, "jacobian": jax.jacfwd}
    return _derivative(Jacobian, fn, wrt, argnums, **options)


@public
def jacrev(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Any:
    """The Jacobian of a stateful function, in reverse mode: for few outputs.

    **Arguments:** those of `grad`; `fn` returns arrays of any shape.

    **Returns:** as `jacfwd`.

    **Raises:** as `grad`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> ps.jacrev(lambda x: x**2)(jnp.array([1.0, 2.0]))
        Array([[2., 0.],
               [0., 4.]], dtype=float32)
    """
    options = {"has_aux": has_aux, "holomorphic": holomorphic, "jacobian": jax.jacrev}
    return _derivative(Jacobian, fn, wrt, argnums, **options)


@public
def hessian(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Any:
    """The matrix of second derivatives of a stateful function.

    **Arguments:** those of `grad`; `fn` returns arrays of any shape.

    **Returns:** a stateful function, called like `fn`. It returns the output's tree, with, for each
    leaf, the argument's tree of the argument's trees of derivatives: of shape
    `leaf.shape + input.shape + input.shape`. With `has_aux`, `(hessian, aux)`.

    **Raises:** as `grad`.

    !!! example

        >>> import pstate as ps
        >>> second = ps.hessian(lambda model: model["w"].value ** 3)({"w": ps.ParamState(2.0)})
        >>> second["w"].value["w"].value.item()
        12.0
    """
    options = {"has_aux": has_aux, "holomorphic": holomorphic, "jacobian": jax.hessian}
    return _derivative(Jacobian, fn, wrt, argnums, **options)


@public
@short_tracebacks
def vjp(
    fn: Callable[..., Any],
    *primals: Any,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
) -> Any:
    """Run a stateful function, and give the function from cotangents of its output to those of inputs.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `primals`: its arguments.
    - `wrt`, `argnums`, `has_aux`: as for `grad`.

    **Returns:** `(out, pull_back)`, or `(out, pull_back, aux)`. `pull_back(cotangents)` takes the
    output's tree and returns a tuple, as in JAX: a tree for the bound module or argument 0, or one for
    each of `argnums`, with `None` for every leaf that was not selected. It is a pytree.

    **Raises:** as `grad`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> model = {"w": ps.ParamState(jnp.array([1.0, 2.0]))}
        >>> out, pull_back = ps.vjp(lambda model, x: model["w"].value * x, model, 3.0)
        >>> (cotangent,) = pull_back(jnp.ones(2))
        >>> cotangent["w"].value
        Array([3., 3.], dtype=float32)
    """
    return _derivative(Vjp, fn, wrt, argnums, has_aux=has_aux, holomorphic=False)(*primals)


@public
@short_tracebacks
def jvp(
    fn: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
) -> Any:
    """Run a stateful function, and take the derivative of its output along a direction.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `primals`: its arguments, a tuple or list.
    - `tangents`: a tuple or list with a tree for the bound module or argument 0, or one for each of
        `argnums`: arrays of the same shapes and dtypes, and `None` for every leaf that is not selected.
    - `wrt`, `argnums`, `has_aux`: as for `grad`.

    **Returns:** `(out, tangent)`, or `(out, tangent, aux)`; the tangent has the output's tree.

    **Raises:** as `grad`; `ValueError` for tangents that do not fit.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> out, tangent = ps.jvp(lambda x: x**2, (jnp.array(3.0),), (jnp.array(1.0),))
        >>> out.item(), tangent.item()
        (9.0, 6.0)
    """
    options = {"has_aux": has_aux, "holomorphic": False, "tangents": tuple(tangents)}
    return _derivative(Jvp, fn, wrt, argnums, **options)(*primals)


Derivative.makers.update(
    grad=grad, value_and_grad=value_and_grad, jacfwd=jacfwd, jacrev=jacrev, hessian=hessian
)
