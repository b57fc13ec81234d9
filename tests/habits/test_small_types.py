"""Saving and loading numbers of few bits: every type that JAX and NumPy have between them."""

import io
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import pstate as ps


TYPES = sorted(
    name
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and name not in ("finfo", "iinfo")
)
SHAPES = [(), (3,), (2, 1), (2, 0)]


def there_and_back(tree: Any, like: Any = None) -> Any:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree, filter_spec=ps.serialise_filter_spec)
    file.seek(0)
    like = tree if like is None else like
    return eqx.tree_deserialise_leaves(file, like, filter_spec=ps.deserialise_filter_spec)


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.resize(np.array([1, 0, 1], getattr(ml_dtypes, name)), shape)


def is_known_to_jax(name: str) -> bool:
    try:
        return bool(jax.jit(lambda x: x)(jnp.asarray(numbers(name, (3,)))).dtype == name)
    except Exception:  # each version of JAX refuses in its own words
        return False


# JAX 0.12 takes types of six bits, and crashes where an array of theirs is empty.
KNOWN = [name for name in TYPES if not name.startswith("float6") and is_known_to_jax(name)]


def test_the_types_of_interest_are_among_them():
    """Whatever else JAX learns to hold, these it does."""
    assert {"bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4"} <= set(KNOWN)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_states_of_few_bits(name, shape):
    """What is loaded is what was saved: type, shape and bits; the next leaf is read from its place."""
    tree = {"a": ps.State(jnp.asarray(numbers(name, shape))), "b": ps.State(jnp.arange(2.0))}
    like = jax.tree.map(jnp.zeros_like, tree)
    loaded = there_and_back(tree, like)
    value = loaded["a"].value
    assert (value.dtype, value.shape) == (name, shape)
    assert np.asarray(value).tobytes() == numbers(name, shape).tobytes()
    assert loaded["b"].value.tolist() == [0, 1]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert there_and_back(tree, abstract)["a"].value.dtype == name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_arrays_of_numpy_of_few_bits(name, shape):
    """Raw NumPy leaves too, whether or not JAX knows the type."""
    array = numbers(name, shape)
    loaded, rest = there_and_back((array, np.arange(2.0)), (np.zeros_like(array), np.zeros(2)))
    assert (type(loaded), loaded.dtype, loaded.shape) == (np.ndarray, array.dtype, shape)
    assert loaded.tobytes() == array.tobytes()
    assert rest.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["float8_e5m2", "int4", "bfloat16"])
def test_a_number_of_numpy_of_few_bits(name):
    """A scalar of NumPy comes back as one."""
    number = numbers(name, (3,))[0]
    assert type(there_and_back([number])[0]) is type(number)
    assert there_and_back([number])[0] == number


def test_types_of_few_bits_are_told_apart():
    """They have the same width, and loading one as another is refused, with both names."""
    file = io.BytesIO()
    tree = ps.State(jnp.ones(3, jnp.float8_e5m2))
    eqx.tree_serialise_leaves(file, tree, filter_spec=ps.serialise_filter_spec)
    file.seek(0)
    like = ps.State(jnp.ones(3, jnp.int4))
    with pytest.raises(RuntimeError) as caught:
        eqx.tree_deserialise_leaves(file, like, filter_spec=ps.deserialise_filter_spec)
    cause: Any = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert str(cause).startswith("The file holds float8_e5m2[3] where `like` has int4[3]. Build `like`")


def test_files_of_equinox_are_read():
    """What Equinox saved by itself is loaded as before."""
    tree = [ps.State(jnp.ones(3, jnp.bfloat16)), np.arange(3)]
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree)
    file.seek(0)
    loaded = eqx.tree_deserialise_leaves(file, tree, filter_spec=ps.deserialise_filter_spec)
    assert eqx.tree_equal(loaded, tree)
