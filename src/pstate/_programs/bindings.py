"""What the names in a function are bound to, outside its arguments: a compiled program depends on it.

Bindings are followed into *helpers*: functions and classes of the same program, that is of the same
top-level package or script, that a name leads to, and those that they lead to in turn. Libraries are not
followed.
"""

import dis
import functools as ft
import types
from collections.abc import Iterator
from typing import Any

from .._calls.callables import Wrapper, anchor_of


def bindings(function: Any) -> tuple[Any, ...]:
    """What the names in a function, and in its helpers, are bound to, outside their own arguments.

    >>> scale = 2.0
    >>> bindings(lambda x: x * scale)[0]
    2.0
    """
    program = _program_of(function)
    bound: list[Any] = []
    seen = {id(function)}
    queue = [function]
    while queue:
        for value in _own(queue.pop()):
            bound.append(value)
            helper = anchor_of(value) if isinstance(value, Wrapper) else value
            if isinstance(helper, types.FunctionType | type) and id(helper) not in seen:
                seen.add(id(helper))
                if _program_of(helper) == program:
                    queue.append(helper)
    return tuple(bound)


def _program_of(function: Any) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]


def _own(function: Any) -> Iterator[Any]:
    """What the names in this function alone are bound to."""
    if isinstance(function, type):
        # Calling a class runs these.
        for name in ("__init__", "__post_init__"):
            made_by = getattr(function, name, None)
            if hasattr(made_by, "__code__"):
                yield made_by
        return
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield wrapped
    code = getattr(function, "__code__", None)
    if code is None:
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the name is not bound yet
            yield None
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = function.__globals__
    for name in _globals_of(code):
        if name in names:
            yield names[name]


@ft.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The global names that code reads, in comprehensions and lambdas inside it too."""
    own = (i.argval for i in dis.get_instructions(code) if i.opname in _READS)
    inner = (name for c in code.co_consts if isinstance(c, types.CodeType) for name in _globals_of(c))
    return tuple(dict.fromkeys((*own, *inner)))


#: The instructions that read a global name; those of a class body look there after its own names.
_READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
