"""A network with batch normalisation, dropout and Optax: the same numbers, wherever its arrays live."""

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
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pstate as ps


STEPS = 20
OPTIM = optax.adam(1e-2)


class Net(eqx.Module):
    inner: ps.ParamState
    outer: ps.ParamState
    mean: ps.BatchState
    dropout: ps.nn.Dropout
    mask: ps.State

    def __init__(self, key: Any):
        one, two, three = jr.split(key, 3)
        self.inner = ps.ParamState(jr.normal(one, (16, 32)) / 4)
        self.outer = ps.ParamState(jr.normal(two, (32, 4)) / 6)
        self.mean = ps.BatchState(jnp.zeros(32))
        self.dropout = ps.nn.Dropout(0.25, key=three)
        self.mask = ps.State(jnp.zeros((8, 32)), tag="mask")

    def __call__(self, x: Any) -> Any:
        hidden = x @ self.inner.value
        mean = hidden.mean(axis=0)
        self.mean.value = 0.9 * self.mean.value + 0.1 * mean
        self.mask.value = self.dropout(jnp.ones_like(hidden))
        return (jax.nn.relu(hidden - mean) * self.mask.value) @ self.outer.value


def loss(net: Net, x: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()


def parameters(net: Any) -> dict[str, Any]:
    return {".".join(path): s.value for path, s in ps.states(net, ps.ParamState).items()}


def train_step(net: Net, opt: ps.State, x: Any, y: Any) -> Any:
    value, grads = ps.value_and_grad(loss)(net, x, y)
    updates, opt.value = OPTIM.update(parameters(grads), opt.value)
    new: Any = optax.apply_updates(parameters(net), updates)
    ps.update(net, new)
    return value


def start(key: Any) -> tuple[Net, ps.State]:
    net = Net(key)
    return net, ps.State(OPTIM.init(parameters(net)), tag="moments")


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    draw = lambda: (rng.normal(size=(8, 16)).astype(np.float32), rng.integers(4, size=8))
    return [draw() for _ in range(STEPS)]


DATA = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
BOTH = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
WAYS: dict[str, Any] = {
    "one device": None,
    "data in parallel": (DATA, {P("data"): "mask", P(): ...}),
    "fully sharded": (
        DATA,
        {P("data"): "mask", ps.largest("data"): (ps.ParamState, "moments"), P(): ...},
    ),
    "data and model": (
        BOTH,
        {
            P("data", "model"): "mask",
            P(None, "model"): ps.filter.PathContains("inner"),
            P("model"): (ps.filter.PathContains("outer"), ps.BatchState),
            P(): ...,
        },
    ),
}


def placed(way: str) -> tuple[Any, list[Any]]:
    """The network with its moments, and the batches, on the devices of a way to train."""
    if WAYS[way] is None:
        return start(jr.key(0)), batches()
    mesh, rules = WAYS[way]
    return ps.shard(start(jr.key(0)), rules, mesh), [ps.shard(b, P("data"), mesh) for b in batches()]


def trained(way: str) -> tuple[list[float], list[Any], Any]:
    """The losses, the dropout masks, and the network at the end."""
    (net, opt), parts = placed(way)
    run = ps.pure(ps.jit(train_step, donate=("moments", ps.ParamState)), argnums=(0, 1))
    losses, masks = [], []
    for x, y in parts:
        value, (net, opt) = run(net, opt, x, y)
        losses.append(float(value))
        masks.append(np.asarray(net.mask.value))
    return losses, masks, net


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_the_same_numbers(way: str):
    """Twenty steps give the losses and the statistics of one device, and its masks bit for bit."""
    losses, masks, net = trained("one device")
    others, other_masks, other = trained(way)
    np.testing.assert_allclose(others, losses, rtol=2e-4)
    np.testing.assert_allclose(other.mean.value, net.mean.value, rtol=1e-3, atol=1e-5)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(masks, other_masks, strict=True))
    assert len(set(losses)) == STEPS


# The hand-written twin -------------------------------------------------------------------------------


def raw_loss(params: Any, mean: Any, key: Any, x: Any, y: Any) -> Any:
    hidden = x @ params["inner"]
    batch_mean = hidden.mean(axis=0)
    key, own = jr.split(key)
    mask = jnp.where(jr.bernoulli(own, 0.75, hidden.shape), jnp.ones_like(hidden) / 0.75, 0.0)
    out = (jax.nn.relu(hidden - batch_mean) * mask) @ params["outer"]
    value = optax.softmax_cross_entropy_with_integer_labels(out, y).mean()
    return value, (0.9 * mean + 0.1 * batch_mean, key, mask)


def raw_step(params: Any, opt: Any, mean: Any, key: Any, x: Any, y: Any) -> Any:
    grad = jax.value_and_grad(raw_loss, has_aux=True)
    (value, (mean, key, mask)), grads = grad(params, mean, key, x, y)
    updates, opt = OPTIM.update(grads, opt)
    return value, optax.apply_updates(params, updates), opt, mean, key, mask


COLLECTIVES = r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def collectives(text: Any) -> Counter[str]:
    return Counter(re.findall(COLLECTIVES, text))


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_the_collectives_of_the_twin(way: str):
    """The compiled program has as many of each collective as the one that was written by hand."""
    (net, opt), parts = placed(way)
    x, y = parts[0]
    ours = ps.pure(ps.jit(train_step), argnums=(0, 1)).lower(net, opt, x, y).compile().as_text()
    params, rng = parameters(net), net.dropout.rng.value
    args = params, opt.value, net.mean.value, rng, x, y
    where = lambda tree: jax.tree.map(lambda a: a.sharding, tree)
    out = NamedSharding(WAYS[way][0], P())
    shardings = (out, *where(args[:4]), net.mask.value.sharding)
    raw = jax.jit(raw_step, out_shardings=shardings).lower(*args).compile().as_text()
    assert collectives(ours) == collectives(raw)
    assert collectives(ours)["all-reduce"] > 0
