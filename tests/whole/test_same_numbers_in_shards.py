"""A network trained by `shard_map2` in three ways: the numbers of lanes on one device, masks bit
for bit.

Gradients in a body are those of its shard, as under `jax.pmap` and `jax.vmap`: they are averaged
over `data`, and over `model` too, where each shard has computed the whole loss.
"""

import re
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

import pstate as ps


STEPS = 20
OPTIM = optax.adam(1e-2)
HIDDEN = 32


class Net(eqx.Module):
    """Batch normalisation and dropout; the weights of one shard, of those that `way` cuts."""

    inner: ps.ParamState
    outer: ps.ParamState
    mean: ps.BatchState
    dropout: ps.nn.Dropout
    way: str = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        inner, outer = whole(self.way, self.inner.value), whole(self.way, self.outer.value)
        hidden = x @ inner
        mean = lax.pmean(hidden.mean(axis=0), "data")
        self.mean.value = 0.9 * self.mean.value + 0.1 * mean
        mask = own_columns(self.way, self.dropout(jnp.ones((x.shape[0], HIDDEN))))
        return together(self.way, (jax.nn.relu(hidden - mean) * mask) @ outer), mask


def whole(way: str, weight: Any) -> Any:
    """Weights that are cut over `data` are gathered where they are needed."""
    return lax.all_gather(weight, "data", tiled=True) if way == "fully sharded" else weight


def own_columns(way: str, mask: Any) -> Any:
    """Shards at the same place along `data` share a key, draw one mask, and take their columns of
    it."""
    if way != "data and model":
        return mask
    return lax.dynamic_slice_in_dim(mask, lax.axis_index("model") * HIDDEN // 2, HIDDEN // 2, 1)


def together(way: str, out: Any) -> Any:
    return lax.psum(out, "model") if way == "data and model" else out


def average(way: str, value: Any, grads: Any) -> Any:
    if way == "fully sharded":  # what was gathered comes back summed
        return lax.pmean(value, "data"), jax.tree.map(lambda g: g / 4, grads)
    grads = lax.pmean(grads, "data")
    if way == "data and model":
        grads = jax.tree.map(lambda g: g / 2, grads)
    return lax.pmean(value, "data"), grads


def cross_entropy(out: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


def loss(net: Net, x: Any, y: Any) -> Any:
    out, mask = net(x)
    return cross_entropy(out, y), mask


def averaged(net: Net, x: Any, y: Any) -> Any:
    """What a shard, or a lane, computes: the loss of the batch, its gradient, and its own mask."""
    (value, mask), grads = ps.value_and_grad(loss, has_aux=True)(net, x, y)
    value, grads = average(net.way, value, {"inner": grads.inner.value, "outer": grads.outer.value})
    return value, grads, mask


DATA = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
BOTH = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
SAME = {"inner": P(), "outer": P()}
CUT = {"inner": P("data"), "outer": P("data")}
COLUMNS = {"inner": P(None, "model"), "outer": P("model")}
#: The mesh, the specs of the weights and of the mask, and of the statistics.
WAYS: dict[str, Any] = {
    "data in parallel": (DATA, SAME, P("data"), P()),
    "fully sharded": (DATA, CUT, P("data"), P()),
    "data and model": (BOTH, COLUMNS, P("data", "model"), P("model")),
}
inner, outer = ps.filter.PathContains("inner"), ps.filter.PathContains("outer")


def over_shards(way: str) -> Any:
    mesh, weights, mask, mean = WAYS[way]
    by_spec: dict[Any, Any] = {weights["inner"]: inner}
    by_spec[weights["outer"]] = (by_spec.pop(weights["outer"], None) or outer, outer)
    by_spec[mean] = (*by_spec[mean], ps.BatchState) if mean in by_spec else ps.BatchState
    return ps.shard_map2(
        averaged,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P(), weights, mask),
        state_in_specs=by_spec,
    )


def over_lanes(n: int) -> Any:
    lanes = ps.vmap2(averaged, in_axes=(None, 0, 0), out_axes=(None, None, 0), axis_name="data")

    def mapped(net: Net, x: Any, y: Any) -> Any:
        cut = lambda a: a.reshape(n, -1, *a.shape[1:])
        value, grads, mask = lanes(net, cut(x), cut(y))
        return value, grads, mask.reshape(-1, HIDDEN)

    return mapped


def start(way: str) -> Net:
    one, two, three = jr.split(jr.key(0), 3)
    return Net(
        ps.ParamState(jr.normal(one, (16, HIDDEN)) / 4),
        ps.ParamState(jr.normal(two, (HIDDEN, 4)) / 6),
        ps.BatchState(jnp.zeros(HIDDEN)),
        ps.nn.Dropout(0.25, key=three),
        way,
    )


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    draw = lambda: (rng.normal(size=(8, 16)).astype(np.float32), rng.integers(4, size=8))
    return [draw() for _ in range(STEPS)]


def trained(way: str, gradients: Any) -> tuple[list[float], list[Any], Net]:
    """The losses, the dropout masks, and the network at the end."""

    @ps.jit
    def step(net: Net, opt: Any, x: Any, y: Any) -> Any:
        (value, grads, mask), net = ps.pure(gradients)(net, x, y)
        updates, opt = OPTIM.update(grads, opt)
        new = {(name,): getattr(net, name).value + updates[name] for name in grads}
        return value, mask, ps.update(net, new), opt

    net = start(way)
    opt = OPTIM.init({"inner": net.inner.value, "outer": net.outer.value})
    losses, masks = [], []
    for x, y in batches():
        value, mask, net, opt = step(net, opt, x, y)
        losses.append(float(value))
        masks.append(np.asarray(mask))
    return losses, masks, net


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers(way: str):
    """Twenty steps give the losses and the statistics of lanes on one device, and their masks bit
    for bit."""
    n = WAYS[way][0].shape["data"]
    losses, masks, net = trained("data in parallel", over_lanes(n))
    others, other_masks, other = trained(way, over_shards(way))
    np.testing.assert_allclose(others, losses, rtol=2e-4)
    np.testing.assert_allclose(other.mean.value, net.mean.value, rtol=1e-3, atol=1e-5)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(masks, other_masks, strict=True))
    assert (jr.key_data(net.dropout.rng.value) == jr.key_data(other.dropout.rng.value)).all()
    assert len(set(losses)) == STEPS


# The hand-written twin -------------------------------------------------------------------------------


def by_hand(way: str) -> Any:
    mesh, weights, mask_spec, mean_spec = WAYS[way]
    n = mesh.shape["data"]

    def raw_loss(params: Any, mean: Any, key: Any, x: Any, y: Any) -> Any:
        hidden = x @ whole(way, params["inner"])
        batch_mean = lax.pmean(hidden.mean(axis=0), "data")
        keep = jr.bernoulli(jr.split(key)[1], 0.75, (x.shape[0], HIDDEN))
        mask = own_columns(way, jnp.where(keep, 1 / 0.75, 0.0))
        out = together(way, (jax.nn.relu(hidden - batch_mean) * mask) @ whole(way, params["outer"]))
        return cross_entropy(out, y), (0.9 * mean + 0.1 * batch_mean, mask)

    def shard(params: Any, mean: Any, key: Any, x: Any, y: Any) -> Any:
        keys = jr.split(key, n + 1)
        own = keys[1:][lax.axis_index("data")]
        gradient = jax.value_and_grad(raw_loss, has_aux=True)
        (value, (mean, mask)), grads = gradient(params, mean, own, x, y)
        return *average(way, value, grads), mask, mean, keys[0]

    specs = (weights, mean_spec, P(), P("data"), P("data"))
    out_specs = (P(), weights, mask_spec, mean_spec, P())
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False))


COLLECTIVES = r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def collectives(text: Any) -> Counter[str]:
    return Counter(re.findall(COLLECTIVES, text))


@pytest.mark.parametrize("way", WAYS)
def test_the_collectives_of_the_twin(way: str):
    """The compiled program has as many of each collective as the one that was written by hand."""
    net = start(way)
    x, y = batches()[0]
    ours = ps.pure(over_shards(way)).lower(net, x, y).compile().as_text()
    params = {"inner": net.inner.value, "outer": net.outer.value}
    args = params, net.mean.value, net.dropout.rng.value, x, y
    raw = by_hand(way).lower(*args).compile().as_text()
    assert collectives(ours) == collectives(raw)
    assert collectives(ours)["all-reduce"] > 0
    assert (collectives(ours)["all-gather"] > 0) == (way == "fully sharded")
