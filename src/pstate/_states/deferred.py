"""Values that are computed when they are first needed: the keys of random states that lanes split."""

from collections.abc import Callable
from typing import Any

from .._ground.errors import TraceScopeError
from .._ground.versions import current_trace


class ForeignReadError(TraceScopeError):
    """A deferred value was needed under a JAX trace in which it cannot be computed."""


class Deferred:
    """A value that is computed when it is first needed.

    `anywhere` says that computing it only means taking a value that exists; otherwise it is
    computed under the trace that it belongs to, or not at all. `mark` is called when the value is
    needed, and when it turns out not to be needed after all. `make` is told whether the value is
    needed: a value that is only looked at may turn out not to be used.
    """

    __slots__ = ("_anywhere", "_make", "_mark", "_needs", "_place", "_trace", "_value", "dtype", "shape")

    def __init__(
        self,
        make: Callable[[bool], Any],
        like: Any,
        place: Callable[[], str],
        anywhere: bool = False,
        mark: Callable[[bool], None] = lambda needed: None,
    ):
        self._anywhere = anywhere
        self.shape: tuple[int, ...] = like.shape
        self.dtype: Any = like.dtype
        self._make: Callable[[bool], Any] | None = make
        self._mark = mark
        self._needs = 0
        self._place = place
        self._trace = current_trace()
        self._value: Any = None

    def get(self) -> Any:
        """The value, because it is needed."""
        value = self.value(needed=True)
        self._need()
        return value

    def tentative(self) -> Any:
        """The value, which counts as needed unless `release` is called."""
        value = self.value()
        self._need()
        return value

    def _need(self) -> None:
        self._needs += 1
        if self._needs == 1:
            self._mark(True)

    @property
    def computed(self) -> Any:
        """The value, if it was computed already."""
        return self._value

    def release(self) -> None:
        """Take back a `get`: the value was not needed after all."""
        self._needs -= 1
        if self._needs == 0:
            self._mark(False)

    def value(self, needed: bool = False) -> Any:
        """The value, whether or not it is needed. Computed once."""
        if self._make is not None:
            if not self._anywhere and current_trace() != self._trace:
                place = self._place()
                raise ForeignReadError(
                    f"The random state `{place}` belongs to the lanes of a mapping and was first "
                    "read under another JAX trace inside the lane. Draw before entering the raw "
                    f"transform: key = {place}.split_key()."
                )
            self._value = self._make(needed)
            self._make = None
        return self._value
