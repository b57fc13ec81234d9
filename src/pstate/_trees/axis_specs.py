"""Axis specs: `{axis: filter}` in priority order, or a bare filter meaning `{0: filter}`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .._ground.exact import Exact
from .._ground.integers import as_index
from .._ground.typing import StateAxes
from ..filter import to_predicate
from .unmatched import names_something


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of an axis spec.

    `axis` is the axis of the states that the predicate selects, or `None` if they are the same in
    all lanes. `reducer`, if there is one, reduces the stacked lanes to one value instead.
    """

    axis: int | None
    predicate: Callable[..., bool]
    reducer: Callable[[Any], Any] | None = dataclasses.field(default=None, compare=False)
    reducer_key: Any = None

    @property
    def wants_a_match(self) -> bool:
        """Whether it is nearly always a typo if this rule selects nothing."""
        named = self.axis is not None or self.reducer is not None
        return named and names_something(self.predicate)

    @property
    def is_none(self) -> bool:
        """Whether the rule says that the value is the same in all lanes."""
        return self.axis is None and self.reducer is None

    def __str__(self) -> str:
        key = self.axis if self.reducer is None else _name(self.reducer)
        return f"{{{key}: {self.predicate!r}}}"


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or _name(getattr(function, "func", type(function)))


class Rules(tuple[Rule, ...]):
    """An axis spec that has been parsed."""

    __slots__ = ()


def parse_state_axes(spec: StateAxes, name: str, *, reducers: bool = False) -> tuple[Rule, ...]:
    """The rules of an axis spec, in order.

    **Raises:** `TypeError` for an axis that is not an integer or `None` (or, with `reducers`, a
    callable), and for a filter of an unusable type.
    """
    if spec is None:
        return ()
    if isinstance(spec, Rules):
        return tuple(spec)
    if not isinstance(spec, Mapping):
        spec = {0: spec}
    return tuple(_rule(axis, filter_, name, reducers) for axis, filter_ in spec.items())


def _rule(axis: Any, filter_: Any, name: str, reducers: bool) -> Rule:
    predicate = to_predicate(filter_)
    if axis is None or as_index(axis) is not None:
        return Rule(as_index(axis), predicate)
    if reducers and callable(axis) and not isinstance(axis, type):
        # A partial that is made again on each call is the same function.
        return Rule(None, predicate, axis, Exact(axis))
    also = ", or a callable that reduces the lanes" if reducers else ""
    raise TypeError(
        f"The keys of {name} are axes: an integer or None{also}; got {axis!r}. Write "
        f"{name}={{0: ps.HiddenState}}."
    )
