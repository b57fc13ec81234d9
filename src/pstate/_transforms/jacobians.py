"""`jacfwd`, `jacrev` and `hessian`: derivatives of stateful functions of any output.

Results have the output's tree, with the argument's tree of derivatives for each leaf.
"""

# pyright: reportOverlappingOverload=false
# Overloads go from what is known exactly to what is not.

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import jax
from jax import Array

from .._calls.typed import Bound, F, Module, Q
from .._ground.integers import Positions
from .._ground.public import public
from .._ground.typing import Filter
from ..filter import Trainable
from .derivative_types import JacobianOf, OfAny, OfModule, OfTree
from .derivatives import Derivative, Jacobian, derivative_of


if TYPE_CHECKING:

    @overload
    def jacfwd(
        fn: Bound[Q, Array, Module], /, *, has_aux: Literal[False] = False, **options: Unpack[OfModule]
    ) -> Derivative[Q, Module, Module]: ...
    @overload
    def jacfwd(fn: Bound[Q, Any, Module], /, **options: Unpack[OfAny]) -> Derivative[Q, Any, Module]: ...
    @overload
    def jacfwd(
        fn: F, /, *, has_aux: Literal[False] = False, **options: Unpack[OfTree]
    ) -> JacobianOf[F]: ...
    @overload
    def jacfwd(fn: Callable[Q, Any], /, **options: Unpack[OfAny]) -> Derivative[Q, Any]: ...
    @overload
    def jacfwd(
        *, has_aux: Literal[False] = False, **options: Unpack[OfTree]
    ) -> Callable[[F], JacobianOf[F]]: ...
    @overload
    def jacfwd(**options: Unpack[OfAny]) -> Callable[[Callable[Q, Any]], Derivative[Q, Any]]: ...


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

    **Returns:** a stateful function, called like `fn`. It returns the output's tree; each leaf is
    replaced by the argument's tree of derivatives, of shape `leaf.shape + input.shape`, with `None`
    for every input that was not selected. With `has_aux` it returns `(jacobian, aux)`.

    **Raises:** as `grad`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> scale = lambda model: jnp.arange(2.0) * model["w"].value
        >>> ps.jacfwd(scale)({"w": ps.ParamState(3.0)})["w"].value
        Array([0., 1.], dtype=float32)
    """
    options = {"has_aux": has_aux, "holomorphic": holomorphic, "jacobian": jax.jacfwd}
    return derivative_of(Jacobian, fn, wrt, argnums, **options)


if TYPE_CHECKING:

    @overload
    def jacrev(
        fn: Bound[Q, Array, Module], /, *, has_aux: Literal[False] = False, **options: Unpack[OfModule]
    ) -> Derivative[Q, Module, Module]: ...
    @overload
    def jacrev(fn: Bound[Q, Any, Module], /, **options: Unpack[OfAny]) -> Derivative[Q, Any, Module]: ...
    @overload
    def jacrev(
        fn: F, /, *, has_aux: Literal[False] = False, **options: Unpack[OfTree]
    ) -> JacobianOf[F]: ...
    @overload
    def jacrev(fn: Callable[Q, Any], /, **options: Unpack[OfAny]) -> Derivative[Q, Any]: ...
    @overload
    def jacrev(
        *, has_aux: Literal[False] = False, **options: Unpack[OfTree]
    ) -> Callable[[F], JacobianOf[F]]: ...
    @overload
    def jacrev(**options: Unpack[OfAny]) -> Callable[[Callable[Q, Any]], Derivative[Q, Any]]: ...


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
    return derivative_of(Jacobian, fn, wrt, argnums, **options)


if TYPE_CHECKING:

    @overload
    def hessian(
        fn: Bound[Q, Any, Module], /, **options: Unpack[OfAny]
    ) -> Derivative[Q, Any, Module]: ...
    @overload
    def hessian(fn: Callable[Q, Any], /, **options: Unpack[OfAny]) -> Derivative[Q, Any]: ...
    @overload
    def hessian(**options: Unpack[OfAny]) -> Callable[[Callable[Q, Any]], Derivative[Q, Any]]: ...


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

    **Returns:** a stateful function, called like `fn`. It returns the output's tree; each leaf is
    replaced by the argument's tree of the argument's trees of derivatives, of shape
    `leaf.shape + input.shape + input.shape`. With `has_aux` it returns `(hessian, aux)`.

    **Raises:** as `grad`.

    !!! example

        >>> import pstate as ps
        >>> second = ps.hessian(lambda model: model["w"].value ** 3)({"w": ps.ParamState(2.0)})
        >>> second["w"].value["w"].value.item()
        12.0
    """
    options = {"has_aux": has_aux, "holomorphic": holomorphic, "jacobian": jax.hessian}
    return derivative_of(Jacobian, fn, wrt, argnums, **options)


Derivative.makers.update(jacfwd=jacfwd, jacrev=jacrev, hessian=hessian)
