"""A loop over arrays that keeps the carry of only some steps, for less memory in the backward pass.

The steps run in segments of equal length. The backward pass recomputes a segment from the carry
that it began with, so the loop keeps one carry per segment, and at any time the intermediate values
of the steps of only one segment. Values that all steps share are kept once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .settling import settled


def scan_in_segments(
    step: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    length: int,
    reverse: bool,
    unroll: int | bool,
    checkpoints: int,
) -> tuple[Any, Any]:
    """`jax.lax.scan` of at least one step, in at most `checkpoints` segments."""
    leaves, carry_treedef = jtu.tree_flatten(init)
    x_leaves, x_treedef = jtu.tree_flatten(xs)
    y_treedef: Any = None

    def flat(leaves: list[Any], x_leaves: list[Any]) -> list[Any]:
        nonlocal y_treedef
        carry, y = step(carry_treedef.unflatten(leaves), x_treedef.unflatten(x_leaves))
        y_leaves, y_treedef = jtu.tree_flatten(y)
        return [*jtu.tree_leaves(carry), *y_leaves]

    one_x = [jax.lax.index_in_dim(x, 0, keepdims=False) for x in x_leaves]
    leaves, body, moving = settled(flat, leaves, one_x)

    def one(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        own = list(leaves)
        for i, value in zip(moving, carry, strict=True):
            own[i] = value
        out = body(*own, *x)
        return [out[i] for i in moving], list(out[len(leaves) :])

    size = -(-length // min(checkpoints, length))
    n, rest = divmod(length, size)

    def segment(carry: list[Any], xs: list[Any], steps: int) -> tuple[list[Any], list[Any]]:
        return jax.lax.scan(one, carry, xs, steps, reverse, unroll)

    whole = lambda carry, xs: segment(carry, xs, size)
    carry = [leaves[i] for i in moving]
    # The shorter segment comes last, which is at the front if the loop runs backwards.
    start = rest if reverse else 0
    head = [x[start : start + n * size].reshape(n, size, *x.shape[1:]) for x in x_leaves]
    short = [x[:rest] if reverse else x[n * size :] for x in x_leaves]
    # Inside a loop nothing merges the recomputation with the original. For a single segment, and after
    # the loop, prevent_cse has to see to that.
    inside = jax.checkpoint(whole, prevent_cse=n == 1)
    carry, ys = jax.lax.scan(inside, carry, head, n, reverse)
    ys = [y.reshape(n * size, *y.shape[2:]) for y in ys]
    if rest:
        last = jax.checkpoint(lambda carry, xs: segment(carry, xs, rest))
        carry, more = last(carry, short)
        pairs = zip(more, ys, strict=True) if reverse else zip(ys, more, strict=True)
        ys = [jnp.concatenate(pair) for pair in pairs]
    for i, value in zip(moving, carry, strict=True):
        leaves[i] = value
    return carry_treedef.unflatten(leaves), y_treedef.unflatten(ys)
