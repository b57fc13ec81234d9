"""A progress bar for compiled loops, drawn by tqdm on the host.

The loop calls the host at most a hundred times, however long it is, and tqdm draws at most ten times a
second. The count is passed to the bar, and not one step each time, so that lanes and devices that run
the same loop together draw one bar.
"""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


try:
    from tqdm.auto import tqdm as _tqdm  # pyright: ignore[reportMissingModuleSource]
except ImportError:  # pragma: no cover
    _tqdm = None


#: How often a loop calls the host, at most.
MAX_CALLS = 100

Progress = bool | str | Mapping[str, Any] | None


class Bar:
    """The bar of one loop of `total` steps."""

    def __init__(self, total: int, options: Mapping[str, Any]):
        self._total = total
        self._options = options
        self._bar: Any = None
        self._lock = threading.Lock()

    def step(self, i: Any) -> None:
        """What the loop does in step `i`, a traced integer."""
        every = -(-self._total // MAX_CALLS)
        due = ((i + 1) % every == 0) | (i == 0) | (i + 1 == self._total)
        jax.lax.cond(due, lambda i: jax.debug.callback(self._show, i), lambda i: None, i)

    def _show(self, i: Any) -> None:
        done = int(i) + 1
        with self._lock:
            if done == 1 and self._bar is not None:  # the run before was interrupted
                self._close()
            if self._bar is None:
                self._bar = _make(self._total, self._options)
            if done > self._bar.n:
                self._bar.update(done - self._bar.n)
            if done == self._total:
                self._close()

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        bar.close()


def _make(total: int, options: Mapping[str, Any]) -> Any:
    assert _tqdm is not None
    return _tqdm(total=total, **options)


def progress_options(progress: Progress) -> tuple[tuple[str, Any], ...] | None:
    """What the user asked for, as options of tqdm; `None` for no bar.

    **Raises:** `ImportError` where tqdm is not installed; `TypeError` for what is no such option.
    """
    if progress is None or progress is False:
        return None
    if _tqdm is None:
        raise ImportError("progress= draws its bar with tqdm: pip install tqdm, or leave progress out.")
    if progress is True:
        return ()
    if isinstance(progress, str):
        return (("desc", progress),)
    if isinstance(progress, Mapping):
        return tuple(progress.items())
    raise TypeError(
        f"progress is True, a description, or a dict of tqdm's options; got {progress!r}. Write "
        'progress="training".'
    )


def counter(n: int) -> Any:
    """The numbers of the steps, as an input of the loop."""
    return jnp.arange(n)
