"""Draws with a dtype of their own, and arrays of keys."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import pstate as ps


FLOAT = {
    "random": lambda rng, dtype: rng.random((3,), dtype),
    "uniform": lambda rng, dtype: rng.uniform(-1.0, 2.0, (3,), dtype),
    "normal": lambda rng, dtype: rng.normal(1.0, jnp.ones(3), dtype=dtype),
    "truncated_normal": lambda rng, dtype: rng.truncated_normal(-1.0, 1.0, 0.0, 2.0, (3,), dtype),
    "lognormal": lambda rng, dtype: rng.lognormal(0.0, 0.1, (3,), dtype),
    "binomial": lambda rng, dtype: rng.binomial(5.0, 0.5, (3,), dtype),
    "exponential": lambda rng, dtype: rng.exponential(jnp.ones(3), dtype=dtype),
    "gamma": lambda rng, dtype: rng.gamma(2.0, 3.0, (3,), dtype),
    "beta": lambda rng, dtype: rng.beta(2.0, 3.0, (3,), dtype),
    "laplace": lambda rng, dtype: rng.laplace(0.0, 2.0, (3,), dtype),
}
INTEGER = {
    "integers": lambda rng, dtype: rng.integers(1, 100, (3,), dtype),
    "poisson": lambda rng, dtype: rng.poisson(5.0, (3,), dtype),
}


def draw(how: Any, dtype: Any) -> Any:
    return ps.pure(how)(ps.RandomState(7), dtype)[0]


@pytest.mark.once
@pytest.mark.parametrize("name", FLOAT)
def test_floats(name: str) -> None:
    usual, half = draw(FLOAT[name], None), draw(FLOAT[name], jnp.float16)
    assert usual.dtype == jnp.float32
    assert half.dtype == jnp.float16
    assert half.shape == usual.shape == (3,)
    assert jnp.all(jnp.isfinite(half))
    same = draw(FLOAT[name], jnp.float32)
    assert jnp.array_equal(usual, same)


@pytest.mark.parametrize("name", INTEGER)
def test_integers(name: str) -> None:
    assert draw(INTEGER[name], None).dtype == jnp.int32
    if name == "integers":
        assert draw(INTEGER[name], jnp.uint8).dtype == jnp.uint8
    else:
        with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
            assert draw(INTEGER[name], jnp.int64).dtype == jnp.int64


def test_normal_vectors() -> None:
    # Without halves: LAPACK, which takes the matrix apart, has none.
    how = lambda rng, dtype: rng.multivariate_normal([0, 0, 0], jnp.eye(3), (2,), dtype)
    assert draw(how, jnp.float32).dtype == jnp.float32
    assert draw(how, jnp.float32).shape == (2, 3)


def test_a_draw_of_another_type_is_that_of_jax() -> None:
    own = jr.split(jr.key(3))[1]
    got, _ = ps.pure(lambda rng: rng.normal(2.0, 3.0, (4,), jnp.bfloat16))(ps.RandomState(3))
    twin = jnp.bfloat16(2.0) + jnp.bfloat16(3.0) * jr.normal(own, (4,), jnp.bfloat16)
    assert jnp.array_equal(got, twin)


@pytest.mark.parametrize("make", [jr.key, jr.PRNGKey])
@pytest.mark.parametrize("shape", [(2, 3), (6,), (), (2, 0)])
def test_an_array_of_keys(make: Any, shape: Any) -> None:
    keys, rng = ps.pure(lambda rng: rng.split_key(shape))(ps.RandomState(make(0)))
    number = 1
    for n in shape:
        number *= n
    split = jr.split(make(0), number + 1)
    data = jr.key_data if jnp.issubdtype(split.dtype, jax.dtypes.prng_key) else jnp.asarray
    assert jnp.array_equal(data(rng.value), data(split[0]))
    assert jnp.array_equal(data(keys).reshape(number, 2), data(split[1:]))
    assert data(keys).shape == (*shape, 2)


def test_dropout_in_inference_for_one_call() -> None:
    x = jnp.ones(64)
    trained = ps.nn.Dropout(0.5)
    assert jnp.array_equal(trained(x, inference=True), x)
    evaluated = ps.nn.Dropout(0.5, inference=True)
    y, after = ps.pure(evaluated)(x, inference=False)
    assert 0 < jnp.sum(y == 0) < 64
    assert not jnp.array_equal(jr.key_data(after.rng.value), jr.key_data(evaluated.rng.value))
    assert jnp.array_equal(evaluated(x, inference=None), x)
