"""What the names in a function are bound to, outside its arguments: a compiled program depends on it."""

import functools as ft
import types
from typing import Any


def bindings(function: Any) -> tuple[Any, ...]:
    """What the names in a function are bound to, outside its own arguments.

    >>> scale = 2.0
    >>> bindings(lambda x: x * scale)[0]
    2.0
    """
    if isinstance(function, type):
        # Calling a class runs these.
        made_by = (getattr(function, name, None) for name in ("__init__", "__post_init__"))
        return tuple(x for f in made_by if hasattr(f, "__code__") for x in bindings(f))
    wrapped = getattr(function, "__wrapped__", None)
    bound: list[Any] = [] if wrapped is None else [wrapped, *bindings(wrapped)]
    code = getattr(function, "__code__", None)
    if code is None:
        return tuple(bound)
    for cell in function.__closure__ or ():
        try:
            bound.append(cell.cell_contents)
        except ValueError:  # the name is not bound yet
            bound.append(None)
    if function.__defaults__:
        bound.extend(function.__defaults__)
    if function.__kwdefaults__:
        bound.extend(function.__kwdefaults__.values())
    names = function.__globals__
    bound.extend(names[name] for name in _named(code) if name in names)
    return tuple(bound)


@ft.lru_cache(maxsize=4096)
def _named(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function uses, in comprehensions and lambdas inside it too."""
    inner = (name for c in code.co_consts if isinstance(c, types.CodeType) for name in _named(c))
    return tuple(dict.fromkeys((*code.co_names, *inner)))
