"""The loops of the table inside and around the transforms that matter to them, against twins by
hand."""

import contextlib
import itertools as it
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import pytest

from laws import transforms
from laws.loops import LEAKS, LOOPS
from laws.test_laws import assert_same
from laws.test_pairs import LANES, X, arrays, pure, refused
from laws.transforms import USES, Using, by_hand


_OTHERS = [use for use in USES if use.name in ("vmap2", "shard_map2", "grad", "jacfwd", "scan", "cond")]
PAIRS = [
    pair
    for loop, other in it.product(LOOPS, _OTHERS)
    for pair in ((loop, other), (other, loop))
    if not (pair[0] is loop and other.name == "jacfwd")
]


@contextlib.contextmanager
def watched(outer: Using, inner: Using) -> Iterator[None]:
    """L7: nothing leaks a tracer, and no key is used twice; where JAX does not say so of the twin.

    It takes Equinox's loops with checkpoints for leaks, the keys of a choice that lanes make to be
    used by both branches, and those of a scan with checkpoints to be used in the second run of a
    segment.
    """
    names = {outer.name, inner.name}
    chosen = names & {"cond", "cond_by_keyword", "switch_by_keyword"} and names & LANES
    keys = not chosen and names != {"grad", "scan_with_checkpoints"}
    leaks = contextlib.nullcontext() if names & LEAKS else jax.checking_leaks()
    with leaks, jax.debug_key_reuse(bool(keys)):
        yield


@pytest.mark.once
@pytest.mark.parametrize(
    ("outer", "inner"), PAIRS, ids=[f"{outer.name}-{inner.name}" for outer, inner in PAIRS]
)
def test_pair(outer: Using, inner: Using) -> None:
    """L2 and L7: outputs and states equal the twin's, compiled; nothing leaks, and inputs stay."""
    error: Any = refused(outer, inner)
    if error is not None:
        with pytest.raises(error[0], match=error[1]):
            pure(outer, inner)(transforms.model(), X)
        return
    expected = arrays(by_hand(outer, inner)(transforms.model(), X))
    model = transforms.model()
    with watched(outer, inner):
        y, updated = eqx.filter_jit(pure(outer, inner))(model, X)
    assert_same(arrays((y, updated)), expected, exact=False)
    assert_same(model, transforms.model())
