"""Transforms as pairs: how a model uses one, and its twin, threaded by hand through raw JAX.

A stateful function here takes `(model, x)` and returns a number, and so does every transform of one; a
twin takes `(values, x)`, the values of the model's states as a dict, and returns `(y, values)`. So
transforms of both sides can be put into one another in any order.
"""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import PartitionSpec as P

import pstate as ps
from laws.cases import Case, tick
from pstate._ground.versions import SHARED_OUTPUTS


Stateful = Callable[[Any, Any], Any]
ByHand = Callable[[dict[str, Any], Any], tuple[Any, dict[str, Any]]]


class Model(eqx.Module):
    """What every transform here is about: a state that is written, one that is drawn from, one to train.

    The last is never touched, and the activation is not an array.
    """

    count: ps.ShortTermState
    weight: ps.ParamState
    rng: ps.RandomState
    untouched: ps.LongTermState
    activation: Callable[[Any], Any] = jnp.sin


def model() -> Model:
    return Model(
        ps.ShortTermState(jnp.float32(0.5)),
        ps.ParamState(jnp.float32(1.5)),
        ps.RandomState(7),
        ps.LongTermState(jnp.arange(3)),
    )


def values(model: Model) -> dict[str, Any]:
    return {"count": model.count.value, "weight": model.weight.value, "key": model.rng.value}


def body(model: Model, x: Any) -> Any:
    """The innermost function."""
    tick()
    model.count.value = 0.5 * model.count.value + x
    return model.activation(model.count.value) * model.weight.value + 0.1 * model.rng.normal()


def body_by_hand(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
    tick()
    count = 0.5 * values["count"] + x
    key, own = jr.split(values["key"])
    y = jnp.sin(count) * values["weight"] + 0.1 * (0.0 + 1.0 * jr.normal(own, ()))
    return y, {**values, "count": count, "key": key}


@dataclasses.dataclass(frozen=True)
class Using:
    """A transform in use.

    `by_jax` says that the twin goes through the same JAX transform, so that programs can be compared;
    `reverse` and `forward` that it can be differentiated in these modes.
    """

    name: str
    wrap: Callable[[Stateful], Stateful]
    by_hand: Callable[[ByHand], ByHand]
    by_jax: bool = True
    reverse: bool = True
    forward: bool = True


USES: list[Using] = []


def use(by_hand: Callable[[ByHand], ByHand], **fields: Any) -> Callable[..., Any]:
    """Put a transform into the table; the decorated function uses it and gives it its name."""

    def add(wrap: Callable[[Stateful], Stateful]) -> Callable[[Stateful], Stateful]:
        USES.append(Using(wrap.__name__, wrap, by_hand, **fields))
        return wrap

    return add


@use(lambda g: jax.jit(g))
def jit(f: Stateful) -> Stateful:
    return ps.jit(f)


@use(lambda g: jax.checkpoint(g))
def checkpoint(f: Stateful) -> Stateful:
    return ps.checkpoint(f)


MEAN = {ft.partial(jnp.mean, axis=0): ps.ShortTermState}


def _lanes_by_hand(g: ByHand, lanes: int) -> ByHand:
    def mapped(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        keys = jr.split(values["key"], lanes + 1)
        axes = {"count": None, "weight": None, "key": 0}
        xs = x + jnp.arange(float(lanes))

        def lane(values: dict[str, Any], x: Any) -> tuple[Any, Any]:
            y, new = g(values, x)
            return y, new["count"]

        ys, counts = jax.vmap(lane, in_axes=(axes, 0))({**values, "key": keys[1:]}, xs)
        return jnp.sum(ys), {**values, "count": jnp.mean(counts, axis=0), "key": keys[0]}

    return mapped


def _over_lanes(mapped: Stateful, lanes: int) -> Stateful:
    return lambda model, x: jnp.sum(mapped(model, x + jnp.arange(float(lanes))))


@use(ft.partial(_lanes_by_hand, lanes=3))
def vmap2(f: Stateful) -> Stateful:
    return _over_lanes(ps.vmap2(f, in_axes=(None, 0), state_out_axes=MEAN), 3)


# Two lanes, so that one may stand in another on four devices.
@use(ft.partial(_lanes_by_hand, lanes=2), by_jax=False)
def pmap2(f: Stateful) -> Stateful:
    return _over_lanes(ps.pmap2(f, in_axes=(None, 0), state_out_axes=MEAN), 2)


@use(ft.partial(_lanes_by_hand, lanes=3), by_jax=False)
def chunked(f: Stateful) -> Stateful:
    return _over_lanes(ps.vmap2(f, in_axes=(None, 0), state_out_axes=MEAN, chunk_size=2), 3)


def _mesh() -> Any:
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=auto)


def _free_axis() -> str:
    """The mesh axis that no mapping around this takes, so that one may stand in another."""
    return "model" if "data" in jax.sharding.get_abstract_mesh().manual_axes else "data"


def _shards_by_hand(g: ByHand) -> ByHand:
    def mapped(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        name = _free_axis()

        def shard(values: dict[str, Any], x: Any) -> Any:
            keys = jr.split(values["key"], 3)
            own = jax.lax.dynamic_index_in_dim(keys[1:], jax.lax.axis_index(name), keepdims=False)
            y, new = g({**values, "key": own}, x[0])
            return y[None], jax.lax.pmean(new["count"], name), keys[0]

        shards = jax.shard_map(
            shard,
            mesh=_mesh() if name == "data" else None,
            in_specs=(P(), P(name)),
            out_specs=(P(name), P(), P()),
            axis_names={name},
            check_vma=False,
        )
        with jax.disable_jit(False):  # JAX runs no mapping over some of the axes uncompiled
            ys, count, key = jax.jit(shards)(values, x + jnp.arange(2.0))
        return jnp.sum(ys), {**values, "count": count, "key": key}

    return mapped


@use(_shards_by_hand)
def shard_map2(f: Stateful) -> Stateful:
    def shard(model: Model, x: Any) -> Any:
        return f(model, x[0])[None]

    def mapped(model: Model, x: Any) -> Any:
        name = _free_axis()
        mapped = ps.shard_map2(
            shard,
            mesh=_mesh(),
            in_specs=(P(), P(name)),
            out_specs=P(name),
            state_out_specs={ft.partial(jax.lax.pmean, axis_name=name): ps.ShortTermState},
            axis_names=name,
        )
        return jnp.sum(mapped(model, x + jnp.arange(2.0)))

    return mapped


def _gradient_by_hand(g: ByHand) -> ByHand:
    def differentiated(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        of_weight = lambda weight: g({**values, "weight": weight}, x)
        (y, new), gradient = jax.value_and_grad(of_weight, has_aux=True)(values["weight"])
        return y + gradient, {**new, "weight": values["weight"]}

    return differentiated


@use(_gradient_by_hand)
def grad(f: Stateful) -> Stateful:
    def differentiated(model: Model, x: Any) -> Any:
        y, gradient = ps.value_and_grad(f)(model, x)
        return y + gradient.weight.value

    return differentiated


def _jacobian_by_hand(g: ByHand) -> ByHand:
    def differentiated(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        of_weight = lambda weight: g({**values, "weight": weight}, x)
        jacobian, new = jax.jacfwd(of_weight, has_aux=True)(values["weight"])
        return jacobian, {**new, "weight": values["weight"]}

    return differentiated


@use(_jacobian_by_hand)
def jacfwd(f: Stateful) -> Stateful:
    return lambda model, x: ps.jacfwd(f)(model, x).weight.value


def _scan_by_hand(g: ByHand) -> ByHand:
    def scanned(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        weight = values["weight"]

        def step(carry: Any, x: Any) -> Any:
            (count, key), total = carry
            y, new = g({"count": count, "weight": weight, "key": key}, x)
            return ((new["count"], new["key"]), total + y), 2 * y

        init = ((values["count"], values["key"]), jnp.zeros(()))
        ((count, key), total), ys = jax.lax.scan(step, init, x + jnp.arange(3.0))
        return total + jnp.sum(ys), {**values, "count": count, "key": key}

    return scanned


@use(_scan_by_hand)
def scan(f: Stateful) -> Stateful:
    def step(model: Model, total: Any, x: Any) -> Any:
        y = f(model, x)
        return total + y, 2 * y

    def scanned(model: Model, x: Any) -> Any:
        total, ys = ps.scan(ft.partial(step, model), jnp.zeros(()), x + jnp.arange(3.0))
        return total + jnp.sum(ys)

    return scanned


def _while_by_hand(g: ByHand) -> ByHand:
    def looped(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def go_on(carry: Any) -> Any:
            (count, _), (i, _) = carry
            return (i < 2) & (count < 1e6)

        def step(carry: Any) -> Any:
            (count, key), (i, total) = carry
            y, new = g({**values, "count": count, "key": key}, x)
            return (new["count"], new["key"]), (i + 1, total + y)

        init = ((values["count"], values["key"]), (0, jnp.zeros(())))
        (count, key), (_, total) = jax.lax.while_loop(go_on, step, init)
        return total, {**values, "count": count, "key": key}

    return looped


@use(_while_by_hand, reverse=False)
def while_loop(f: Stateful) -> Stateful:
    def go_on(model: Model, carry: Any) -> Any:
        return (carry[0] < 2) & (model.count.value < 1e6)

    def step(model: Model, x: Any, carry: Any) -> Any:
        i, total = carry
        return i + 1, total + f(model, x)

    def looped(model: Model, x: Any) -> Any:
        bound = ft.partial(go_on, model), ft.partial(step, model, x)
        return ps.while_loop(*bound, (0, jnp.zeros(())))[1]

    return looped


def _cond_by_hand(g: ByHand) -> ByHand:
    def chosen(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        weight = values["weight"]

        def other(count: Any, key: Any, x: Any) -> Any:
            return x, (2 * count, key)

        def first(count: Any, key: Any, x: Any) -> Any:
            y, new = g({"count": count, "weight": weight, "key": key}, x)
            return y, (new["count"], new["key"])

        y, (count, key) = jax.lax.cond(x > 0.5, first, other, values["count"], values["key"], x)
        return y, {**values, "count": count, "key": key}

    return chosen


@use(_cond_by_hand)
def cond(f: Stateful) -> Stateful:
    def other(model: Model, x: Any) -> Any:
        model.count.value = 2 * model.count.value
        return x

    return lambda model, x: ps.cond(x > 0.5, f, other, model, x)


# Rules that are not what JAX would derive, so that a derivative shows whether they were used.


def _custom_vjp_by_hand(g: ByHand) -> ByHand:
    def ruled(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def flat(count: Any, weight: Any, key: Any, x: Any) -> Any:
            y, new = g({"count": count, "weight": weight, "key": key}, x)
            return y, new["count"], new["key"]

        def fwd(count: Any, weight: Any, key: Any, x: Any) -> Any:
            return flat(count, weight, key, x), (weight, x)

        def bwd(residuals: Any, cotangents: Any) -> Any:
            weight, x = residuals
            y, count, _ = cotangents
            return 0.25 * count + y, 3 * y * x, None, 2 * y * weight + count

        f = jax.custom_vjp(flat)
        f.defvjp(fwd, bwd, **SHARED_OUTPUTS)
        y, count, key = f(values["count"], values["weight"], values["key"], x)
        return y, {**values, "count": count, "key": key}

    return ruled


@use(_custom_vjp_by_hand, forward=False)
def custom_vjp(f: Stateful) -> Stateful:
    ruled = ps.custom_vjp(f)

    def fwd(model: Model, x: Any) -> Any:
        return f(model, x), (model, x)

    def bwd(residuals: Any, y: Any, written: Any) -> Any:
        model, x = residuals
        weight, count = model.weight, written[0].count.value
        zero = eqx.filter(model, lambda _: False)
        of_count, of_weight = ps.ShortTermState(0.25 * count + y), ps.ParamState(3 * y * x)
        of_model = eqx.tree_at(lambda m: (m.count, m.weight), zero, (of_count, of_weight))
        return of_model, 2 * y * weight.value + count

    ruled.defvjp(fwd, bwd)
    return ruled


def _custom_jvp_by_hand(g: ByHand) -> ByHand:
    def ruled(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        @jax.custom_jvp
        def flat(count: Any, weight: Any, key: Any, x: Any) -> Any:
            y, new = g({"count": count, "weight": weight, "key": key}, x)
            return y, new["count"], new["key"]

        @flat.defjvp
        def rule(primals: Any, tangents: Any) -> Any:
            _, weight, _, x = primals
            t_count, t_weight, _, t_x = tangents
            y, count, key = flat(*primals)
            t_y = 3 * t_weight * x + 2 * t_x * weight + t_count
            zero = np.zeros(key.shape, jax.dtypes.float0)
            return (y, count, key), (t_y, 0.25 * t_count + t_x, zero)

        y, count, key = flat(values["count"], values["weight"], values["key"], x)
        return y, {**values, "count": count, "key": key}

    return ruled


@use(_custom_jvp_by_hand)
def custom_jvp(f: Stateful) -> Stateful:
    ruled = ps.custom_jvp(f)

    @ruled.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        (model, x), (t_model, t_x) = primals, tangents
        weight, t_count = model.weight.value, t_model.count.value
        y = ruled(model, x)
        t_y = 3 * t_model.weight.value * x + 2 * t_x * weight + t_count
        zero = eqx.filter(t_model, lambda _: False)
        written = eqx.tree_at(lambda m: m.count, zero, ps.ShortTermState(0.25 * t_count + t_x))
        return y, t_y, (written, None)

    return ruled


# The laws over each of them -------------------------------------------------------------------------


def by_hand(*uses: Using) -> Callable[[Model, Any], tuple[Any, Model]]:
    """The twin of transforms in one another, the first outermost."""
    # A function of its own, because JAX remembers what it has traced.
    g = lambda values, x: body_by_hand(values, x)
    for use in reversed(uses):
        g = use.by_hand(g)

    def twin(model: Model, x: Any) -> tuple[Any, Model]:
        y, new = g(values(model), x)
        model = eqx.tree_at(lambda m: m.count, model, ps.ShortTermState(new["count"]))
        return y, eqx.tree_at(lambda m: m.rng, model, ps.RandomState(new["key"]))

    return twin


def stateful(*uses: Using) -> Stateful:
    """Transforms in one another, the first outermost, around a function of its own."""
    f = lambda model, x: body(model, x)
    for use in reversed(uses):
        f = use.wrap(f)
    return f


#: `pmap2` has laws of its own: JAX warns of it in a `jit`.
TRANSFORMED = [
    Case(
        name=f"{use.name}_of_a_body",
        make=ft.partial(stateful, use),
        args=lambda: (model(), jnp.float32(0.75)),
        twin=by_hand(use),
        mapping=False,
        commutes=False,
        warm=1 if use.name in ("checkpoint", "grad", "jacfwd", "custom_vjp", "custom_jvp") else 0,
        same_program=use.by_jax,
        unwritten=lambda model: (model.untouched, model.weight),
    )
    for use in USES
    if use.name != "pmap2"
]
