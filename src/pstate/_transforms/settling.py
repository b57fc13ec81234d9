"""The body of a loop, traced once by us instead of by JAX's loop, and the part of the carry it changes.

Values that a body only passes through, such as parameters that are read, need not be part of a
carry that is kept, and copied, for each checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from .._ground.values import short_type


def settled(
    step: Callable[[list[Any], list[Any]], list[Any]], leaves: list[Any], more: Sequence[Any] = ()
) -> tuple[list[Any], Callable[..., Any], list[int]]:
    """The first carry in the types that a step returns, the step, and the leaves that it changes.

    `step(leaves, more)` returns the new leaves of the carry first. A weakly typed leaf takes the
    type that the step gives it, as in JAX's own loops, and is strong from then on, so this
    terminates.

    **Raises:** `TypeError` for a carry that changes its dtype.
    """
    n = len(leaves)
    flat = lambda *arguments: step(list(arguments[:n]), list(arguments[n:]))
    while True:
        jaxpr = jax.make_jaxpr(flat)(*leaves, *more)
        pairs = list(zip(jaxpr.in_avals[:n], jaxpr.out_avals[:n], strict=True))
        if all(old.dtype == new.dtype for old, new in pairs):
            inner = jaxpr.jaxpr
            passed = [a is b for a, b in zip(inner.invars[:n], inner.outvars[:n], strict=True)]
            moving = [i for i, is_passed in enumerate(passed) if not is_passed]
            return leaves, jaxpr_as_fun(jaxpr), moving
        for old, new in pairs:
            if old.dtype != new.dtype and not old.weak_type:
                raise TypeError(
                    f"The carry of a loop came in as {short_type(old)}, but the body returned "
                    f"{short_type(new)}. A loop keeps the types of its carry: return "
                    "jnp.asarray(new, old.dtype)."
                )
        leaves = [
            leaf if old.dtype == new.dtype else jnp.asarray(leaf, new.dtype)
            for leaf, (old, new) in zip(leaves, pairs, strict=True)
        ]
