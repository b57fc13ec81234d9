"""Cases of mappings in mappings, of JAX inside a lane, and of `pure` alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import pstate as ps
from laws.models import Counter, Layer, Norm, _count, counter, draw, layer
from laws.table import case, tick


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
