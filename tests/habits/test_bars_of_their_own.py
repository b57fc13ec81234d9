"""Each call of a loop draws the bar that it asked for."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pstate as ps


XS = jnp.arange(4.0)


class Log(io.StringIO):
    """A file that looks like any other of its kind."""

    def __repr__(self):
        return "<log>"


RUNS: dict[str, Any] = {
    "for_loop": lambda progress: ps.for_loop(jnp.sin, XS, progress=progress),
    "scan": lambda progress: ps.scan(lambda c, x: (c + x, None), 0.0, XS, progress=progress),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_files_that_look_alike_are_two(run):
    """The second call writes to its own file, and nothing more to the first one's."""
    first, second = Log(), Log()
    run({"file": first, "desc": "one"})
    jax.effects_barrier()
    before = first.getvalue()
    assert "one" in before
    run({"file": second, "desc": "one"})
    jax.effects_barrier()
    assert "100%" in second.getvalue()
    assert first.getvalue() == before


def test_a_log_that_is_opened_again(tmp_path):
    """Two files of one name are two, and the closed one is left alone."""
    for n in (1, 2):
        with open(tmp_path / "log", "a") as file:
            RUNS["for_loop"]({"file": file})
            jax.effects_barrier()
        assert (tmp_path / "log").read_text().count("100%") == n


def test_options_of_other_values_are_told_apart():
    """A bar that stays and one that is removed, of one function."""
    seen = []
    for leave in (True, False):
        log = Log()
        RUNS["for_loop"]({"file": log, "leave": leave})
        jax.effects_barrier()
        seen.append(log.getvalue().endswith("\n"))
    assert seen == [True, False]


@pytest.mark.parametrize("progress", [True, "training", {"desc": "a", "ncols": 40}])
def test_equal_options_are_one_program(progress, capsys):
    """Options that are equal by value compile nothing again."""
    runs = []

    def f(x):
        runs.append(x)
        return x

    for _ in range(3):
        ps.for_loop(f, XS, progress=dict(progress) if isinstance(progress, dict) else progress)
        jax.effects_barrier()
    assert len(runs) == 1
    assert capsys.readouterr().err.count("100%") == 3
