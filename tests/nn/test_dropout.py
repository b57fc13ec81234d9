"""`nn.Dropout`: when it draws, what it keeps, and what it scales."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


def test_dropout():
    """Dropout draws in training only, scales what it keeps, and obeys Equinox's inference mode."""
    dropout = ps.nn.Dropout(0.25, key=1)
    x = jnp.ones(1000)
    y, advanced = ps.pure(dropout)(x)
    assert {*np.unique(y)} == {0.0, np.float32(1 / 0.75)}
    assert abs(float((y == 0).mean()) - 0.25) < 0.05
    again, _ = ps.pure(advanced)(x)
    assert not np.array_equal(y, again)
    assert eqx.nn.inference_mode(dropout)(x) is x
    rows, _ = ps.pure(ps.vmap2(dropout))(jnp.ones((3, 50)))
    assert len({tuple(row.tolist()) for row in rows}) == 3
    with pytest.raises(ValueError, match=r"p is a probability, from 0 to 1; got 2"):
        ps.nn.Dropout(2.0)
