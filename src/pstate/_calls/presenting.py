"""How the flat functions of the package present themselves to JAX.

JAX names the function that it traces, and the arguments of it, in its errors, in lowered programs and
in profiles. It asks the function for its signature and its code, as `inspect` does. Here it finds the
user's function, and operands that are called what the caller would call them:
`model.layers[0].count.value`.
"""

import functools as ft
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu


_OPERANDS = inspect.Parameter("operands", inspect.Parameter.VAR_POSITIONAL)


class _Operands(inspect.Signature):
    """A signature under which each operand has a name of its own.

    `names` gives them when JAX asks, which it does once or twice for each trace.
    """

    def __init__(self, names: Callable[[], Sequence[str]]):
        super().__init__([_OPERANDS])
        self._names = ft.cache(lambda: list(map(_Name, names())))

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        operands, names = jtu.tree_leaves((args, kwargs)), self._names()
        if len(operands) != len(names):
            raise TypeError(f"{len(names)} operands have names, and {len(operands)} came")
        # By number first: two operands may have one name.
        named = dict(zip(names, operands, strict=True))
        return inspect.BoundArguments(self, named)  # pyright: ignore[reportArgumentType]


class _Name(str):
    """A name that is equal to no other, since one array may stand at two places of one name."""

    __slots__ = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Source:
    """What JAX says of a function: its name and its place in the code. Keeps no function alive."""

    __slots__ = ("__code__", "__name__")

    def __init__(self, function: Any):
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        try:
            inner = inspect.unwrap(function)
        except ValueError:  # a wrapper that leads back to itself
            inner = function
        self.__code__ = getattr(inner, "__code__", None)


def presented(
    function: Callable[..., Any], source: Source, name: str, names: Callable[[], Sequence[str]]
) -> Callable[..., Any]:
    """`function`, a new object, as JAX is to speak of it.

    `names` gives the names of the leaves of its arguments, in order.
    """

    def shown(*args: Any) -> Any:
        return function(*args)

    shown.__name__ = shown.__qualname__ = name
    shown.__signature__ = _Operands(names)  # pyright: ignore[reportFunctionMemberAccess]
    if source.__code__ is not None:
        shown.__wrapped__ = source  # pyright: ignore[reportFunctionMemberAccess]
    return shown
