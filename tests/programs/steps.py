"""A step of one state that the tests of compiled functions share, and what must hold after each."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

import pstate as ps
from pstate._states.threads import local


def add(state, x):
    state.value += x
    return state.value * 2


def zeros(kind=ps.State):
    return kind(jnp.zeros(3))


def deleted(tree):
    return [leaf.is_deleted() for leaf in jtu.tree_leaves(tree) if isinstance(leaf, jax.Array)]


def nothing_left_over():
    """Nothing of what pstate keeps in a thread is left over after a test."""
    yield
    assert local.recordings == local.catchers == ()
    assert (local.watch, local.rebuild, local.collected, local.on_devices) == (None, None, None, False)
