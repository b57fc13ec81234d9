"""How the flat functions of the package are presented to JAX.

JAX names the function that it traces, and its arguments, in errors, in lowered programs and in
profiles. It inspects the signature and the code of the function. Here it finds those of the user's
function, and operands named as the caller would name them: `model.layers[0].count.value`.
"""

import functools as ft
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu


_OPERANDS = inspect.Parameter("operands", inspect.Parameter.VAR_POSITIONAL)


class _Operands(inspect.Signature):
    """A signature that gives each operand its own name.

    `names` returns them when JAX asks, once or twice per trace.
    """

    def __init__(self, names: Callable[[], Sequence[str]]):
        super().__init__([_OPERANDS])
        self._names = ft.cache(lambda: list(map(_Name, names())))

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        operands, names = jtu.tree_leaves((args, kwargs)), self._names()
        if len(operands) != len(names):
            raise TypeError(f"{len(names)} operands have names, and {len(operands)} came")
        # By number first: two operands may have the same name.
        named = dict(zip(names, operands, strict=True))
        return inspect.BoundArguments(self, named)  # pyright: ignore[reportArgumentType]


class _Name(str):
    """A name that equals no other, since two places may have the same name."""

    __slots__ = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Source:
    """What JAX shows of a function: its name and its place in the code. Keeps no function alive."""

    __slots__ = ("__code__", "__name__")

    def __init__(self, function: Any):
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        try:
            inner = inspect.unwrap(function)
        except ValueError:  # a wrapper that leads back to itself
            inner = function
        self.__code__ = getattr(inner, "__code__", None)


def _copy(function: types.FunctionType) -> Any:
    # Not a wrapper, which would take one more of Python's frames when it is called.
    copy = types.FunctionType(
        function.__code__, function.__globals__, None, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _wrapped(function: Callable[..., Any]) -> Any:
    return lambda *args: function(*args)


def presented(
    function: Callable[..., Any], source: Source, name: str, names: Callable[[], Sequence[str]]
) -> Callable[..., Any]:
    """`function`, as a new object with the name and signature that JAX is to show.

    `names` returns the names of the leaves of its arguments, in order.
    """

    shown = _copy(function) if type(function) is types.FunctionType else _wrapped(function)
    shown.__name__ = shown.__qualname__ = name
    shown.__signature__ = _Operands(names)
    if source.__code__ is not None:
        shown.__wrapped__ = source
    return shown
