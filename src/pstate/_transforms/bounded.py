"""Loops with a condition that have a reverse-mode gradient.

Equinox provides them. One kind runs at most `max_steps` steps, in loops of known lengths, and has
both modes; the other keeps the carry of some steps, and recomputes the others in the backward pass.

Always: Equinox gets the traced body, without the values that it only passes through. Keys go in as
their data, because Equinox keeps only arrays.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax.extend.core import jaxpr_as_fun

from .._ground.values import short_type
from .settling import settled


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How many steps a loop may take, and how many of them keep their carry; one of them is known."""

    max_steps: int | None
    checkpoints: int | None


def bounded_while_loop(
    condition: Callable[[Any], Any], step: Callable[[Any], Any], init: Any, bounds: Bounds
) -> Any:
    """`jax.lax.while_loop` with bounds and a reverse-mode gradient.

    **Raises:** `TypeError` if the condition is not a `bool` of shape `()`.
    """
    leaves, treedef = jtu.tree_flatten(init)
    flat = lambda leaves, more: jtu.tree_leaves(step(treedef.unflatten(leaves)))
    leaves, body, moving = settled(flat, leaves)
    going_on = _condition(lambda *leaves: condition(treedef.unflatten(leaves)), leaves)
    implementations = [_implementation(leaves[i]) for i in moving]

    def together(carry: Sequence[Any]) -> list[Any]:
        own = list(leaves)
        for i, implementation, x in zip(moving, implementations, carry, strict=True):
            own[i] = x if implementation is None else jr.wrap_key_data(x, impl=implementation)
        return own

    def apart(own: Sequence[Any]) -> list[Any]:
        pairs = zip(moving, implementations, strict=True)
        return [own[i] if impl is None else jr.key_data(own[i]) for i, impl in pairs]

    kind = "bounded" if bounds.checkpoints is None else "checkpointed"
    last = eqxi.while_loop(
        lambda carry: going_on(*together(carry))[0],
        lambda carry: apart(body(*together(carry))),
        apart(leaves),
        max_steps=bounds.max_steps,
        kind=kind,
        checkpoints=bounds.checkpoints,
    )
    return treedef.unflatten(together(last))


def _condition(condition: Callable[..., Any], leaves: Sequence[Any]) -> Callable[..., Any]:
    jaxpr = jax.make_jaxpr(condition)(*leaves)
    types = [(aval.shape, aval.dtype) for aval in jaxpr.out_avals]
    if types != [((), jnp.bool_)]:
        shown = ", ".join(short_type(aval) for aval in jaxpr.out_avals)
        raise TypeError(
            f"A condition returns one bool of shape (); got {shown or 'nothing'}. Write return "
            "jnp.all(x < 3), or return count > 0."
        )
    return jaxpr_as_fun(jaxpr)


def _implementation(leaf: Any) -> Any:
    """The implementation of the keys of a leaf; `None` for other leaves."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jr.key_impl(leaf) if is_key else None
