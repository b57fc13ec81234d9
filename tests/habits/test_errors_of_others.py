"""Errors that are not ours: of the user, of JAX, of Equinox. They come as the twin's would."""

import functools as ft
import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


PACKAGE = str(Path(ps.__file__).parent)


def model() -> dict[str, Any]:
    return {"n": ps.State(1.0), "w": ps.ParamState(2.0)}


def mapped(f: Any, **options: Any) -> Any:
    """`f` over three lanes, with the signature of `f`."""
    many = ps.vmap2(f, in_axes=(None, 0), **options)
    return lambda m, x: jnp.sum(many(m, jnp.broadcast_to(x, (3,))))


def over_devices(f: Any) -> Any:
    many = ps.pmap2(f, in_axes=(None, 0), devices=jax.devices()[:1])
    return lambda m, x: jnp.sum(many(m, jnp.broadcast_to(x, (1,))))


#: Ways in which a function of `(model, x)` is run, as functions of the same arguments.
RUNS: dict[str, Callable[[Any], Any]] = {
    "pure": lambda f: f,
    "jit": ps.jit,
    "jit, donating": lambda f: ps.jit(f, donate=ps.State),
    "checkpoint": ps.checkpoint,
    "grad": lambda f: ps.grad(f, argnums=1, wrt=...),
    "vmap2": mapped,
    "chunks": ft.partial(mapped, chunk_size=2),
    "pmap2": over_devices,
    "jit of vmap2": lambda f: ps.jit(mapped(f)),
    "for_loop": lambda f: lambda m, x: ps.for_loop(ft.partial(f, m), jnp.stack([x])),
    "scan": lambda f: (
        lambda m, x: ps.scan(ft.partial(lambda m, c, x: (c, f(m, x)), m), 0.0, jnp.stack([x]))
    ),
    "while_loop": lambda f: (
        lambda m, x: ps.while_loop(
            lambda c: c < x + 1.0, ft.partial(lambda m, c: c + jnp.abs(f(m, c)) + 1.0, m), x
        )
    ),
    "cond": lambda f: lambda m, x: ps.cond(True, f, lambda m, x: x, m, x),
}

COMPILED = [name for name in RUNS if name not in ("pure", "checkpoint", "grad")]


def run(way: str, f: Any, x: Any = -1.0) -> Any:
    return ps.pure(RUNS[way](f))(model(), jnp.asarray(x))


# The user's own exceptions --------------------------------------------------------------------------


class MineError(ValueError):
    pass


@pytest.mark.parametrize("error", [MineError("no"), RuntimeError("no"), ValueError("it was deleted")])
@pytest.mark.parametrize("way", RUNS)
def test_the_users_exception_comes_out_itself(way: str, error: Exception) -> None:
    def fails(m: Any, x: Any) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        run(way, fails)
    assert caught.value is error


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no")])
def test_also_after_an_inner_donation(error: Exception) -> None:
    def add(m: Any) -> None:
        m["n"].value += 1.0

    def fails(m: Any) -> None:
        ps.jit(add, donate=ps.State)(m)
        raise error

    with pytest.raises(type(error)) as caught:
        ps.pure(fails)(model())
    assert caught.value is error


def test_a_buffer_that_is_gone_is_still_named() -> None:
    before = model()
    ps.pure(ps.jit(lambda m: m["n"].replace(0.0), donate_argnums=0))(before)
    before["n"].value.delete()
    with pytest.raises(ps.StateError, match=r"`m\['n'\]` was donated") as caught:
        ps.pure(lambda m: m["n"].value + 1.0)(before)
    assert caught.value.__suppress_context__


# Errors of `eqx.error_if` ---------------------------------------------------------------------------


def positive(m: Any, x: Any) -> Any:
    m["n"].value += 0.0
    return eqx.error_if(x, x < 0, "x must be positive") * 1.0


@pytest.mark.parametrize("way", COMPILED)
def test_equinox_runtime_errors_as_under_filter_jit(way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.raises(RuntimeError) as twin:
        eqx.filter_jit(lambda x: eqx.error_if(x, x < 0, "x must be positive"))(jnp.asarray(-1.0))
    caplog.clear()
    with pytest.raises(RuntimeError) as caught:
        jax.block_until_ready(run(way, positive))
    assert type(caught.value) is type(twin.value)
    assert "equinox.EquinoxRuntimeError: x must be positive" in str(caught.value)
    assert "CpuCallback" not in str(caught.value)
    assert PACKAGE not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert not caplog.records
    jax.block_until_ready(run(way, positive, 1.0))


def test_the_trace_that_looks_for_callbacks_serves_the_call() -> None:
    traces = []

    def counted(m: Any, x: Any) -> Any:
        traces.append(x)
        return positive(m, x)

    step = ps.pure(ps.jit(counted))
    for _ in range(3):
        step(model(), jnp.ones(()))
    assert len(traces) == 1
    step(model(), jnp.ones(2))
    assert len(traces) == 2


# JAX's own errors -----------------------------------------------------------------------------------


def branches(m: Any, x: Any) -> Any:
    m["n"].value = m["n"].value + x
    return x if m["n"].value > 0 else -x


#: What JAX traces in each way, and what the value of the `if` depends on there.
TRACED = {
    "jit": "m['n'].value and x",
    "jit, donating": "m['n'].value and x",
    "checkpoint": "m['n'].value and x",
    "pmap2": "m['n'].value and x",
    "chunks": "m['n'].value and x",
    "for_loop": "m['n'].value and x",
    "cond": "m['n'].value and x",
}


@pytest.mark.parametrize("way", TRACED)
def test_jax_names_the_users_function_and_arguments(way: str) -> None:
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        run(way, branches)
    message = str(caught.value)
    line = branches.__code__.co_firstlineno
    assert re.search(rf"the function branches at {re.escape(__file__)}:{line} for", message), message
    assert f"depends on the values of the arguments {TRACED[way]}." in message


def test_jax_names_the_carry_of_a_loop() -> None:
    def body(m: Any, total: Any, x: Any) -> Any:
        return (total if total > 0 else x), x

    def condition(m: Any, i: Any) -> bool:
        return bool(i < m["n"].value)

    with pytest.raises(
        jax.errors.TracerBoolConversionError, match=r"function body at .*argument total\."
    ):
        ps.pure(lambda m: ps.scan(ft.partial(body, m), 0.0, jnp.ones(3)))(model())
    with pytest.raises(
        jax.errors.TracerBoolConversionError,
        match=r"function condition at .*arguments m\['n'\]\.value and i\.",
    ):
        ps.pure(lambda m: ps.while_loop(ft.partial(condition, m), lambda i: i + 1, 0))(model())


def test_jax_names_what_a_state_of_several_arrays_holds() -> None:
    def asks(m: Any) -> Any:
        return 1.0 if m["s"].value["mean"][1] > 0 else 2.0

    with pytest.raises(
        jax.errors.TracerBoolConversionError, match=r"argument m\['s'\]\.value\['mean'\]\[1\]\."
    ):
        ps.pure(ps.jit(asks))({"s": ps.State({"mean": (jnp.ones(()), jnp.ones(()))})})


def test_lowered_programs_name_the_arguments() -> None:
    text = ps.jit(branches_not).lower(model(), jnp.ones(())).as_text(debug_info=True)
    assert "m['n'].value" in text
    assert '"x"' in text


def branches_not(m: Any, x: Any) -> Any:
    return m["n"].value * x


# Tracebacks -----------------------------------------------------------------------------------------


def fails(m: Any, x: Any) -> Any:
    raise MineError("no")


@pytest.fixture
def filtering() -> Any:
    before = jax.config.jax_traceback_filtering  # pyright: ignore[reportAttributeAccessIssue]
    yield lambda how: jax.config.update("jax_traceback_filtering", how)
    jax.config.update("jax_traceback_filtering", before)


def frames_of_ours(error: BaseException) -> list[str]:
    found = traceback.extract_tb(error.__traceback__)
    return [frame.name for frame in found if frame.filename.startswith(PACKAGE)]


@pytest.mark.parametrize("way", RUNS)
def test_a_traceback_shows_the_callers_line_and_the_users(way: str, filtering: Any) -> None:
    filtering("remove_frames")
    with pytest.raises(MineError) as caught:
        run(way, fails)
    assert not frames_of_ours(caught.value)
    found = traceback.extract_tb(caught.value.__traceback__)
    assert found[-1].name == "fails"
    assert found[-1].line == 'raise MineError("no")'
    assert "run" in [frame.name for frame in found]

    filtering("off")
    with pytest.raises(MineError) as caught:
        run(way, fails)
    assert len(frames_of_ours(caught.value)) > 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: ps.pure(lambda m: setattr(m["n"], "value", object()))(model()),
        lambda: ps.pure(ps.jit(lambda m: m["n"].value.no))(model()),
        lambda: ps.update(model(), {"absent": 1}),
        lambda: ps.broadcast(model(), {7: ps.State}, 3),
        lambda: ps.for_loop(lambda x: x, jnp.ones(2), jnp.ones(3)),
        lambda: ps.vmap2(lambda x: x, in_axes=3)(jnp.ones(3)),
        lambda: ps.vmap2(lambda x: x).lane(9)(jnp.ones(3)),
        lambda: ps.jvp(lambda x: x, (1.0,), (1.0, 2.0)),
    ],
)
def test_our_own_errors_end_at_the_users_line(call: Any, filtering: Any) -> None:
    filtering("remove_frames")
    with pytest.raises(Exception) as caught:
        call()
    assert not frames_of_ours(caught.value)


def test_what_led_to_an_error_is_shortened_too(filtering: Any) -> None:
    filtering("remove_frames")

    def outer(m: Any) -> None:
        try:
            ps.jit(fails)(m, 1.0)
        except MineError as error:
            raise KeyError("other") from error

    with pytest.raises(KeyError) as caught:
        ps.pure(outer)(model())
    cause = caught.value.__cause__
    assert isinstance(cause, MineError)
    assert not frames_of_ours(cause)


# The line of a write --------------------------------------------------------------------------------


def advance(m: Any, x: Any) -> Any:
    m["n"].value = m["n"].value + x
    return x


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"state_out_axes": {None: ps.State}}])
def test_an_error_of_axes_says_where_the_state_was_written(options: Any) -> None:
    with pytest.raises(ps.BatchAxisError) as caught:
        ps.pure(ps.vmap2(advance, in_axes=(None, 0), **options))(model(), jnp.arange(3.0))
    (note,) = [note for note in caught.value.__notes__ if "written here" in note]
    line = advance.__code__.co_firstlineno + 1
    assert note.startswith("`m['n']` was written here:")
    assert f'File "{__file__}", line {line}, in advance\n    m["n"].value = m["n"].value + x' in note


def test_also_where_a_filter_has_a_typo() -> None:
    options = {"state_out_axes": {None: ps.State, 0: "typo"}}
    with pytest.raises(ps.BatchAxisError, match="typo") as caught:
        ps.pure(ps.vmap2(advance, in_axes=(None, 0), **options))(model(), jnp.arange(3.0))
    assert any("in advance" in note for note in caught.value.__notes__)
