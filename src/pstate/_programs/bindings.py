"""The objects that names in a function are bound to: a compiled program depends on them.

Bindings are followed into *helpers*: functions and classes that a name refers to, and those that
they refer to in turn, in any module of the program. *Libraries*, which are installed, are not part
of the program; for a library's function only the objects that it holds are followed, such as a
function that it decorates.
"""

import dis
import functools as ft
import itertools as it
import operator
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._calls.callables import Wrapper, anchors_of
from .own import own_of


def bindings(function: Any) -> tuple[Any, ...]:
    """The objects that the names in a function and in its helpers are bound to, except arguments.

    >>> scale = 2.0
    >>> bindings(lambda x: x * scale)[0]
    2.0
    """
    return tuple(_followed(function)[0])


class Bindings:
    """What the names in a function and in its helpers are bound to, and where to look again.

    `ids` identifies the bound objects. `kept` are these objects, but for the function itself: they are
    kept alive, so that no other object gets their identity.
    """

    __slots__ = ("_attributes", "_contents", "_functions", "_globals", "ids", "kept")

    def __init__(self, function: Any):
        bound, places = _followed(function)
        self.ids = tuple(map(id, bound))
        self.kept = tuple([x for x in bound if x is not function])
        self._attributes: list[tuple[Any, str, Any]] = []
        cells: list[Any] = []
        self._functions: list[tuple[Any, Any, Any, tuple[Any, ...]]] = []
        names: dict[int, tuple[Any, dict[str, None]]] = {}
        for place, whole in places:
            if isinstance(place, type):
                self._attributes += [
                    (place, n, getattr(place, n, None)) for n in _RUN_BY_CLASSES if whole
                ]
                continue
            cells += getattr(place, "__closure__", None) or ()
            code = getattr(place, "__code__", None)
            if code is None:
                continue
            by_keyword = tuple((place.__kwdefaults__ or {}).values())
            own = None if place is function else place
            self._functions.append((own, code, place.__defaults__, by_keyword))
            if whole:
                if hasattr(place, "__wrapped__"):
                    self._attributes.append((own, "__wrapped__", place.__wrapped__))
                space = place.__globals__
                names.setdefault(id(space), (space, {}))[1].update(dict.fromkeys(_globals_of(code)))
        self._globals = [
            (space.get, tuple(of), tuple(map(space.get, of, _UNBOUND)))
            for space, of in names.values()
            if of
        ]
        try:
            self._contents: Any = [(cell, cell.cell_contents) for cell in cells]
        except ValueError:  # a name of the closure is not bound yet
            self._contents = None
        if any(value is function for _, _, values in self._globals for value in values):
            # It is not referred to from here: what is kept on it must be gone with it.
            self._contents, self._globals = None, []

    def hold(self, function: Any) -> bool:
        """Whether every name of the function is still bound to the same object.

        Looking again takes a fraction of the time in which the names are followed.
        """
        contents = self._contents
        if contents is None:
            return False
        for cell, before in contents:
            try:
                if cell.cell_contents is not before:
                    return False
            except ValueError:
                return False
        for get, names, values in self._globals:
            if not all(map(operator.is_, map(get, names, _UNBOUND), values)):
                return False
        for place, code, defaults, by_keyword in self._functions:
            own = place or function
            if own.__code__ is not code or own.__defaults__ is not defaults:
                return False
            now = own.__kwdefaults__
            if (now or by_keyword) and not _are(tuple((now or {}).values()), by_keyword):
                return False
        if not self._attributes:
            return True
        return all(
            getattr(place or function, name, None) is value for place, name, value in self._attributes
        )


def _are(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


#: Stands for a global name that is not bound.
_UNBOUND = it.repeat(object())


def bound_by(function: Any) -> Bindings:
    """What the names in a function are bound to: the same object until one of them is rebound."""
    if not isinstance(function, types.FunctionType):
        return Bindings(function)
    own = own_of(function)
    bound = own.bound
    if bound is None or not bound.hold(function):
        bound = own.bound = Bindings(function)
    return bound


#: Calling a class runs these.
_RUN_BY_CLASSES = ("__init__", "__post_init__")

#: Where names are bound: a function or class, and whether it is followed beyond what it holds.
_Place = tuple[Any, bool]


def _followed(function: Any) -> tuple[list[Any], list[_Place]]:
    """The bound objects, and the functions and classes that were followed to them."""
    program = _package_of(function)
    bound: list[Any] = []
    places: list[_Place] = [(function, True)]
    seen = {id(function)}
    for followed, whole in places:  # grows on the way
        for value in _own(followed) if whole else _held(followed):
            bound.append(value)
            for helper in _helpers(value):
                if helper is None or id(helper) in seen:
                    continue
                seen.add(id(helper))
                package = _package_of(helper)
                places.append((helper, package == program or not _is_library(package)))
    return bound, places


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
        for name in _RUN_BY_CLASSES:
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
    if isinstance(function, type):
        return  # the class of functions has descriptors with these names
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
