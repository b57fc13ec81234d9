"""The table of habits: what a step does apart from writing to `.value` of its arguments."""

import contextlib
import dataclasses
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pstate as ps
from habits.table import (
    KEPT,
    UNWRITTEN,
    Outcome,
    X,
    habit,
    habit_of_a_step,
    refused,
    twice,
    warned,
)
from habits.ways import (
    CHECKPOINT,
    COMPILED,
    CUSTOM,
    LIFTED,
    PACKED,
    RECORD,
    REMEMBERED,
    SINGLE,
    step,
    step_by_hand,
    without,
)


def by_hand(change: Any) -> Any:
    """The twin of a program that calls a step once whose result is changed: `change(y, values)`."""

    def twin(by_hand: Any, values: Any) -> Any:
        def g(own: Any, x: Any) -> Any:
            y, new = step_by_hand(own, x)
            return change(y, values), new

        return [by_hand(g)(values, X)]

    return twin


# Editing in place ------------------------------------------------------------------------------------

EDITED = refused(r"The (list|dict) `mod\w+\.(log|table)` was edited in place", ps.FrozenStateError)


@habit_of_a_step(
    "Editing in place",
    "`model.log.append(x)`, a list in the tree",
    EDITED,
    but={RECORD: KEPT},
    holds=lambda model: len(model.log) == 2,
)
def appending_to_a_list(model, x):
    model.log.append(x)
    return step(model, x)


@habit_of_a_step(
    "Editing in place",
    '`model.table["n"] = model.table["n"].replace(7)`, a dict in the tree',
    EDITED,
    but={RECORD: KEPT},
    holds=lambda model: model.table["n"].value == 7,
)
def replacing_a_state_in_a_dict(model, x):
    model.table["n"] = model.table["n"].replace(7)
    return step(model, x)


@habit_of_a_step(
    "Editing in place",
    '`del model.table["n"]`',
    EDITED,
    but={RECORD: KEPT},
    holds=lambda model: not model.table,
)
def deleting_from_a_dict(model, x):
    del model.table["n"]
    return step(model, x)


@habit_of_a_step(
    "Editing in place",
    "`model.buffer[0] = x`, a NumPy array in the tree",
    refused("read-only|immutable|requesting its array value|NumPy array", ValueError, TypeError),
    starts=lambda model: dataclasses.replace(model, log=[np.zeros(2)]),
)
def editing_an_array(model, x):
    model.log[0][0] = 1.0
    return step(model, x)


@habit_of_a_step(
    "Editing in place",
    "`model.count = ps.State(x)`, a field of a module",
    refused("cannot assign to field 'count'", dataclasses.FrozenInstanceError),
)
def assigning_a_field(model, x):
    model.count = ps.State(x)
    return step(model, x)


@habit_of_a_step(
    "Editing in place",
    '`model.cache.value["last"] = x`, a dict that a state holds',
    refused(r"container read from `\w+\.cache` was edited in place and not", ps.FrozenStateError),
)
def editing_a_value(model, x):
    model.cache.value["last"] = model.cache.value["last"] + 1
    return step(model, x)


@habit(
    "Editing in place", "a list in the tree, by the caller, between two calls", twin=twice, ways=SINGLE
)
def editing_between_calls(way, model):
    f = way.call(lambda model, x: step(model, x) + sum(map(jnp.sum, model.log)))
    first = f(model, X)
    model.log.append(jnp.zeros(3, int))
    second = f(model, X)
    model.log.pop()
    return [first, second]


# Reading and writing by closure ----------------------------------------------------------------------

STALE = refused("was also read through a closure|reads the state", ps.CapturedStateError)
CAPTURED = refused("reads the state .*State", ps.CapturedStateError)
WATCHED = warned("reads the state .*so it runs uncompiled", ps.CapturedStateWarning)
NOT_GIVEN = refused(
    "outside a recording|did not come in through its arguments|was written on the original",
    ps.FrozenStateError,
)
TEN = 10.0


@habit(
    "Closures",
    "reading the live model by closure, in a transform that also gets it as an argument",
    STALE,
    ways=LIFTED,
)
def reading_a_threaded_state(way, model):
    def outside(model, x):
        return way.wrap(lambda inner, x: step(inner, x) + model.count.value)(model, x)

    return [ps.pure(outside)(model, X)]


@habit(
    "Closures",
    "reading the original model by closure, in a step that gets its live copy",
    but={COMPILED | CHECKPOINT: STALE, CUSTOM: STALE, REMEMBERED: WATCHED},
    twin=by_hand(lambda y, values: y + values["count"]),
)
def reading_the_original(way, model):
    return [way.call(lambda inner, x: step(inner, x) + model.count.value)(model, X)]


@habit(
    "Closures",
    "reading a state that is not an argument: a global, a default, a name of the enclosing function",
    but={COMPILED: CAPTURED, REMEMBERED: WATCHED},
    twin=by_hand(lambda y, values: y + 2 * TEN),
)
def reading_another_state(way, model):
    other = ps.State(TEN)

    def f(model, x, default=ps.State(TEN)):  # noqa: B008 (the habit)
        return step(model, x) + other.value + default.value

    return [way.call(f)(model, X)]


@habit(
    "Closures",
    "writing to a state that is not an argument, or to the original model",
    NOT_GIVEN,
)
def writing_another_state(way, model):
    def f(inner, x):
        model.count.value = x
        return step(inner, x)

    return [way.call(f)(model, X)]


@habit(
    "Closures",
    "drawing from a random state that is not an argument",
    NOT_GIVEN,
)
def drawing_from_another_state(way, model):
    rng = ps.RandomState(0)
    return [way.call(lambda model, x: step(model, x) + rng.normal())(model, X)]


@habit(
    "Closures",
    "writing to the live model by closure, in a transform that does not get it as an argument",
    refused(r"`model\.count` \(ShortTermState\) was written under a JAX trace", ps.TraceScopeError),
    ways=[name for name in LIFTED if name not in CUSTOM.ways],
)
def writing_a_live_state(way, model):
    def outside(model, x):
        def f(inner, x):
            model.count.value = x
            return inner.weight.value * x

        return way.wrap(f)(model, x)

    return [ps.pure(outside)(model, X)]


@habit_of_a_step(
    "Closures",
    "writing to the live model inside `jax.vmap`, `jax.lax.scan` or another raw JAX transform",
    refused("was written under a JAX trace", ps.TraceScopeError),
)
def writing_in_a_raw_transform(model, x):
    def write(x):
        model.count.value = model.count.value + x

    jax.vmap(write)(jnp.ones(2))
    return step(model, x)


@habit_of_a_step(
    "Closures",
    "writing to the live model from another thread",
    refused("was written from another thread|under a JAX trace", ps.TraceScopeError),
)
def writing_in_a_thread(model, x):
    failed = []

    def write():
        try:
            model.count.value = 1.0
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    raise failed[0]


# Aliases ---------------------------------------------------------------------------------------------

TWO_PLACES = refused(r"are one state object at two places", ps.AliasedStateError)


def tied(model):
    model.table["n"] = model.count
    return model


@habit_of_a_step(
    "Aliases", "writing to a state that is at two places in the tree", TWO_PLACES, starts=tied
)
def writing_an_alias(model, x):
    return step(model, x)


@habit_of_a_step(
    "Aliases",
    "the same inside the step, by `ps.pure` on the tree that the step got",
    TWO_PLACES,
    starts=tied,
)
def writing_an_alias_inside(model, x):
    return ps.pure(step)(model, x)[0]


@habit_of_a_step(
    "Aliases",
    "only reading a state that is at two places in the tree",
    but={PACKED: TWO_PLACES},
    starts=tied,
    ways=without("cond", "scan-cond", "Map"),  # these write it themselves
    twin=lambda by_hand, values: [by_hand(lambda v, x: (v["weight"] * v["count"], v))(values, X)],
)
def reading_an_alias(model, x):
    return 0.5 * model.weight.value * (model.count.value + model.table["n"].value)


@habit_of_a_step(
    "Aliases", "another name for a live state, in a variable, a list or a default", ways=SINGLE
)
def another_name(model, x):
    def write(count=model.count):
        count.value = 0.5 * count.value

    write()
    for count in [model.count]:
        count.value += x
    return model.count.value * model.weight.value**2


@habit_of_a_step(
    "Aliases",
    "writing to a changed copy: `jax.tree.map`, `copy.deepcopy`, `state.replace`",
    NOT_GIVEN,
)
def writing_a_copy(model, x):
    copied = jax.tree.map(lambda leaf: leaf, model.count.replace(x))
    return step(types.SimpleNamespace(count=copied, weight=model.weight), x)


# Forgetting ------------------------------------------------------------------------------------------


@habit_of_a_step(
    "Forgetting",
    "`.value`: `model.count + x`, `model.count += x`",
    refused(r"is a state, not the value that it holds.*Write `.*\.count\.value", TypeError),
)
def forgetting_value(model, x):
    return step(model, x) + model.count


@habit_of_a_step(
    "Forgetting",
    "`.value` in a condition: `if model.count:`",
    refused(r"Write `if \w+\.count\.value: \.\.\.`", TypeError),
)
def forgetting_value_in_a_condition(model, x):
    return step(model, x) if model.count else x


@habit_of_a_step(
    "Forgetting",
    "`.value` in a JAX function: `jnp.sin(model.count)`",
    refused(r"pstate\.ShortTermState|Write `.*\.value`", TypeError),
)
def forgetting_value_in_a_function(model, x):
    return jnp.sin(model.count)


@habit(
    "Forgetting",
    "the boundary, `ps.pure`: `ps.jit(step)(model, x)`",
    refused("was written", ps.FrozenStateError),
)
def forgetting_the_boundary(way, model):
    return [(way.wrap(lambda model, x: step(model, x))(model, X), model)]


@habit("Forgetting", "to use the tree that a call returns", UNWRITTEN)
def forgetting_the_result(way, model):
    def f(model, x):
        ps.pure(step)(model, x)
        return step(model, x)

    way.call(f)(model, X)
    return [way.call(f)(model, X)]


@habit_of_a_step("Forgetting", "to use the result of `state.replace(x)`", UNWRITTEN, ways=SINGLE)
def forgetting_what_replace_gives(model, x):
    model.count.replace(x)
    return step(model, x)


@habit_of_a_step(
    "Forgetting",
    "to give a state a value before reading it",
    refused(r"`\w+\.later` \(State\) is empty and was read", ps.UninitializedStateError),
)
def forgetting_to_fill_a_state(model, x):
    return step(model, x) + model.later.value


# Exceptions ------------------------------------------------------------------------------------------


@habit_of_a_step("Exceptions", "raised and caught in the step, after a write")
def going_on(model, x):
    with contextlib.suppress(ValueError):
        model.count.value = 0.5 * model.count.value + x
        raise ValueError
    return model.count.value * model.weight.value**2


class MineError(Exception):
    """An exception of the user's own."""


@habit_of_a_step(
    "Exceptions", "raised in the step, after a write", Outcome("raised unchanged", (MineError,), "^mine")
)
def raising(model, x):
    step(model, x)

    raise MineError("mine")


@habit(
    "Exceptions",
    "raised in a transform after a write, and caught around it: its writes are dropped",
    ways=tuple(name for name in LIFTED if name != "pmap2"),
    twin=lambda by_hand, values: [step_by_hand(values, X)],
)
def raising_inside(way, model):
    def bad(model, x):
        step(model, x)
        raise ValueError

    def f(model, x):
        with contextlib.suppress(ValueError):
            way.wrap(bad)(model, x)
        return step(model, x)

    return [ps.pure(f)(model, X)]


@habit_of_a_step(
    "Exceptions", "catching the error of a refused write: the write is not made", ways=SINGLE
)
def swallowing(model, x):
    with contextlib.suppress(ps.StateError):
        model.count.replace(x).value = 5.0
    return step(model, x)


# Odd places ------------------------------------------------------------------------------------------


@habit_of_a_step(
    "Odd places", "writing in a comprehension, in a generator that runs, or by `setattr`", ways=SINGLE
)
def writing_in_odd_places(model, x):
    [setattr(model.count, "value", 0.5 * c.value) for c in [model.count]]
    any(setattr(model.count, "value", model.count.value + x) for _ in range(1))
    return model.count.value * model.weight.value**2


@habit_of_a_step("Odd places", "writing in a generator that never runs", UNWRITTEN, ways=SINGLE)
def a_generator_that_nobody_runs(model, x):
    _ = (step(model, x) for _ in range(3))
    return step(model, x)
