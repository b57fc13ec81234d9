"""`grad` and related transforms: derivatives of stateful functions.

Results have the argument's tree structure, with `None` where nothing was differentiated.
"""

# pyright: reportOverlappingOverload=false
# Overloads go from what is known exactly to what is not.

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from .._calls.typed import Aux, Bound, F, Module, Out, Q
from .._ground.integers import Positions
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import Filter
from ..filter import Trainable
from .derivative_types import GradOf, GradWithAuxOf, OfAny, OfModule, OfTree, ValueAndGradOf
from .derivatives import Derivative, Grad, Jvp, ValueAndGrad, Vjp, derivative_of


if TYPE_CHECKING:

    @overload
    def grad(
        fn: Bound[Q, tuple[Any, Aux], Module], /, *, has_aux: Literal[True], **options: Unpack[OfModule]
    ) -> Derivative[Q, tuple[Module, Aux], Module]: ...
    @overload
    def grad(
        fn: Bound[Q, Any, Module], /, *, has_aux: Literal[False] = False, **options: Unpack[OfModule]
    ) -> Derivative[Q, Module, Module]: ...
    @overload
    def grad(fn: F, /, *, has_aux: Literal[True], **options: Unpack[OfTree]) -> GradWithAuxOf[F]: ...
    @overload
    def grad(fn: F, /, *, has_aux: Literal[False] = False, **options: Unpack[OfTree]) -> GradOf[F]: ...
    @overload
    def grad(fn: Callable[Q, Any], /, **options: Unpack[OfAny]) -> Derivative[Q, Any]: ...
    @overload
    def grad(
        *, has_aux: Literal[True], **options: Unpack[OfTree]
    ) -> Callable[[F], GradWithAuxOf[F]]: ...
    @overload
    def grad(
        *, has_aux: Literal[False] = False, **options: Unpack[OfTree]
    ) -> Callable[[F], GradOf[F]]: ...
    @overload
    def grad(**options: Unpack[OfAny]) -> Callable[[Callable[Q, Any]], Derivative[Q, Any]]: ...


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

    It is `jax.grad` with respect to the leaves that `wrt` selects in the bound module, or otherwise
    in argument 0. Usable as a decorator, with or without options.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one, that returns an
        array of shape `()`.
    - `wrt`: a filter; which leaves are differentiated. They hold floating-point (or complex) arrays.
    - `argnums`: positional arguments, as the caller counts them, instead of the default. A tuple
        returns a tuple.
    - `has_aux`: whether `fn` returns a pair, `(value, aux)`; `aux` is not differentiated.
    - `holomorphic`: as in `jax.grad`.

    **Returns:** a stateful function, called like `fn`. It returns the gradient, or
    `(gradient, aux)`: the argument's tree, with an array of the same shape and dtype for each
    selected leaf and `None` for every other leaf. Optax and `eqx.apply_updates` take it as it is.
    Writes of `fn` are kept.

    **Raises:** when called: `ValueError` if `wrt` selects nothing; `TypeError` if it selects an
    array that is not floating-point, or if `fn` does not return a scalar; and whatever a call of
    `fn` raises.

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
    return derivative_of(Grad, fn, wrt, argnums, has_aux=has_aux, holomorphic=holomorphic)


if TYPE_CHECKING:

    @overload
    def value_and_grad(
        fn: Bound[Q, Out, Module], /, *, has_aux: bool = False, **options: Unpack[OfModule]
    ) -> Derivative[Q, tuple[Out, Module], Module]: ...
    @overload
    def value_and_grad(
        fn: F, /, *, has_aux: bool = False, **options: Unpack[OfTree]
    ) -> ValueAndGradOf[F]: ...
    @overload
    def value_and_grad(
        fn: Callable[Q, Out], /, **options: Unpack[OfAny]
    ) -> Derivative[Q, tuple[Out, Any]]: ...
    @overload
    def value_and_grad(
        *, has_aux: bool = False, **options: Unpack[OfTree]
    ) -> Callable[[F], ValueAndGradOf[F]]: ...
    @overload
    def value_and_grad(
        **options: Unpack[OfAny],
    ) -> Callable[[Callable[Q, Out]], Derivative[Q, tuple[Out, Any]]]: ...


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
    return derivative_of(ValueAndGrad, fn, wrt, argnums, has_aux=has_aux, holomorphic=holomorphic)


if TYPE_CHECKING:

    @overload
    def vjp(
        fn: Callable[..., Out],
        *primals: Any,
        wrt: Filter = Trainable,
        argnums: Positions | None = None,
        has_aux: Literal[False] = False,
    ) -> tuple[Out, Callable[[Any], tuple[Any, ...]]]: ...
    @overload
    def vjp(
        fn: Callable[..., tuple[Out, Aux]],
        *primals: Any,
        wrt: Filter = Trainable,
        argnums: Positions | None = None,
        has_aux: Literal[True],
    ) -> tuple[Out, Callable[[Any], tuple[Any, ...]], Aux]: ...


@public
@short_tracebacks
def vjp(
    fn: Callable[..., Any],
    *primals: Any,
    wrt: Filter = Trainable,
    argnums: Positions | None = None,
    has_aux: bool = False,
) -> Any:
    """Run a stateful function, and return the function from output cotangents to input cotangents.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `primals`: its arguments.
    - `wrt`, `argnums`, `has_aux`: as for `grad`.

    **Returns:** `(out, pull_back)`, or `(out, pull_back, aux)`. `pull_back(cotangents)` takes the
    output's tree and returns a tuple, as in JAX: a tree for the bound module or argument 0, or one for
    each of `argnums`, with `None` for every leaf that was not selected. `pull_back` is a pytree.

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
    return derivative_of(Vjp, fn, wrt, argnums, has_aux=has_aux, holomorphic=False)(*primals)


if TYPE_CHECKING:

    @overload
    def jvp(
        fn: Callable[..., Out],
        primals: Sequence[Any],
        tangents: Sequence[Any],
        *,
        wrt: Filter = Trainable,
        argnums: Positions | None = None,
        has_aux: Literal[False] = False,
    ) -> tuple[Out, Out]: ...
    @overload
    def jvp(
        fn: Callable[..., tuple[Out, Aux]],
        primals: Sequence[Any],
        tangents: Sequence[Any],
        *,
        wrt: Filter = Trainable,
        argnums: Positions | None = None,
        has_aux: Literal[True],
    ) -> tuple[Out, Out, Aux]: ...


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
    return derivative_of(Jvp, fn, wrt, argnums, **options)(*primals)


Derivative.makers.update(grad=grad, value_and_grad=value_and_grad)
