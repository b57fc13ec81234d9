"""The table of cases over which the laws run.

Each case is a stateful function, the options of its mapping, arguments, and a twin: the same
computation threaded by hand through raw JAX. A new feature is finished when it stands here.
"""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu

import pstate as ps


#: Bodies call `tick` when they run, so that a law can count how often they are traced.
_ticks: list[None] = []


def tick() -> None:
    _ticks.append(None)


def ticks() -> int:
    return len(_ticks)


@dataclasses.dataclass(frozen=True)
class Case:
    """A stateful function with its twin.

    `make` gives the function under test, freshly wrapped; `args` its arguments; `twin(*args)` returns
    what `ps.pure(make())(*args)` must return. `mapping` says that `make` gives a mapping, so that the
    lane laws apply. `runs` is how often the body runs in a call that is cold, `warm` in one that is not;
    `same_program` says that the twin goes through the same JAX transform. `unwritten` picks, from the
    updated tree, what nobody wrote.
    """

    name: str
    make: Callable[[], Any]
    args: Callable[[], tuple[Any, ...]]
    twin: Callable[..., Any]
    kwargs: Callable[[], dict[str, Any]] = dict
    argnums: Any = None
    mapping: bool = True
    collective: bool = False
    commutes: bool = True
    runs: int = 1
    warm: int = 0
    same_program: bool = True
    unwritten: Callable[[Any], Any] = lambda tree: None

    def pure(self) -> Any:
        return ps.pure(self.make(), argnums=self.argnums)


CASES: list[Case] = []


def case(**fields: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put a case into the table; the decorated function is its twin and gives it its name."""

    def add(twin: Callable[..., Any]) -> Callable[..., Any]:
        CASES.append(Case(name=twin.__name__, twin=twin, **fields))
        return twin

    return add


# Models ---------------------------------------------------------------------------------------------


class Counter(eqx.Module):
    count: ps.ShortTermState

    def __call__(self, delta: Any) -> Any:
        tick()
        self.count.value = self.count.value + delta
        return self.count.value * 2


class Layer(eqx.Module):
    weight: ps.ParamState
    hidden: ps.HiddenState
    steps: ps.NonBatchState

    def __call__(self, x: Any) -> Any:
        tick()
        self.hidden.value = jnp.tanh(self.weight.value @ self.hidden.value + x)
        return self.hidden.value


def counter(*shape: int) -> Counter:
    return Counter(ps.ShortTermState(jnp.arange(1.0, 1 + jnp.prod(jnp.array(shape))).reshape(shape)))


def layer(*lead: int) -> Layer:
    return Layer(
        ps.ParamState(jr.normal(jr.key(3), (3, 3))),
        ps.HiddenState(jr.normal(jr.key(4), (*lead, 3))),
        ps.NonBatchState(jnp.int32(7)),
    )


# Modules that functions are bound to; made once, so that making them is no part of any program.
COUNTER = counter(4)
LAYER = layer(4)


def _count(count, delta):
    """What `Counter` does, by hand."""
    count = count + delta
    return count, count * 2


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


# Bound modules: broadcast, until a filter speaks -----------------------------------------------------


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


class Norm(eqx.Module):
    mean: ps.BatchState
    gain: jax.Array

    def __call__(self, x):
        tick()
        batch_mean = jax.lax.pmean(x, "batch")
        self.mean.value = 0.9 * self.mean.value + 0.1 * batch_mean
        return (x - batch_mean) * self.gain


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


# Random states --------------------------------------------------------------------------------------


def draw(rng, scale):
    tick()
    return rng.normal(0.0, scale)


def _draw_by_hand(key, scale):
    _, own = jr.split(key)
    return 0.0 + scale * jr.normal(own, ())


@case(
    make=lambda: ps.vmap2(draw),
    args=lambda: (ps.RandomState(0), jnp.arange(4.0)),
    commutes=False,
)
def a_key_per_lane(rng, scales):
    keys = jr.split(rng.value, 5)
    kept = keys[0]

    def lane(key, scale):
        kept, own = jr.split(key)
        return 0.0 + scale * jr.normal(own, ()), kept

    ys, _ = jax.vmap(lane)(keys[1:], scales)
    return ys, ps.RandomState(kept)


@case(
    make=lambda: ps.vmap2(draw),
    args=lambda: (ps.RandomState(jr.PRNGKey(0)), jnp.arange(4.0)),
    commutes=False,
)
def a_raw_key_per_lane(rng, scales):
    return a_key_per_lane(rng, scales)


@case(
    make=lambda: ps.vmap2(draw, state_in_axes={None: ps.RandomState}, in_axes=(0, 0)),
    args=lambda: (ps.RandomState(0), jnp.arange(4.0)),
)
def one_key_for_all(rng, scales):
    def lane(key, scale):
        kept, own = jr.split(key)
        return 0.0 + scale * jr.normal(own, ()), kept

    ys, kept = jax.vmap(lane, in_axes=(None, 0), out_axes=(0, None))(rng.value, scales)
    return ys, ps.RandomState(kept)


@case(
    make=lambda: ps.vmap2(draw),
    args=lambda: (ps.RandomState(jr.split(jr.key(1), 4)), jnp.arange(4.0)),
)
def a_batch_of_keys(rng, scales):
    def lane(key, scale):
        kept, own = jr.split(key)
        return 0.0 + scale * jr.normal(own, ()), kept

    ys, kept = jax.vmap(lane)(rng.value, scales)
    return ys, ps.RandomState(kept)


def never_draws(rng, x):
    tick()
    return x + 1


@case(
    make=lambda: ps.vmap2(never_draws),
    args=lambda: (ps.RandomState(0), jnp.arange(4.0)),
    unwritten=lambda rng: rng,
)
def nothing_drawn(rng, xs):
    return jax.vmap(lambda x: x + 1)(xs), rng


# Mappings in mappings -------------------------------------------------------------------------------


@case(
    make=lambda: ps.vmap2(ps.vmap2(Counter.__call__), in_axes=(1, 0), out_axes=1),
    args=lambda: (counter(2, 3), jnp.ones((3, 2))),
)
def nested(model, xs):
    count, ys = jax.vmap(jax.vmap(_count), in_axes=(1, 0), out_axes=1)(model.count.value, xs)
    return ys, Counter(ps.ShortTermState(count))


@case(
    make=lambda: ps.vmap2(ps.vmap2(draw)),
    args=lambda: (ps.RandomState(0), jnp.ones((2, 3))),
    commutes=False,
)
def nested_draws(rng, scales):
    outer = jr.split(rng.value, 3)
    kept = outer[0]

    def row(key, scales):
        inner = jr.split(key, 4)
        inner_kept = inner[0]

        def lane(key, scale):
            kept, own = jr.split(key)
            return 0.0 + scale * jr.normal(own, ()), kept

        ys, _ = jax.vmap(lane)(inner[1:], scales)
        return ys, inner_kept

    ys, _ = jax.vmap(row)(outer[1:], scales)
    return ys, ps.RandomState(kept)


class Net(eqx.Module):
    layers: list[Layer]
    norm: Norm

    def __call__(self, x):
        for one in self.layers:
            x = one(x)
        return self.norm(x)


NET = Net([layer(4), layer(4)], Norm(ps.BatchState(jnp.zeros(3)), jnp.ones(3)))


@case(
    make=lambda: ps.vmap2(
        NET,
        state_in_axes={0: ps.HiddenState},
        axis_name="batch",
    ),
    args=lambda: (jr.normal(jr.key(0), (4, 3)),),
    collective=True,
    runs=3,
    unwritten=lambda net: [(one.weight, one.steps) for one in net.layers],
)
def a_network(xs):
    layers = NET.layers

    def lane(ws, hs, mean, gain, x):
        new = []
        for w, h in zip(ws, hs, strict=True):
            x = jnp.tanh(w @ h + x)
            new.append(x)
        batch_mean = jax.lax.pmean(x, "batch")
        return (x - batch_mean) * gain, new, 0.9 * mean + 0.1 * batch_mean

    ys, hidden, mean = jax.vmap(
        lane, in_axes=(None, 0, None, None, 0), out_axes=(0, 0, None), axis_name="batch"
    )(
        [one.weight.value for one in layers],
        [one.hidden.value for one in layers],
        NET.norm.mean.value,
        NET.norm.gain,
        xs,
    )
    layers = [
        eqx.tree_at(lambda m: m.hidden, one, ps.HiddenState(h))
        for one, h in zip(layers, hidden, strict=True)
    ]
    return ys, Net(layers, Norm(ps.BatchState(mean), NET.norm.gain))


# JAX inside a lane ----------------------------------------------------------------------------------


def loss(model, x):
    y = model(x)
    return jnp.sum(y**2)


def gradient_in_a_lane(model, x):
    tick()
    diff, static = eqx.partition(model, ps.select(model))

    def objective(diff):
        return ps.pure(loss)(eqx.combine(diff, static), x)

    (value, new), grads = jax.value_and_grad(objective, has_aux=True)(diff)
    model.hidden.value = new.hidden.value
    return value, grads.weight.value


@case(
    make=lambda: ps.vmap2(gradient_in_a_lane, in_axes=(None, 0), state_in_axes={0: ps.HiddenState}),
    args=lambda: (layer(4), jr.normal(jr.key(0), (4, 3))),
    runs=2,
)
def gradients_inside(model, xs):
    def lane(w, h, x):
        def objective(w):
            new = jnp.tanh(w @ h + x)
            return jnp.sum(new**2), new

        (value, new), grad = jax.value_and_grad(objective, has_aux=True)(w)
        return (value, grad), new

    out, hidden = jax.vmap(lane, in_axes=(None, 0, 0))(model.weight.value, model.hidden.value, xs)
    return out, eqx.tree_at(lambda m: m.hidden, model, ps.HiddenState(hidden))


def steps_in_a_lane(model, xs):
    tick()
    # The loop carries the state that changes, and rebuilds the model around it.
    frozen = ps.freeze(model)

    def step(states, x):
        y, new = ps.pure(Counter.__call__)(ps.update(frozen, states), x)
        return ps.states(new, ps.ShortTermState), y

    states, ys = jax.lax.scan(step, ps.states(frozen, ps.ShortTermState), xs)
    ps.update(model, states)
    return ys


@case(
    make=lambda: ps.vmap2(steps_in_a_lane),
    args=lambda: (counter(4), jnp.ones((4, 6))),
    runs=2,
)
def a_scan_inside(model, xs):
    def lane(c, xs):
        return jax.lax.scan(_count, c, xs)

    count, ys = jax.vmap(lane)(model.count.value, xs)
    return ys, Counter(ps.ShortTermState(count))


def through_equinox(norm, x):
    tick()
    return norm(x)


@case(
    make=lambda: ps.vmap2(through_equinox, in_axes=(None, 0), axis_name="batch"),
    args=lambda: (
        ps.nn.from_equinox(eqx.nn.BatchNorm, 3, axis_name="batch", mode="batch"),
        jr.normal(jr.key(0), (4, 3)),
    ),
    collective=True,
)
def a_layer_of_equinox(norm, xs):
    table = norm.state.value
    state = eqx.nn.State.tree_unflatten(tuple(table), tuple(table.values()))
    ys, state = jax.vmap(norm.layer, (0, None), (0, None), axis_name="batch")(xs, state)
    values, markers = state.tree_flatten()
    new = ps.BatchState(dict(zip(markers, values, strict=True)))
    return ys, eqx.tree_at(lambda m: m.state, norm, new)


# `pure` alone ---------------------------------------------------------------------------------------


@case(
    make=lambda: Counter.__call__,
    args=lambda: (counter(2), jnp.float32(3)),
    mapping=False,
    commutes=False,
    warm=1,
)
def pure_alone(model, x):
    count = model.count.value + x
    return count * 2, Counter(ps.ShortTermState(count))


def through_shared(model, x):
    tick()
    layers = model()
    layers[0].count.value = layers[0].count.value + x
    return layers[1].count.value


def tied() -> Any:
    both = [counter(2), counter(2)]
    return eqx.nn.Shared(both, lambda m: m[1].count, lambda m: m[0].count)


@case(
    make=lambda: through_shared,
    args=lambda: (tied(), jnp.float32(3)),
    mapping=False,
    commutes=False,
    warm=1,
)
def sharing_on_purpose(model, x):
    count = model.pytree[0].count.value + x
    return count, eqx.tree_at(lambda m: m.pytree[0].count.value, model, count)


def nested_recordings(model, x):
    tick()
    y, isolated = ps.pure(Counter.__call__)(model, x)
    before = model.count.value
    model.count.value = isolated.count.value * 10
    return y, before


@case(
    make=lambda: nested_recordings,
    args=lambda: (counter(2), jnp.float32(3)),
    mapping=False,
    warm=2,
    commutes=False,
    runs=2,
)
def recordings_in_recordings(model, x):
    count = model.count.value
    new = count + x
    return (new * 2, count), Counter(ps.ShortTermState(new * 10))
