"""Probes: what can be found out inside a lane, through the rule of a `custom_vmap`.

JAX calls the rule at the level of the mapping and says which operands differ between lanes. Every
function here gets a *reference lane*, an array that is always mapped, so that the rule always fires
at this mapping and at no other. Nothing here leaves an equation in the program, except the
splitting of a key from which a lane draws.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jax.custom_batching import custom_vmap

from .._ground.versions import checks_key_reuse
from .._states.deferred import Deferred
from .._states.keys import split_for_lanes


def which_differ(reference: Any, values: Sequence[Any]) -> list[bool]:
    """For each value, whether it may differ between lanes."""
    if not values:
        return []
    found: list[bool] = []

    @custom_vmap
    def probe(reference: Any, values: Sequence[Any]) -> Any:
        return reference

    @probe.def_vmap
    def rule(axis_size: int, in_batched: Any, reference: Any, values: Any) -> Any:
        found.extend(in_batched[1])
        return reference, True

    probe(reference, [jnp.asarray(v) for v in values])
    return found


def lane_key(
    reference: Any,
    key: Any,
    keep: Callable[[Any], None],
    needed: bool,
    put: Callable[[Any], Any],
) -> Any:
    """One key per lane, split from a key that all lanes share.

    `keys = split(key, axis_size + 1)`; `keep` is called with `keys[0]`, at the level outside the
    mapping, and the lanes get the rest. In a batch of keys, each is split by itself. `needed` says
    that a lane certainly draws. The key itself may be deferred: then it is also computed at that
    outer level. `put` shards the stacked keys like the lanes.
    """

    @custom_vmap
    def split(reference: Any) -> Any:
        return jnp.empty(key.shape, key.dtype)  # traced for its type, never run

    @split.def_vmap
    def rule(axis_size: int, in_batched: Any, reference: Any) -> Any:
        shared = key.value(needed) if type(key) is Deferred else key
        if not needed and checks_key_reuse():
            # It may turn out that no lane draws; then the shared key has not been used.
            shared = jr.clone(shared)
        kept, own = split_for_lanes(shared, axis_size)
        keep(kept)
        return put(own), True

    return split(reference)
