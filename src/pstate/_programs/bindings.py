"""The objects that names in a function are bound to: a compiled program depends on them.

Bindings are followed into *helpers*: functions and classes that a name refers to, and those that
they refer to in turn, in any module of the program. *Libraries*, which are installed, are not part
of the program; for a library's function only the objects that it holds are followed, such as a
function that it decorates.
"""

import dis
import functools as ft
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._calls.callables import Wrapper, anchors_of


def bindings(function: Any) -> tuple[Any, ...]:
    """The objects that the names in a function and in its helpers are bound to, except arguments.

    >>> scale = 2.0
    >>> bindings(lambda x: x * scale)[0]
    2.0
    """
    program = _package_of(function)
    bound: list[Any] = []
    seen = {id(function)}
    queue = [_own(function)]
    while queue:
        for value in queue.pop():
            bound.append(value)
            for helper in _helpers(value):
                if helper is None or id(helper) in seen:
                    continue
                seen.add(id(helper))
                package = _package_of(helper)
                followed = package == program or not _is_library(package)
                queue.append(_own(helper) if followed else _held(helper))
    return tuple(bound)


def _helpers(value: Any) -> Iterator[Any]:
    """The functions or classes that a name refers to. `None` stands for anything else."""
    if isinstance(value, types.FunctionType | type):
        yield value
        return
    for each in anchors_of(value) if isinstance(value, Wrapper) else (value,):
        yield _helper(each)


def _helper(value: Any) -> Any:
    while isinstance(value, ft.partial):
        value = value.func
    if isinstance(value, types.MethodType):
        value = value.__func__
    return value if isinstance(value, types.FunctionType | type) else None


def _package_of(function: Any) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]


@ft.lru_cache(maxsize=1024)
def _is_library(package: str) -> bool:
    """Whether a package is installed, or is this one."""
    if package in sys.stdlib_module_names or package == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _own(function: Any) -> Iterator[Any]:
    """The objects that the names in this function alone are bound to."""
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
    yield from _held(function)
    names = function.__globals__
    for name in _globals_of(code):
        if name in names:
            yield names[name]


def _held(function: Any) -> Iterator[Any]:
    """The objects that the closure and the defaults of a function hold."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the name is not bound yet
            yield None
    yield from getattr(function, "__defaults__", None) or ()
    yield from (getattr(function, "__kwdefaults__", None) or {}).values()


@ft.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The global names that code reads, also in comprehensions and lambdas inside it."""
    own = (i.argval for i in dis.get_instructions(code) if i.opname in _READS)
    inner = (name for c in code.co_consts if isinstance(c, types.CodeType) for name in _globals_of(c))
    return tuple(dict.fromkeys((*own, *inner)))


#: The instructions that read a global name; those of a class body look there after its own names.
_READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
