"""The names of a callable and its arguments in code, for messages and plans."""

import inspect
from typing import Any

from .._ground.paths import snake_case
from .callables import (
    Method,
    Partial,
    Several,
    Wrapper,
    anchor_of,
    carrier_of,
    is_callable_module,
    n_bound,
)


def signature(fn: Any) -> inspect.Signature:
    """The signature that callers of `fn` see.

    **Raises:** `AttributeError` if it has none, so that `inspect` looks elsewhere.
    """
    try:
        match fn:
            case Wrapper():
                return signature(fn.fun)
            case Method():
                return _without(inspect.signature(fn.function), 1, ())
            case Partial():
                return _without(signature(fn.function), len(fn.args), tuple(fn.keywords))
            case _:
                return inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise AttributeError(str(error)) from None


def _without(full: inspect.Signature, n: int, names: tuple[str, ...]) -> inspect.Signature:
    # A parameter that takes any number of arguments is not used up.
    variadic = inspect.Parameter.VAR_POSITIONAL
    kept = [
        p
        for i, p in enumerate(full.parameters.values())
        if (i >= n or p.kind is variadic) and p.name not in names
    ]
    return full.replace(parameters=kept)


def parameters(fn: Any) -> list[str]:
    """The names of the positional parameters that callers of `fn` fill, as far as they are known.

    A `self` that callers pass is named after the class that the function belongs to.
    """
    anchor = anchor_of(fn)
    try:
        signature = inspect.signature(anchor)
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in signature.parameters.values() if p.kind in positional]
    if names and names[0] == "self" and "." in getattr(anchor, "__qualname__", ""):
        names[0] = snake_case(anchor.__qualname__.split(".")[-2])
    return names[n_bound(fn) :]


class Names(tuple[str, ...]):
    """The names of the positional parameters that callers fill.

    `filled` has, for each callable of the call, those that a partial has filled.
    """

    filled: tuple[list[str], ...]


def names_of(fn: Any) -> Names:
    """The names of the arguments of a callable in messages."""
    callables = fn.callables if isinstance(fn, Several) else (fn,)
    lead = fn.lead if isinstance(fn, Several) else ()
    names = Names((*lead, *parameters(callables[0])))
    names.filled = tuple(_filled(one) for one in callables)
    return names


def _filled(fn: Any) -> list[str]:
    while isinstance(fn, Wrapper):
        fn = fn.fun
    return parameters(fn.function)[: len(fn.args)] if isinstance(fn, Partial) else []


def name_of(fn: Any) -> str:
    """The callable as code: `Counter.__call__`, `step`, or `counter` for a module that is called."""
    carrier = carrier_of(fn)
    if carrier is not None and is_callable_module(fn) and not isinstance(fn, Method):
        return snake_case(type(fn).__name__)
    anchor = anchor_of(fn)
    if carrier is not None and not isinstance(carrier, Partial):
        return f"{snake_case(type(carrier).__name__)}.{getattr(anchor, '__name__', 'method')}"
    name = getattr(anchor, "__qualname__", None) or type(anchor).__name__
    # A lambda has no name.
    return name.rpartition("<locals>.")[2].replace("<lambda>", "f")
