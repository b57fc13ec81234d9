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

_forget_all: list[Callable[[], None]] = []


def remembered(make: Callable[..., R]) -> Callable[..., R]:
    """`make`, called once for each hashable argument between two full collections."""
    table = ft.lru_cache(maxsize=_MAX_REMEMBERED)(make)
    _forget_all.append(table.cache_clear)
    return table


def _on_collection(phase: str, info: dict[str, Any]) -> None:
    if phase == "start" and info["generation"] == 2:
        for forget in _forget_all:
            forget()


gc.callbacks.append(_on_collection)
