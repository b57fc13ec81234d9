"""A model with every kind of node, and trees of it that pstate gave back."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from pstate._trees.known import known


class Norm(eqx.Module):
    """Without states, and with lists and dicts."""

    scale: Any
    options: dict[str, Any]
    history: list[Any]


class Layer(eqx.Module):
    weight: ps.ParamState
    count: ps.ShortTermState
    act: Callable[..., Any]


class Model(eqx.Module):
    layers: list[Any]
    norm: Norm
    extra: dict[str, Any]
    pair: tuple[Any, ...]
    name: str = eqx.field(static=True, default="model")


def layer(weight: float, act: Any = jnp.tanh) -> Layer:
    return Layer(ps.ParamState(weight), ps.ShortTermState(0.0), act)


def model() -> Model:
    return Model(
        [layer(float(i)) for i in range(3)],
        Norm(jnp.ones(2), {"eps": 1.0}, [jnp.zeros(1)]),
        {"shift": jnp.asarray(1.0), "more": [jnp.asarray(2.0)]},
        (jnp.asarray(3.0), [jnp.asarray(4.0)]),
    )


RUNS: list[None] = []


def step(model, x):
    RUNS.append(None)
    for layer in model.layers:
        layer.count.value += x
    parts = [model.norm.scale, *model.norm.options.values(), *model.norm.history]
    parts += [*model.extra.values(), *model.pair, *(layer.weight.value for layer in model.layers)]
    return sum(jnp.sum(jnp.asarray(leaf)) for leaf in jtu.tree_leaves(parts)) + x


WAYS = {
    "jit": ps.jit(step),
    "vmap2": ps.vmap2(step, in_axes=None, axis_size=2),
    "checkpoint": ps.checkpoint(step),
    "none": step,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def remembered(way: Any, tree: Any = None) -> tuple[Any, Any]:
    """A pure function of that way, and a tree that it gave back."""
    pure = ps.pure(way)
    _, tree = pure(model() if tree is None else tree, jnp.asarray(1.0))
    assert known(tree) is not None
    return pure, tree


def copied(tree: Any) -> Any:
    """The same tree, which nobody remembers."""
    tree = jtu.tree_map(lambda x: x, tree)
    assert known(tree) is None
    return tree


def same(a: Any, b: Any) -> bool:
    flat, flat_b = jtu.tree_flatten(a), jtu.tree_flatten(b)
    equal = lambda x, y: x is y if callable(x) else np.array_equal(x, y)
    return flat[1] == flat_b[1] and all(map(equal, flat[0], flat_b[0]))
