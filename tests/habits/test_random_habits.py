"""Random programs with habits: edits in place, aliases, closures, rebinding, changes, re-use.

A program is a tree of states, a step made of statements, a way to run it, and what is done between its
calls. The oracle runs it on plain numbers and knows, for each habit, whether it is kept, refused, or not
seen. It holds its own copies of what a call was compiled with.
"""

import dataclasses
import functools as ft
import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import pstate as ps


SMALL = 64  # values are whole numbers below this, so that both sides are exact

#: What a step does: with states `a` and `b`, and habits.
WRITES = ("a += x", "a += b", "swap", "b = 3", "inner")
HABITS = (
    "append",
    "replace in dict",
    "edit value",
    "write copy",
    "read other",
    "read outside",
    "forget value",
    "caught",
    "another name",
    "generator",
    "array",
)
READS = ("read a", "global", "closure", "dict", "object", "item")

#: What is done between two calls.
BETWEEN = (
    "nothing",
    "rebind global",
    "rebind closure",
    "change dict",
    "change object",
    "append",
    "again",
)
WAYS = ("pure", "record", "jit", "vmap2", "checkpoint", "for_loop", "cond", "jit-for_loop", "packed")
COMPILED = {"jit", "packed", "jit-for_loop"}
REMEMBERED = COMPILED | {"vmap2", "for_loop", "cond"}


@dataclasses.dataclass(frozen=True)
class RandomProgram:
    statements: tuple[str, ...]
    way: str
    between: tuple[str, ...]
    tied: bool


STATEMENTS = st.one_of(
    st.sampled_from(WRITES), st.sampled_from(WRITES + READS), st.sampled_from(READS + HABITS)
)
PROGRAMS = st.builds(
    RandomProgram,
    st.lists(STATEMENTS, min_size=1, max_size=4).map(tuple),
    st.sampled_from(WAYS),
    st.lists(st.sampled_from(BETWEEN), min_size=1, max_size=2).map(tuple),
    st.sampled_from((False, False, False, True)),
)

factor = 1.0


# The program in pstate --------------------------------------------------------------------------------


def tree(tied: bool) -> dict[str, Any]:
    a = ps.State(jnp.float32(1))
    b = a if tied else ps.State(jnp.float32(2))
    return {
        "a": a,
        "b": b,
        "log": [jnp.float32(0)],
        "held": ps.State({"v": jnp.float32(0)}),
        "table": {"t": ps.State(jnp.float32(0))},
        "array": np.zeros(2, np.float32),
    }


def small(x: Any) -> Any:
    return jnp.mod(x, SMALL)


class Outside:
    """What a step reaches without getting it."""

    def __init__(self) -> None:
        self.other = ps.State(jnp.float32(5))
        self.settings = {"k": 1.0}
        self.thing = types.SimpleNamespace(k=1.0)
        self.original: Any = None


def make_step(statements: tuple[str, ...], outside: Outside, k: float) -> Any:
    """The step, and a function that rebinds the name `k` of its closure."""
    settings, thing = outside.settings, outside.thing

    def step(m: Any, x: Any) -> Any:
        out = jnp.float32(0)
        for statement in statements:
            match statement:
                case "global":
                    out = small(out + factor)
                case "closure":
                    out = small(out + k)
                case "dict":
                    out = small(out + settings["k"])
                case "object":
                    out = small(out + thing.k)
                case "read other":
                    out = small(out + outside.other.value)
                case "read outside":
                    out = small(out + outside.original["a"].value)
                case _:
                    out = small(out + run(statement, m, x))
        return out

    def rebind(new: float) -> None:
        nonlocal k
        k = new

    return step, rebind


def run(statement: str, m: Any, x: Any) -> Any:
    match statement:
        case "a += x":
            m["a"].value = small(m["a"].value + x)
        case "a += b":
            m["a"].value = small(m["a"].value + m["b"].value)
        case "swap":
            m["a"].value, m["b"].value = m["b"].value, m["a"].value
        case "b = 3":
            m["b"].value = 3
        case "inner":
            m["b"].value = ps.pure(lambda m: run("a += b", m, x))(m)[1]["a"].value
        case "append":
            m["log"].append(x)
        case "replace in dict":
            m["table"]["t"] = m["table"]["t"].replace(x)
        case "edit value":
            m["held"].value["v"] = x
        case "write copy":
            m["a"].replace(x).value = x
        case "forget value":
            return m["a"] + x
        case "caught":
            try:
                m["a"].value = small(m["a"].value + 1)
                raise ValueError
            except ValueError:
                return jnp.float32(1)
        case "another name":
            for state in [m["a"]]:
                state.value = small(state.value + 2)
        case "generator":
            _ = (run("a += x", m, x) for _ in range(2))
        case "array":
            m["array"][0] = 1
        case "item":
            return m["log"][-1]
        case "read a":
            return m["a"].value
    return jnp.float32(0)


def call_of(way: str, step: Any) -> Any:
    """`(m, x) -> (out, m)`."""
    loop = lambda m, x: jnp.sum(ps.for_loop(ft.partial(step, m), jnp.stack([x, x + 1])))
    lifted = {
        "jit": lambda: ps.jit(step),
        "vmap2": lambda: ps.vmap2(step, in_axes=None, out_axes=None, axis_size=2),
        "checkpoint": lambda: ps.checkpoint(step),
        "for_loop": lambda: loop,
        "cond": lambda: lambda m, x: ps.cond(jnp.asarray(True), step, nothing, m, x),
        "jit-for_loop": lambda: ps.jit(loop),
        "packed": lambda: ps.jit(step),
    }.get(way, lambda: step)()
    if way == "record":
        return ft.partial(recorded, lifted)
    if way == "packed":
        return lambda m, x: (lambda out, packed: (out, packed.unpack()))(*ps.pure(lifted)(ps.pack(m), x))
    return ps.pure(lifted)


def nothing(m: Any, x: Any) -> Any:
    return jnp.float32(0)


def recorded(step: Any, m: Any, x: Any) -> Any:
    with ps.record(m) as live:
        out = step(live, x)
    return out, ps.freeze(live)


# The oracle -------------------------------------------------------------------------------------------


class RefusedError(Exception):
    """The oracle expects one of these errors."""


@dataclasses.dataclass
class Plain:
    """The tree as plain numbers."""

    a: float
    b: float
    log: list[float]
    t: float = 0.0


@dataclasses.dataclass
class World:
    """What a step sees of names, of things that change in place, and of the first tree."""

    factor: float = 1.0
    k: float = 1.0
    dict: float = 1.0
    object: float = 1.0
    original: float = 1.0


ERRORS: dict[str, Any] = {
    "edit value": ps.FrozenStateError,
    "write copy": ps.FrozenStateError,
    "forget value": TypeError,
    "array": (ValueError, TypeError),
}
EDITS = ("append", "replace in dict")


def refusals(program: RandomProgram) -> list[Any]:
    """The errors of which the program must raise one, none if it runs."""
    done = program.statements
    found = [error for name, error in ERRORS.items() if name in done]
    if program.way != "record" and any(name in done for name in EDITS):
        found.append(ps.FrozenStateError)
    if program.way in COMPILED and ("read other" in done or "read outside" in done):
        found.append(ps.CapturedStateError)
    a, b = writes(program, "a"), writes(program, "b")
    if program.way in ("checkpoint", "vmap2") and "read outside" in done and a:
        found.append(ps.CapturedStateError)
    if program.tied and (a or b or "inner" in done or program.way == "packed"):
        found.append(ps.AliasedStateError)
    return found


WRITING = {
    "a": ("a += x", "a += b", "swap", "caught", "another name"),
    "b": ("swap", "b = 3", "inner"),
}


def writes(program: RandomProgram, state: str) -> bool:
    return any(name in WRITING[state] for name in program.statements)


def plain(program: RandomProgram, s: Plain, world: World, x: float) -> float:
    if program.way in ("for_loop", "jit-for_loop"):
        return sum(plain_step(program.statements, s, world, x + i) for i in range(2))
    return plain_step(program.statements, s, world, x)


def plain_step(statements: tuple[str, ...], s: Plain, world: World, x: float) -> float:
    out = 0.0
    for statement in statements:
        match statement:
            case "a += x":
                s.a = (s.a + x) % SMALL
            case "a += b":
                s.a = (s.a + s.b) % SMALL
            case "swap":
                s.a, s.b = s.b, s.a
            case "b = 3":
                s.b = 3.0
            case "inner":
                s.b = (s.a + s.b) % SMALL
            case "append":
                s.log.append(x)
            case "replace in dict":
                s.t = x
            case "caught":
                s.a = (s.a + 1) % SMALL
                out += 1
            case "another name":
                s.a = (s.a + 2) % SMALL
            case "item":
                out += s.log[-1]
            case "read a":
                out += s.a
            case "global":
                out += world.factor
            case "closure":
                out += world.k
            case "dict":
                out += world.dict
            case "object":
                out += world.object
            case "read other":
                out += 5
            case "read outside":
                out += world.original
        out %= SMALL
    return out


# The comparison ---------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(PROGRAMS)
def test_random_habits(program: RandomProgram):
    """Each call gives what the oracle gives, or is refused as it says; trees that went in stay."""
    global factor
    factor = 1.0
    outside, world = Outside(), World()
    step, rebind = make_step(program.statements, outside, 1.0)
    call = call_of(program.way, step)
    m = outside.original = tree(program.tied)
    s = Plain(1.0, 1.0 if program.tied else 2.0, [0.0])
    errors = refusals(program)
    # What a compiled call saw of things that change in place, by what it was compiled for.
    seen: dict[Any, tuple[float, float]] = {}
    actual = [1.0, 1.0]  # the dict and the object as they are now
    for what in ("nothing", *program.between):
        match what:
            case "rebind global":
                factor = world.factor = world.factor + 1
            case "rebind closure":
                world.k += 1
                rebind(world.k)
            case "change dict":
                actual[0] = outside.settings["k"] = actual[0] + 1
            case "change object":
                actual[1] = outside.thing.k = actual[1] + 1
            case "append":  # in a tree of its own, since that is what the caller may do
                m = {**m, "log": [*m["log"], jnp.float32(7)]}
                s.log = [*s.log, 7.0]
            case "again":  # from the first tree
                m = outside.original
                s = Plain(1.0, 1.0 if program.tied else 2.0, [0.0])
        before = jax.tree.structure(m), jax.tree.leaves(m)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.CapturedStateWarning)
            if errors:
                with pytest.raises(Exception) as caught:
                    call(m, jnp.float32(2))
                assert any(isinstance(caught.value, error) for error in errors)
            else:
                out, new = call(m, jnp.float32(2))
        assert jax.tree.structure(m) == before[0]
        assert all(a is b for a, b in zip(jax.tree.leaves(m), before[1], strict=True))
        assert not m["array"].any()
        if errors:
            continue
        uncompiled = "read other" in program.statements or "read outside" in program.statements
        key = world.factor, world.k, len(s.log)
        if program.way in REMEMBERED and not uncompiled:
            world.dict, world.object = seen.setdefault(key, tuple(actual))
        else:
            world.dict, world.object = actual
        s = dataclasses.replace(s, log=list(s.log))
        expected = plain(program, s, world, 2.0)
        assert (out, new["a"].value, new["b"].value) == (expected, s.a, s.b)
        assert ([float(x) for x in new["log"]], new["table"]["t"].value) == (s.log, s.t)
        assert new["array"] is m["array"]
        m = new


def test_programs_have_every_habit():
    """The statements that are drawn are those that the step knows."""
    source = {*WRITES, *HABITS, *READS}
    assert source >= {*ERRORS, *EDITS}
    assert len(source) == len(WRITES) + len(HABITS) + len(READS)
