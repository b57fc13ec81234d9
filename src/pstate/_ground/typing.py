"""Type aliases."""

from collections.abc import Callable, Mapping
from types import EllipsisType, UnionType
from typing import TYPE_CHECKING, Any, Literal


PyTree = Any

#: Anything that selects states; see `pstate.filter`.
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

if TYPE_CHECKING:
    #: What to do with a write that differs between lanes and has no axis.
    Policy = Literal["raise", "warn", "ignore"]
else:
    Policy = str  # any other raises an error that names these
