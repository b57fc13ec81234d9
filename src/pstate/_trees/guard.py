"""What a recording refuses: writes to aliased states, and writes outside a contract."""

import dataclasses
from collections.abc import Callable

from .._ground.errors import AliasedStateError, FrozenStateError
from .._ground.paths import Path
from .._ground.typing import Filter
from .._states.cell import Cell
from .._states.state import State
from ..filter import to_predicate
from .aliases import alias_message
from .filter_code import filter_code, literal, with_kind


@dataclasses.dataclass(frozen=True)
class Guard:
    """What a recording refuses: writes to aliased states, and writes outside a contract.

    `place_of` and `path_of` give the place of the state at an index, for messages and for filters.
    """

    place_of: Callable[[int], str]
    path_of: Callable[[int], Path]
    state_of: Callable[[int], State]
    aliases: tuple[tuple[int, int], ...] = ()
    writes: Filter = ...

    def __call__(self, cell: Cell) -> None:
        self.check(cell.index)

    def check(self, index: int) -> None:
        """Raise if the state at this index may not be written."""
        for pair in self.aliases:
            if index in pair:
                raise AliasedStateError(alias_message(*map(self.place_of, pair)))
        if self.writes is ...:
            return
        if not to_predicate(self.writes)(self.path_of(index), self.state_of(index)):
            kind, writes = type(self.state_of(index)), literal(to_predicate(self.writes))
            raise FrozenStateError(
                f"`{self.place_of(index)}` ({kind.__name__}) was written, but "
                f"writes={filter_code(writes)} does not allow it. Allow it too, "
                f"writes={with_kind(writes, kind)}, or do not write it."
            )
