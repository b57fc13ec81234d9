"""`progress=`: one bar for each loop, and few calls to the host."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps
from pstate._transforms import progress as _progress
from transforms.flow import (
    XS,
)


class FakeBar:
    """tqdm, for tests."""

    made: list["FakeBar"] = []
    updates = 0

    def __init__(self, total, **options):
        self.total, self.options, self.n, self.closed = total, options, 0, False
        FakeBar.made.append(self)

    def update(self, n):
        FakeBar.updates += 1
        self.n += n

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(_progress, "_tqdm", FakeBar)
    monkeypatch.setattr(FakeBar, "made", [])
    monkeypatch.setattr(FakeBar, "updates", 0)
    return FakeBar


PROGRESS: dict[str, Callable[[], Any]] = {
    "eager": lambda: ps.for_loop(jnp.sin, XS, progress=True),
    "jit": lambda: jax.jit(lambda xs: ps.for_loop(jnp.sin, xs, progress=True))(XS),
    "reverse": lambda: ps.scan(lambda c, x: (c + x, c), 0.0, XS, reverse=True, progress=True)[1],
    "vmap2": lambda: ps.vmap2(lambda x: ps.for_loop(lambda y: x * y, XS, progress=True))(jnp.ones(4)),
    "grad": lambda: jax.grad(lambda w: ps.for_loop(lambda x: w * x, XS, progress=True).sum())(2.0),
    "jacfwd": lambda: jax.jacfwd(lambda w: ps.for_loop(lambda x: w * x, XS, progress=True).sum())(2.0),
    "one": lambda: ps.for_loop(jnp.sin, XS[:1], progress=True),
}


@pytest.mark.parametrize("run", PROGRESS.values(), ids=PROGRESS)
def test_progress(run, bars):
    """One bar, which ends at its end and is closed; and the next run draws one of its own."""
    for n in (1, 2):
        jax.block_until_ready(run())
        jax.effects_barrier()
        assert len(bars.made) == n
        assert all(bar.closed and bar.n == bar.total for bar in bars.made)


@pytest.mark.parametrize("unroll", [2, True])
def test_progress_of_an_unrolled_loop(unroll, bars):
    """One bar, also where JAX calls the host out of order."""
    ps.for_loop(lambda x: jnp.sin(x), jnp.arange(8.0), unroll=unroll, progress=True)
    jax.effects_barrier()
    assert [(bar.n, bar.closed) for bar in bars.made] == [(8, True)]


def test_progress_without_jit(bars):
    """Under `jax.disable_jit` too."""
    with jax.disable_jit():
        ps.for_loop(jnp.sin, XS, progress=True)
    assert [(bar.n, bar.closed) for bar in bars.made] == [(3, True)]


def test_progress_of_no_steps(bars):
    """A loop without steps draws nothing."""
    assert ps.for_loop(jnp.sin, jnp.zeros(0), progress=True).shape == (0,)
    assert bars.made == []


def test_progress_options(bars):
    """A string is a description, a dict is passed on, and `False` is none."""
    for progress in ("training", {"desc": "training", "leave": False}, False, None):
        ps.for_loop(jnp.sin, XS, progress=progress)
    jax.effects_barrier()
    assert [bar.options for bar in bars.made] == [
        {"desc": "training"},
        {"desc": "training", "leave": False},
    ]


def test_progress_options_of_any_kind(bars):
    """tqdm's own option `postfix` is a dict, and is passed on."""
    ps.for_loop(jnp.sin, XS, progress={"postfix": {"loss": 1}})
    jax.effects_barrier()
    assert bars.made[0].options == {"postfix": {"loss": 1}}


@pytest.mark.parametrize("n", [199, 1000])
def test_progress_calls_the_host_at_most_a_hundred_times(n, bars, monkeypatch):
    """However long the loop is."""
    assert host_calls(n, monkeypatch) <= 100


@pytest.mark.parametrize("n", [1, 7, 100, 101, 1000, 12345])
def test_progress_is_bounded(n, bars, monkeypatch):
    """The number of calls does not grow with the loop."""
    assert min(n, 50) <= host_calls(n, monkeypatch) <= 102


def host_calls(n: int, monkeypatch: Any) -> int:
    calls = []
    show = _progress.Bar._show
    monkeypatch.setattr(_progress.Bar, "_show", lambda self, i: calls.append(i) or show(self, i))
    jax.block_until_ready(ps.for_loop(lambda x: x, np.arange(n), progress=True))
    jax.effects_barrier()
    return len(calls)


def test_progress_without_tqdm(monkeypatch):
    """The message says what to install, and what to leave out; left out, it runs."""
    monkeypatch.setattr(_progress, "_tqdm", None)
    with pytest.raises(ImportError) as error:
        ps.for_loop(jnp.sin, XS, progress=True)
    assert str(error.value) == (
        "progress= draws its bar with tqdm: pip install tqdm, or leave progress out."
    )
    for progress in (None, False):
        assert ps.for_loop(jnp.sin, XS, progress=progress).shape == (3,)


def test_progress_after_an_interruption(bars):
    """A loop that stopped half way leaves no bar to the next run."""

    def check(x):
        if x == 2 and fail:
            raise KeyError("stop")
        return x

    def step(x):
        return jax.pure_callback(check, jax.ShapeDtypeStruct((), jnp.float32), x)

    fail = True
    with pytest.raises(Exception, match="stop"):
        jax.block_until_ready(ps.for_loop(step, XS, progress=True))
    with contextlib.suppress(Exception):
        jax.effects_barrier()
    fail = False
    jax.block_until_ready(ps.for_loop(step, XS, progress=True))
    jax.effects_barrier()
    assert (bars.made[-1].n, bars.made[-1].closed) == (3, True)
