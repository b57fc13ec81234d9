"""A progress bar for compiled loops, drawn by tqdm on the host.

The loop calls the host at most a hundred times, however long it is, and tqdm draws at most ten
times a second. Each call passes the count of steps, not a single step, so that lanes and devices
that run the same loop together draw one bar.
"""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._ground.exact import Exact


try:
    from tqdm.auto import tqdm as _tqdm  # pyright: ignore[reportMissingModuleSource]
except ImportError:  # pragma: no cover
    _tqdm = None


#: How often a loop calls the host, at most.
MAX_CALLS = 100

Progress = bool | str | Mapping[str, Any] | None


class BarOptions:
    """The options of a bar, compared by value, and files by identity, however similar they look.

    They do not change what is computed, but the compiled loop depends on them: it draws with the
    options that it was compiled with.
    """

    __slots__ = ("_key", "given")

    def __init__(self, given: Mapping[str, Any]):
        self.given = dict(given)
        self._key = frozenset((name, Exact(value)) for name, value in self.given.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BarOptions) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


class Bar:
    """The bar of one loop of `total` steps. An unrolled loop calls the host in any order."""

    def __init__(self, total: int, options: BarOptions, ordered: bool):
        self._total = total
        self._options = options.given
        # The first and the last step call too.
        self._every = 1 if total <= MAX_CALLS else -(-total // (MAX_CALLS - 2))
        self._ordered = ordered
        self._seen: set[int] = set()
        self._bar: Any = None
        self._lock = threading.Lock()

    def step(self, i: Any) -> None:
        """What the loop does in step `i`, a traced integer."""
        due = ((i + 1) % self._every == 0) | (i == 0) | (i + 1 == self._total)
        jax.lax.cond(due, lambda i: jax.debug.callback(self._show, i), lambda i: None, i)

    def _show(self, i: Any) -> None:
        done = int(i) + 1
        with self._lock:
            again = done == 1 if self._ordered else done in self._seen
            if again and self._bar is not None:  # the previous run was interrupted
                self._close()
            if self._bar is None:
                self._bar = _make(self._total, self._options)
            self._seen.add(done)
            if done > self._bar.n:
                self._bar.update(done - self._bar.n)
            if done == self._total if self._ordered else self._is_complete():
                self._close()

    def _is_complete(self) -> bool:
        total, every = self._total, self._every
        return self._seen >= {1, total, *range(every, total, every)}

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        self._seen.clear()
        bar.close()


def _make(total: int, options: Mapping[str, Any]) -> Any:
    assert _tqdm is not None
    return _tqdm(total=total, **options)


def progress_options(progress: Progress) -> BarOptions | None:
    """The user's `progress=`, as options of tqdm; `None` for no bar.

    **Raises:** `ImportError` if tqdm is not installed; `TypeError` for any other value.
    """
    if progress is None or progress is False:
        return None
    if _tqdm is None:
        raise ImportError("progress= draws its bar with tqdm: pip install tqdm, or leave progress out.")
    if progress is True:
        return BarOptions({})
    if isinstance(progress, str):
        return BarOptions({"desc": progress})
    if isinstance(progress, Mapping):
        return BarOptions(progress)
    raise TypeError(
        f"progress is True, a description, or a dict of tqdm's options; got {progress!r}. Write "
        'progress="training".'
    )


def counter(n: int) -> Any:
    """The numbers of the steps, as an input of the loop."""
    return jnp.arange(n)
