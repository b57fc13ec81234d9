"""`catch_new_states`: which states are made in a piece of code."""

from typing import Any

from .._ground.public import public
from .state import State, Tag, as_tags
from .threads import local


@public
class catch_new_states:  # noqa: N801 (used like a function)
    """A context manager that collects the states created inside it.

    **Arguments:**

    - `tag`: a tag, or several, which the states created inside get in addition to their own.

    !!! example

        >>> import pstate as ps
        >>> with ps.catch_new_states("fresh") as states:
        ...     a = ps.State(1.0)
        >>> states
        [State(f32[], tag='fresh')]
        >>> states[0] is a
        True
    """

    def __init__(self, tag: Tag | None = None):
        self.tags = as_tags(tag)
        self.states: list[State[Any]] = []

    def __enter__(self) -> list[State[Any]]:
        local.catchers = (*local.catchers, self)
        return self.states

    def __exit__(self, *exc: Any) -> None:
        local.catchers = tuple(c for c in local.catchers if c is not self)
