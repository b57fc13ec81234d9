"""Type aliases, and the annotation `ShortTermState[Float[Array, "n"]]`.

Such an annotation is a class whose `isinstance` checks the kind of the state *and* its value.
Because it is a class, beartype checks it like any other; jaxtyping checks the value, and shares the
dimension names of the surrounding `@jaxtyped` scope.
"""

import functools as ft
import importlib
import typing
from typing import Any


class StateAnnotation(type):
    """The metaclass of `Kind[hint]`."""

    kind: type
    hint: Any

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if bases:
            kind = bases[0].kind.__name__  # pyright: ignore[reportAttributeAccessIssue]
            raise TypeError(
                f"{bases[0].__name__} is an annotation, and {name} cannot be a subclass of it. Subclass "
                f"the kind itself, class {name}(ps.{kind}), and annotate where it is used."
            )
        return super().__new__(cls, name, bases, namespace)

    @typing.no_type_check
    def __instancecheck__(cls, instance: Any) -> bool:
        if not isinstance(instance, cls.kind):
            return False
        value = instance._peek()
        # An empty state is declared but not yet filled: it has no value that could be wrong.
        return value is None or _holds(value, cls.hint)

    def __repr__(cls) -> str:
        return f"{cls.__module__}.{cls.__qualname__}"


@typing.no_type_check
def _holds(value: Any, hint: Any) -> bool:
    if isinstance(hint, type):
        return isinstance(value, hint)
    # Imported when it is first needed: it takes a fifth of a second, and only hints that are not
    # classes need it.
    return importlib.import_module("beartype.door").is_bearable(value, hint)


@ft.lru_cache(maxsize=1024)
def annotation(kind: type, hint: Any) -> StateAnnotation:
    """The annotation `kind[hint]`."""
    shown = getattr(hint, "__name__", repr(hint))
    name = f"{kind.__name__}[{shown}]"
    return StateAnnotation(name, (), {"kind": kind, "hint": hint, "__module__": kind.__module__})
