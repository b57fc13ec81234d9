"""Filters as code, for messages."""

from typing import Any

from .._states.messages import kind_code
from ..filter import All, Any as AnyOf, Not, Nothing, OfType, WithTag


def is_filter(value: Any) -> bool:
    """Whether this is an instance of one of the classes in `pstate.filter`."""
    return type(value).__module__ == OfType.__module__


def filter_code(value: Any) -> str:
    """A filter, or a literal that stands for one, as code."""
    match value:
        case type():
            return kind_code(value)
        case tuple() | list():
            inner = ", ".join(map(filter_code, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case OfType():
            return f"ps.filter.OfType({filter_code(value.type)})"
        case AnyOf() | All():
            return f"ps.filter.{type(value).__name__}({', '.join(map(filter_code, value.filters))})"
        case Not():
            return f"ps.filter.Not({filter_code(value.filter)})"
        case _ if is_filter(value):
            return f"ps.filter.{value!r}"
        case _ if callable(value) and hasattr(value, "__name__"):
            return "f" if value.__name__ == "<lambda>" else value.__name__
        case _:
            return "..." if value is ... else repr(value)


def literal(value: Any) -> Any:
    """A literal that means the same as a filter, if there is one; otherwise the filter."""
    match value:
        case OfType():
            return value.type
        case WithTag():
            return value.tag
        case AnyOf():
            return tuple(map(literal, value.filters))
        case _:
            return None if value is Nothing else value


def with_kind(value: Any, kind: type) -> str:
    """The code of a literal that also selects a kind of state."""
    given = () if value is None else value if isinstance(value, tuple) else (value,)
    return filter_code((*given, kind) if given else kind)
