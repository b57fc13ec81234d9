"""Caches that are emptied by the garbage collector.

A structure holds the static parts of its nodes, and a table keyed on structures would keep them alive
after every model is gone. Structures cannot be referenced weakly. So each table is emptied when
Python begins a full garbage collection: then whatever the collection finds alive is really in use.
A dropped result is worked out again when it is needed next, which takes less time than the
collection did.
"""

import functools as ft
import gc
from collections.abc import Callable
from typing import Any, TypeVar


R = TypeVar("R")

#: How many results are kept between two collections.
_MAX_REMEMBERED = 4096

#: What to call when a full collection begins, and when it ends.
_before: list[Callable[[], None]] = []
_after: list[Callable[[], None]] = []


def when_collecting(before: Callable[[], None], after: Callable[[], None] | None = None) -> None:
    """Call these when a full collection begins, and when it ends. They may run at any time."""
    _before.append(before)
    if after is not None:
        _after.append(after)


def remembered(make: Callable[..., R]) -> Callable[..., R]:
    """`make`, called once for each hashable argument between two full collections."""
    table = ft.lru_cache(maxsize=_MAX_REMEMBERED)(make)
    _before.append(table.cache_clear)
    return table


def _on_collection(phase: str, info: dict[str, Any]) -> None:
    if info["generation"] == 2:
        for call in _before if phase == "start" else _after:
            call()


gc.callbacks.append(_on_collection)
