"""The table of habits: what is done between calls, and what is used again after them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

import pstate as ps
from habits import ways
from habits.table import KEPT, UNSEEN, X, habit, refused, twice
from habits.ways import (
    BARE,
    CONCRETE,
    CUSTOM,
    EAGER,
    SINGLE,
    gained,
    step,
    step_by_hand,
)


# Rebinding a name ------------------------------------------------------------------------------------

scale = 1.0


def scaled(by_hand, values):
    """The step, and the step times three."""
    g = lambda k: by_hand(lambda v, x: (lambda y, new: (k * y, new))(*step_by_hand(v, x)))
    return [g(1.0)(values, X), g(3.0)(values, X)]


@habit("Rebinding", "a global name", twin=scaled)
def rebinding_a_global(way, model):
    global scale
    f = way.call(lambda model, x: scale * step(model, x))
    scale = 1.0
    first = f(model, X)
    scale = 3.0
    return [first, f(model, X)]


@habit("Rebinding", "a global name of a helper in another module", twin=scaled)
def rebinding_a_helpers_global(way, model):
    f = way.call(lambda model, x: gained(step(model, x)))
    ways.gain = 1.0
    first = f(model, X)
    ways.gain = 3.0
    return [first, f(model, X)]


@habit("Rebinding", "a name of the enclosing function, or a default", twin=scaled)
def rebinding_a_closure(way, model):
    net = types.SimpleNamespace(gain=1.0)

    def g(model, x, k=1.0):
        return k * net.gain * step(model, x)

    f = way.call(g)
    first = f(model, X)
    net = types.SimpleNamespace(gain=2.0)
    g.__defaults__ = (1.5,)
    return [first, f(model, X)]


@habit("Rebinding", "a non-array field of the model, by making a new model", twin=scaled, ways=SINGLE)
def rebinding_a_field(way, model):
    f = way.call(lambda model, x: model.activation(step(model, x)))
    models = [dataclasses.replace(model, activation=a) for a in (lambda y: y, lambda y: 3.0 * y)]
    return [f(models[0], X), f(models[1], X)]


# Changing in place what a step captures --------------------------------------------------------------


def changing(by_hand, values):
    """The step that reads captured things, before and after a change."""
    settings = {"gain": 1.0}
    f = by_hand(lambda v, x: (lambda y, new: (settings["gain"] * y, new))(*step_by_hand(v, x)))
    first = f(values, X)
    settings["gain"] = 3.0
    return [first, f(values, X)]


@habit(
    "Changing captured objects",
    "an item of a dict, an element of a NumPy array, an attribute of an object or a module",
    UNSEEN,
    but={EAGER: KEPT},
    twin=changing,
)
def changing_in_place(way, model):
    settings, array, thing = {"gain": 0.5}, np.full(1, 0.25), types.SimpleNamespace(gain=0.25)
    f = way.call(lambda model, x: (settings["gain"] + float(array[0]) + thing.gain) * step(model, x))
    first = f(model, X)
    settings["gain"], array[0], thing.gain = 1.0, 1.0, 1.0
    return [first, f(model, X)]


@habit(
    "Changing captured objects",
    "a method of the model's class",
    UNSEEN,
    but={EAGER: KEPT},
    twin=changing,
)
def changing_a_class(way, model):
    class Net(ways.Model):
        pass

    f = way.call(lambda model, x: model.gained(step(model, x)))
    net = Net(**vars(model))
    first = f(net, X)
    Net.gained = lambda self, y: 3.0 * y
    return [first, f(net, X)]


@habit(
    "Changing captured objects",
    "the NumPy array that a state was made from, or that was written to it",
    twin=twice,
)
def changing_what_a_state_was_made_of(way, model):
    buffer = aligned(float(model.count.value))
    model = dataclasses.replace(model, count=ps.ShortTermState(buffer))
    f = way.call(lambda model, x: step(model, x))
    first = f(model, X)
    buffer[...] = 9
    return [first, f(model, X)]


def aligned(value):
    """A NumPy array whose memory JAX can share."""
    memory = np.zeros(128, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + 4].view(np.float32).reshape(())
    array[...] = value
    return array


# Using again what is over ----------------------------------------------------------------------------

LEAKED = refused("unexpected tracer", jax.errors.UnexpectedTracerError)
ENDED = refused(r"was written after .* ended, so nothing would record it", ps.FrozenStateError)


@habit("Using again", "the original model, after a call", twin=twice)
def calling_the_original_again(way, model):
    f = way.call(lambda model, x: step(model, x))
    return [f(model, X), f(model, X)]


@habit(
    "Using again",
    "a buffer that a call gave up: `donate` of a state that it writes",
    refused("was donated to an earlier call", ps.StateError),
    ways=("jit", "packed", "jit-vmap2"),
)
def calling_what_was_donated(way, model):
    lifted = (ways.USE["vmap2"].wrap if way.name == "jit-vmap2" else lambda f: f)(step)
    f = ps.pure(ps.jit(lambda model, x: lifted(model, x), donate=ps.ShortTermState))
    start = dataclasses.replace(model, count=ps.ShortTermState(jnp.float32(0.5)))
    start = ps.pack(start) if way.name == "packed" else start
    return [f(start, X), f(start, X)]


@habit(
    "Using again",
    "a live state or its value, kept from a step and read after the call",
    LEAKED,
    but={CONCRETE: KEPT},
)
def reading_what_was_kept(way, model):
    kept = []

    def f(model, x):
        y = step(model, x)
        kept.extend([model.count, model.count.value])
        return y

    result = way.call(f)(model, X)
    assert kept[0].value + 0 == kept[1]
    return [result]


@habit("Using again", "a live state, kept from a step and written after the call", ENDED)
def writing_what_was_kept(way, model):
    kept = []

    def f(model, x):
        kept.append(model.count)
        return step(model, x)

    way.call(f)(model, X)
    kept[0].value = 5.0
    return []


@habit(
    "Using again",
    "a live model, kept from a step, in another call",
    # JAX's own is a TypeError too, and in the oldest pmap says that a tracer is not a valid argument.
    refused("unexpected tracer|another JAX trace|'Traced<", TypeError, ps.TraceScopeError),
    but={BARE: KEPT, CUSTOM: KEPT},
    twin=lambda by_hand, values: [
        by_hand(step_by_hand)(values, X),
        by_hand(step_by_hand)(by_hand(step_by_hand)(values, X)[1], X),
    ],
)
def calling_what_was_kept(way, model):
    kept = []

    def f(model, x):
        kept.append(model)
        return step(model, x)

    first = way.call(f)(model, X)
    return [first, way.call(lambda model, x: step(model, x))(kept[0], X)]


@habit("Using again", "a generator that writes, run after the call", ENDED)
def running_a_generator_late(way, model):
    kept = []

    def f(model, x):
        kept.append(setattr(model.count, "value", i) for i in range(2))
        return step(model, x)

    way.call(f)(model, X)
    next(kept[0])
    return []
