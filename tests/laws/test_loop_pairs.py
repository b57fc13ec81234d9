"""The loops of the table inside and around the transforms that matter to them, against twins by hand."""

import itertools as it
from typing import Any

import equinox as eqx
import pytest

from laws import transforms
from laws.loops import LOOPS
from laws.test_laws import assert_same
from laws.test_pairs import X, arrays, pure, refused, watched
from laws.transforms import USES, Using, by_hand


_OTHERS = [use for use in USES if use.name in ("vmap2", "shard_map2", "grad", "jacfwd", "scan", "cond")]
PAIRS = [
    pair
    for loop, other in it.product(LOOPS, _OTHERS)
    for pair in ((loop, other), (other, loop))
    if not (pair[0] is loop and other.name == "jacfwd")
]


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
