"""Cases of one mapping: states by axis, bound modules, what is read and written, and new states."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu

import pstate as ps
from laws.models import COUNTER, LAYER, Counter, Norm, _count, counter, layer
from laws.table import case, tick


# States along the axes of their argument ------------------------------------------------------------


@case(
    make=lambda: ps.vmap2(Counter.__call__),
    args=lambda: (counter(4), jnp.arange(4.0)),
)
def a_state_per_lane(model, xs):
    count, ys = jax.vmap(_count)(model.count.value, xs)
    return ys, Counter(ps.ShortTermState(count))


@case(
    make=lambda: ps.vmap2(Counter.__call__, in_axes=(1, 0), out_axes=1),
    args=lambda: (counter(2, 3), jnp.arange(3.0)),
)
def axis_one(model, xs):
    count, ys = jax.vmap(_count, in_axes=(1, 0), out_axes=1)(model.count.value, xs)
    return ys, Counter(ps.ShortTermState(count))


@case(
    make=lambda: ps.vmap2(Counter.__call__, in_axes=(-1, 0), out_axes=-1),
    args=lambda: (counter(2, 3), jnp.arange(3.0)),
)
def negative_axis(model, xs):
    count, ys = jax.vmap(_count, in_axes=(-1, 0), out_axes=-1)(model.count.value, xs)
    return ys, Counter(ps.ShortTermState(count))


@case(
    make=lambda: ps.vmap2(Counter.__call__),
    args=lambda: (Counter(ps.ShortTermState(jnp.zeros((0, 2)))), jnp.zeros((0,))),
    mapping=False,
)
def no_lanes(model, xs):
    count, ys = jax.vmap(_count)(model.count.value, xs)
    return ys, Counter(ps.ShortTermState(count))


# Bound modules: broadcast, unless a filter maps their states -----------------------------------------


@case(
    make=lambda: ps.vmap2(LAYER, state_in_axes={0: ps.HiddenState}),
    args=lambda: (jr.normal(jr.key(0), (4, 3)),),
    unwritten=lambda model: (model.weight, model.steps),
)
def a_module_shared_but_for_its_hidden_state(xs):
    model = LAYER

    def lane(w, h, x):
        h = jnp.tanh(w @ h + x)
        return h, h

    ys, hidden = jax.vmap(lane, in_axes=(None, 0, 0))(model.weight.value, model.hidden.value, xs)
    return ys, eqx.tree_at(lambda m: m.hidden, model, ps.HiddenState(hidden))


@case(
    make=lambda: ps.vmap2(LAYER.__call__, state_in_axes={0: ps.filter.PathContains("hidden")}),
    args=lambda: (jr.normal(jr.key(0), (4, 3)),),
)
def a_bound_method(xs):
    return a_module_shared_but_for_its_hidden_state(xs)


@case(
    make=lambda: ps.vmap2(jtu.Partial(Counter.__call__, COUNTER), state_in_axes={0: ps.ShortTermState}),
    args=lambda: (jnp.arange(4.0),),
)
def a_partial(xs):
    ys, model = a_state_per_lane(COUNTER, xs)
    return ys, jtu.Partial(Counter.__call__, model)


class Decorated(eqx.Module):
    total: ps.State

    @ps.vmap2(state_out_axes={ft.partial(jnp.sum, axis=0): ps.State})
    def add(self, x):
        tick()
        self.total.value = self.total.value + x
        return x


@case(make=lambda: Decorated(ps.State(1.0)).add, args=lambda: (jnp.arange(3.0),))
def a_decorated_method_with_a_reducer(xs):
    totals, ys = jax.vmap(lambda t, x: (t + x, x), in_axes=(None, 0))(jnp.float32(1), xs)
    return ys, Decorated(ps.State(jnp.sum(totals, axis=0)))


# Reading only ---------------------------------------------------------------------------------------


def read(model, x):
    tick()
    return model.weight.value @ x


@case(
    make=lambda: ps.vmap2(read, in_axes=(None, 0)),
    args=lambda: (layer(), jr.normal(jr.key(0), (4, 3))),
    unwritten=lambda model: model,
)
def inference(model, xs):
    return jax.vmap(lambda w, x: w @ x, in_axes=(None, 0))(model.weight.value, xs), model


def read_scaled(model, x, *, gain):
    tick()
    return model.weight.value @ x * gain


@case(
    make=lambda: ps.vmap2(read_scaled, in_axes={"model": None, "x": 1, "gain": 0}, out_axes=1),
    args=lambda: (layer(), jr.normal(jr.key(0), (3, 4))),
    kwargs=lambda: {"gain": jnp.arange(4.0)},
    unwritten=lambda model: model,
)
def axes_by_argument_name(model, xs, gain):
    def lane(w, x, g):
        return w @ x * g

    ys = jax.vmap(lane, in_axes=(None, 1, 0), out_axes=1)(model.weight.value, xs, gain)
    return ys, model


# How written states come back -----------------------------------------------------------------------


def count_calls(model, x):
    tick()
    model["calls"].value = model["calls"].value + 1
    return x * model["calls"].value


@case(
    make=lambda: ps.vmap2(count_calls, in_axes=(None, 0)),
    args=lambda: ({"calls": ps.State(0)}, jnp.arange(3.0)),
)
def the_same_in_all_lanes(model, xs):
    def lane(c, x):
        c = c + 1
        return x * c, c

    ys, calls = jax.vmap(lane, in_axes=(None, 0), out_axes=(0, None))(model["calls"].value, xs)
    return ys, {"calls": ps.State(calls)}


def keep_last(model, x):
    tick()
    model["last"].value = model["last"].value + x


@case(
    make=lambda: ps.vmap2(keep_last, in_axes=(None, 0), unexpected_out_state_mapping="ignore"),
    args=lambda: ({"last": ps.State(1.0)}, jnp.arange(3.0)),
    commutes=False,
)
def an_undeclared_write_ignored(model, xs):
    last = jax.vmap(lambda c, x: c + x, in_axes=(None, 0))(model["last"].value, xs)
    return None, {"last": ps.State(last)}


@case(
    make=lambda: ps.vmap2(
        Norm.__call__,
        in_axes=(None, 0),
        axis_name="batch",
        state_out_axes={None: ps.BatchState},
    ),
    args=lambda: (Norm(ps.BatchState(jnp.zeros(3)), jnp.ones(3)), jr.normal(jr.key(0), (4, 3))),
    collective=True,
    unwritten=lambda model: model.gain,
)
def statistics_by_a_collective(model, xs):
    def lane(mean, gain, x):
        batch_mean = jax.lax.pmean(x, "batch")
        return 0.9 * mean + 0.1 * batch_mean, (x - batch_mean) * gain

    mean, ys = jax.vmap(lane, in_axes=(None, None, 0), out_axes=(None, 0), axis_name="batch")(
        model.mean.value, model.gain, xs
    )
    return ys, Norm(ps.BatchState(mean), model.gain)


def remember(model, x):
    tick()
    model["seen"].value = x
    model["pair"].value = {"a": x, "b": model["pair"].value["b"] + x}
    return model["pair"].value


@case(
    make=lambda: ps.vmap2(
        remember, in_axes=(None, 0), state_in_axes={0: "paired"}, state_out_axes={0: ps.State}
    ),
    args=lambda: (
        {
            "seen": ps.State(),
            "pair": ps.State({"a": jnp.zeros(3), "b": jnp.ones(3)}, tag="paired"),
        },
        jnp.arange(3.0),
    ),
)
def containers_and_empty_states(model, xs):
    seen, pair = jax.vmap(lambda b, x: (x, {"a": x, "b": b + x}))(model["pair"].value["b"], xs)
    return pair, {"seen": ps.State(seen), "pair": ps.State(pair, tag="paired")}


@case(
    make=lambda: ps.vmap2(lambda a, b, x: (tick(), a(x), b(x))[1:], in_axes=(0, 0, 0)),
    args=lambda: (counter(3), counter(3), jnp.arange(3.0)),
    argnums=(0, 1),
    commutes=False,
    runs=3,
)
def two_carriers(a, b, xs):
    ys, a = a_state_per_lane(a, xs)
    zs, b = a_state_per_lane(b, xs)
    return (ys, zs), (a, b)


# States in the output -------------------------------------------------------------------------------


def construct(key, scale):
    tick()
    return {
        "w": ps.ParamState(jr.normal(key, (2,)) * scale),
        "shared": ps.NonBatchState(jnp.arange(2)),
        "name": "net",
        "static": eqx.nn.Dropout(0.5),
    }


@case(
    make=lambda: ps.vmap2(construct, state_out_axes={1: ps.ParamState}),
    args=lambda: (jr.split(jr.key(0), 3), jnp.arange(3.0)),
    commutes=False,
    unwritten=lambda keys: keys,
)
def a_mapped_constructor(keys, scales):
    w = jax.vmap(lambda k, s: jr.normal(k, (2,)) * s, out_axes=1)(keys, scales)
    made = {
        "w": ps.ParamState(w),
        "shared": ps.NonBatchState(jnp.arange(2)),
        "name": "net",
        "static": eqx.nn.Dropout(0.5),
    }
    return made, keys
