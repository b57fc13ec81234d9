"""What all transforms share: a stateful function in, a stateful function out."""

import abc
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx

from .call import Call
from .callables import Method, Wrapper, anchor_of, as_tree
from .naming import name_of, signature
from .running import Writes


class Transform(eqx.Module, Wrapper):
    """A callable made of a callable.

    It is a module, and therefore a pytree, whose dynamic part is the callable it wraps. As a callable
    it is hashed by identity, so that `jax.jit` and its like take it.
    """

    fun: Callable[..., Any]

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        kind = type(self)  # through the class: Equinox makes a bound method a module, in 20 us
        call = kind._call(self, args, kwargs)
        out, writes = kind._apply(self, call)
        call.write_back(writes, lambda index: kind._line(self, call, index))
        return out

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Call(self.fun, args, kwargs)

    @abc.abstractmethod
    def _apply(self, call: Call, threaded: bool = False) -> tuple[Any, Writes]:
        """Run a call of the wrapped callable: its output, and what was written.

        `threaded` says that someone gives the written states back.
        """

    def _call_packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`(out, packed)` where a call whose argument 0 is packed has a shorter way; else `None`."""
        return None

    def _code(self) -> str:
        """The transform as code, for messages."""
        return f"ps.{type(self).__name__.lower()}({code_of(self.fun)})"

    def _line(self, call: Call, index: int) -> str:
        """The line of code that gives the state of a slot back, for messages."""
        return call.code(code_of(self), index)

    @property
    def __signature__(self) -> inspect.Signature:
        return signature(self.fun)

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(anchor_of(self.fun), "__name__", type(self).__name__)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # On a method in a class body, `self` is the uncounted extra argument.
        if instance is None:
            return self
        inner = self.fun
        bound = inner.__get__(instance) if isinstance(inner, Transform) else Method(inner, instance)
        return eqx.tree_at(lambda t: t.fun, self, bound, is_leaf=lambda x: x is inner)

    # A callable's identity is its own, whatever arrays it holds.
    def __hash__(self) -> int:
        return object.__hash__(self)

    def __eq__(self, other: object) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self is other


def code_of(fn: Any) -> str:
    """A callable as code, `ps.vmap2(step)`."""
    if not isinstance(fn, Transform):
        return name_of(fn)
    return name_of(fn) if _is_decorated(fn) else fn._code()


def _is_decorated(fn: Any) -> bool:
    """Whether the function's own name leads to a transform of it, as after `@ps.vmap2`."""
    anchor = anchor_of(fn)
    first, *rest = getattr(anchor, "__qualname__", "").split(".")
    found = getattr(anchor, "__globals__", {}).get(first)
    for name in rest:
        found = getattr(found, "__dict__", {}).get(name)
    return isinstance(found, Transform) and anchor_of(found) is anchor


def checked(fn: Any) -> Any:
    """A callable as a transform keeps it."""
    return as_tree(fn)
