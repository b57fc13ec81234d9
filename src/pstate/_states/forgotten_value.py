"""What a state does when `.value` was forgotten: it raises an error that says where `.value` goes.

`state + 1`, `if state:`, `state[0]`, `np.asarray(state)` and `state.shape` are *slips*: they use
the state as if it were its value. Left to Python, some of them raise errors that do not say why,
and some (`if state:`, `state == 0`, `np.asarray(state)`) give wrong results.

Always: `==` between states is identity, states are hashable, and `hasattr(state, "shape")` is false.

There is no `__getattr__`, although it would be shorter: in a class that has one, every attribute is
slower to read, and flattening took a quarter longer. Instead, each attribute name of arrays and
dicts is listed here, with a descriptor that raises `AttributeError`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from .messages import describe, place_or_name


class ForgottenValue:
    """The base class of states that makes every slip an error."""

    __slots__ = ()

    # NumPy leaves `array + state` to the state, because this is higher than an array's.
    __array_priority__ = 1000.0

    __hash__ = object.__hash__

    def __dir__(self) -> Iterable[str]:
        return [n for n in object.__dir__(self) if n not in _ATTRIBUTES or hasattr(type(self), n)]


def _message(state: Any, slip: str, right: str) -> str:
    name = place_or_name(state)
    wrong, written = slip.replace("STATE", name), right.replace("STATE", f"{name}.value")
    start = f"{describe(state)} is a state, not the value that it holds."
    return f"{start} Write `{written}`, not `{wrong}`."


def _further_up(kind: Any, name: str) -> Any:
    """The attribute of a base class of a kind other than `State`, or `None`."""
    found = getattr(super(ForgottenValue, kind), name, None)
    return None if found is getattr(object, name, None) else found


class _AttributeOfTheValue:
    """An attribute that values have and states do not."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __get__(self, state: Any, kind: Any) -> Any:
        if _further_up(kind, self.name) is not None:
            return getattr(super(ForgottenValue, kind if state is None else state), self.name)
        if state is None:
            raise AttributeError(f"type object {kind.__name__!r} has no attribute {self.name!r}")
        slip = f"STATE.{self.name}"
        raise AttributeError(_message(state, slip, slip), name=self.name)


#: The names of the attributes of arrays and dicts.
_ATTRIBUTES = frozenset(
    name for values in (jax.Array, np.ndarray, dict) for name in dir(values) if not name.startswith("_")
)

#: The types that a value may have. Nothing else equals a state, and `==` says so.
_VALUES = (int, float, complex, np.generic, np.ndarray, jax.Array, list, tuple, dict)

#: These also combine filters, which are callable, and whose own errors say that a state is not a filter.
_OF_FILTERS = ("__or__", "__ror__", "__and__", "__rand__")


def _refusal(name: str, slip: str, right: str) -> Callable[..., Any]:
    """The method of this name: it raises. `slip` and `right` are code around `STATE`."""

    def refuse(state: Any, *args: Any, **kwargs: Any) -> Any:
        found = _further_up(type(state), name)
        if found is not None:
            return found(state, *args, **kwargs)
        fallback = _FALLBACKS.get(name)
        if fallback is not None and not _is_ours(type(state), fallback[0]):
            return fallback[1](state, *args)
        if name in _OF_FILTERS and callable(args[0]):
            return NotImplemented
        if name in ("__eq__", "__ne__") and not isinstance(args[0], _VALUES):
            return NotImplemented
        raise TypeError(_message(state, slip, right))

    refuse.__name__ = name
    return refuse


def _is_ours(kind: Any, name: str) -> bool:
    return getattr(kind, name) is getattr(ForgottenValue, name)


def _formatted(state: Any, spec: str) -> str:
    if not spec:
        return str(state)
    raise TypeError(_message(state, f"{{STATE:{spec}}}", f"{{STATE:{spec}}}"))


_BINARY = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "matmul": "@",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "pow": "**",
    "lshift": "<<",
    "rshift": ">>",
    "and": "&",
    "or": "|",
    "xor": "^",
}

#: Methods that Python derives from others if a kind defines those: from which, and how.
_FALLBACKS: dict[str, tuple[str, Callable[..., Any]]] = {
    **{f"__i{name}__": (f"__{name}__", lambda state, x: NotImplemented) for name in _BINARY},
    "__ne__": ("__eq__", object.__ne__),
    "__bool__": ("__len__", lambda state: len(state) > 0),
    "__contains__": ("__iter__", lambda state, x: any(x is item or x == item for item in state)),
}

_SLIPS = {
    **{f"__{name}__": f"STATE {symbol} x" for name, symbol in _BINARY.items()},
    **{f"__r{name}__": f"x {symbol} STATE" for name, symbol in _BINARY.items()},
    **{f"__i{name}__": f"STATE {symbol}= x" for name, symbol in _BINARY.items()},
    "__divmod__": "divmod(STATE, x)",
    "__rdivmod__": "divmod(x, STATE)",
    "__eq__": "STATE == x",
    "__ne__": "STATE != x",
    "__lt__": "STATE < x",
    "__le__": "STATE <= x",
    "__gt__": "STATE > x",
    "__ge__": "STATE >= x",
    "__neg__": "-STATE",
    "__pos__": "+STATE",
    "__invert__": "~STATE",
    "__abs__": "abs(STATE)",
    "__round__": "round(STATE)",
    "__trunc__": "math.trunc(STATE)",
    "__floor__": "math.floor(STATE)",
    "__ceil__": "math.ceil(STATE)",
    "__bool__": "if STATE: ...",
    "__int__": "int(STATE)",
    "__float__": "float(STATE)",
    "__complex__": "complex(STATE)",
    "__index__": "STATE",
    "__len__": "len(STATE)",
    "__contains__": "x in STATE",
    "__iter__": "for x in STATE: ...",
    "__getitem__": "STATE[i]",
    "__array__": "STATE",
}


def _install() -> None:
    # Hidden from type checkers, which therefore find the slips themselves.
    members: dict[str, Any] = {name: _AttributeOfTheValue(name) for name in _ATTRIBUTES}
    members |= {name: _refusal(name, slip, slip) for name, slip in _SLIPS.items()}
    members["__setitem__"] = _refusal("__setitem__", "STATE[i] = x", "STATE = STATE.at[i].set(x)")
    removal = "value = STATE; del value[i]; STATE = value"
    members["__delitem__"] = _refusal("__delitem__", "del STATE[i]", removal)
    members["__format__"] = _formatted
    for name, member in members.items():
        setattr(ForgottenValue, name, member)


_install()
