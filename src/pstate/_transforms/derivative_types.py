"""What type checkers know of derivatives: options, and what decorators with options return.

A derivative with respect to the carrier has the type of the carrier. What other arguments give is `Any`.
"""

from collections.abc import Callable
from typing import Any, Concatenate, Literal, Protocol, TypedDict, overload

from jax import Array

from .._calls.typed import Aux, FIn, Instance, Out, Q, Tree
from .._ground.integers import Positions
from .._ground.typing import Filter
from .derivatives import Derivative


class Choice(TypedDict, total=False):
    """What is differentiated, and how."""

    wrt: Filter
    holomorphic: bool


class OfModule(Choice, total=False):
    """With respect to the bound module."""

    argnums: None


class OfTree(Choice, total=False):
    """With respect to argument 0."""

    argnums: Literal[0] | None


class OfAny(Choice, total=False):
    """All options."""

    argnums: Positions | None
    has_aux: bool


class GradOf(Protocol[FIn]):
    """What `grad` makes of a function that is bound to no module."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self: "GradOf[Callable[Concatenate[Tree, Q], Any]]",
        tree: Tree,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Tree: ...
    @overload
    def __call__(self: "GradOf[Callable[Q, Any]]", *args: Q.args, **kwargs: Q.kwargs) -> Any: ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "GradOf[FIn]": ...
    @overload
    def __get__(
        self: "GradOf[Callable[Concatenate[Any, Q], Any]]", instance: Instance, owner: Any = None
    ) -> Derivative[Q, Instance, Instance]: ...


class GradWithAuxOf(Protocol[FIn]):
    """The same with `has_aux=True`."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self: "GradWithAuxOf[Callable[Concatenate[Tree, Q], tuple[Any, Aux]]]",
        tree: Tree,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> tuple[Tree, Aux]: ...
    @overload
    def __call__(
        self: "GradWithAuxOf[Callable[Q, tuple[Any, Aux]]]", *args: Q.args, **kwargs: Q.kwargs
    ) -> tuple[Any, Aux]: ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "GradWithAuxOf[FIn]": ...
    @overload
    def __get__(
        self: "GradWithAuxOf[Callable[Concatenate[Any, Q], tuple[Any, Aux]]]",
        instance: Instance,
        owner: Any = None,
    ) -> Derivative[Q, tuple[Instance, Aux], Instance]: ...


class ValueAndGradOf(Protocol[FIn]):
    """What `value_and_grad` makes of a function that is bound to no module."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self: "ValueAndGradOf[Callable[Concatenate[Tree, Q], Out]]",
        tree: Tree,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> tuple[Out, Tree]: ...
    @overload
    def __call__(
        self: "ValueAndGradOf[Callable[Q, Out]]", *args: Q.args, **kwargs: Q.kwargs
    ) -> tuple[Out, Any]: ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "ValueAndGradOf[FIn]": ...
    @overload
    def __get__(
        self: "ValueAndGradOf[Callable[Concatenate[Any, Q], Out]]", instance: Instance, owner: Any = None
    ) -> Derivative[Q, tuple[Out, Instance], Instance]: ...


class JacobianOf(Protocol[FIn]):
    """What `jacfwd` and `jacrev` make of a function that is bound to no module.

    Where the output is one array, the derivative has the type of the carrier.
    """

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self: "JacobianOf[Callable[Concatenate[Tree, Q], Array]]",
        tree: Tree,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Tree: ...
    @overload
    def __call__(self: "JacobianOf[Callable[Q, Any]]", *args: Q.args, **kwargs: Q.kwargs) -> Any: ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "JacobianOf[FIn]": ...
    @overload
    def __get__(
        self: "JacobianOf[Callable[Concatenate[Any, Q], Any]]", instance: Instance, owner: Any = None
    ) -> Derivative[Q, Any, Instance]: ...
