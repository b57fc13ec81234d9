"""Type aliases."""

from collections.abc import Callable, Mapping
from types import EllipsisType, UnionType
from typing import Any


PyTree = Any

#: What selects states; see `pstate.filter`.
Filter = (
    type
    | str
    | Callable[..., Any]
    | bool
    | EllipsisType
    | UnionType
    | None
    | tuple[Any, ...]
    | list[Any]
)

#: Which states go along which axis, in priority order; a bare filter means `{0: filter}`.
StateAxes = Mapping[Any, Any] | Filter
