"""What a state may hold: a pytree of arrays.

Python numbers and NumPy arrays become strongly typed JAX arrays, containers are copied, and anything
else is refused. Empty states hold `None`.
"""

import functools as ft
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np


_NUMBERS = (bool, int, float, complex)


def as_value(value: Any, old: Any = None) -> Any:
    """`value` in the form in which a state holds it.

    A Python number takes the dtype of the leaf that it replaces in `old`.

    **Raises:** `TypeError` for a non-array leaf, and for a Python number that the old dtype cannot
    hold.
    """
    if value is None or isinstance(value, jax.Array):
        return value
    if is_leaf(value):
        return _as_array(value, old, "")
    leaves, treedef = jtu.tree_flatten_with_path(value)
    old_leaves, old_treedef = jtu.tree_flatten(old)
    if old_treedef != treedef:
        old_leaves = [None] * len(leaves)
    arrays = [
        _as_array(leaf, old_leaf, jtu.keystr(path))
        for (path, leaf), old_leaf in zip(leaves, old_leaves, strict=True)
    ]
    return treedef.unflatten(arrays)


def is_leaf(value: Any) -> bool:
    """Whether JAX sees no container in `value`. `None` is a container of nothing."""
    return _is_leaf_type(type(value)) if type(value) not in _NUMBERS else True


@ft.lru_cache(maxsize=1024)
def _is_leaf_type(cls: type) -> bool:
    # A container type stays one, so the check is made once per type: an instance without `__init__`
    # is enough, since JAX looks only at the registry of pytree nodes, never at the instance.
    if issubclass(cls, tuple | list | dict) or cls is type(None):
        return False
    if issubclass(cls, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | str | bytes):
        return True
    try:
        return jtu.all_leaves([object.__new__(cls)])
    except TypeError:
        return True


def copy(value: Any) -> Any:
    """`value` with fresh containers around the same arrays."""
    return value if is_leaf(value) else jtu.tree_map(lambda leaf: leaf, value)


def same(a: Any, b: Any) -> bool:
    """Whether two values have the same structure and the same array objects."""
    if a is b:
        return True
    a_leaves, a_treedef = jtu.tree_flatten(a)
    b_leaves, b_treedef = jtu.tree_flatten(b)
    return a_treedef == b_treedef and all(x is y for x, y in zip(a_leaves, b_leaves, strict=True))


def _as_array(leaf: Any, old: Any, where: str) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    if type(leaf) in _NUMBERS:
        return _from_number(leaf, old, where)
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm":
        # A copy: JAX may share the memory of a NumPy array, and its owner may refill it.
        return jnp.array(leaf)
    where = f" at `.value{where}`" if where else ""
    raise TypeError(
        f"A state holds a pytree of arrays and numbers; got {_shown(leaf)}{where}. Keep a non-array "
        "value in a static field of the module (`eqx.field(static=True)`), or in the state's tag: "
        'ps.State(jnp.zeros(3), tag="encoder").'
    )


def _shown(leaf: Any) -> str:
    text = repr(leaf)
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(leaf).__name__}"


def _from_number(number: bool | int | float | complex, old: Any, where: str) -> jax.Array:
    dtype = getattr(old, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        dtype = jnp.result_type(type(number))
    if not _fits(number, dtype):
        at = f" at `.value{where}`" if where else ""
        raise TypeError(
            f"The number {number!r} was written{at} where a state holds {dtype}, which cannot hold "
            "it. Write an array to change the dtype on purpose: "
            f"state.value = jnp.asarray({number!r}, {_wider(number)})."
        )
    return jnp.asarray(number, dtype)


def _wider(number: bool | int | float | complex) -> str:
    fits = isinstance(number, float | complex) or _fits(number, jnp.int32)
    return f"jnp.{jnp.result_type(type(number)).name}" if fits else "jnp.float32"


def _fits(number: bool | int | float | complex, dtype: Any) -> bool:
    if isinstance(number, complex):
        return jnp.issubdtype(dtype, jnp.complexfloating)
    if jnp.issubdtype(dtype, jnp.inexact):
        return not math.isfinite(number) or abs(number) <= float(jnp.finfo(dtype).max)
    if isinstance(number, float) and not number.is_integer():  # also inf and nan
        return False
    if dtype == jnp.bool_:
        return number in (0, 1)
    return jnp.iinfo(dtype).min <= number <= jnp.iinfo(dtype).max


_SHORT = {"float": "f", "bfloat": "bf", "uint": "u", "int": "i", "complex": "c"}


def short_dtype(dtype: Any) -> str:
    """A dtype as JAX prints it.

    >>> short_dtype(jnp.float32), short_dtype(jnp.dtype("uint8")), short_dtype(jnp.bfloat16)
    ('f32', 'u8', 'bf16')
    """
    name = str(dtype) if not isinstance(dtype, type) else np.dtype(dtype).name
    for long, short in _SHORT.items():
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def short_type(x: Any) -> str:
    """The shape and dtype of an array as JAX prints them.

    >>> short_type(jnp.zeros((2, 3)))
    'f32[2,3]'
    """
    return f"{short_dtype(x.dtype)}[{','.join(map(str, x.shape))}]"


def nbytes(x: Any) -> int:
    """The bytes of an array, or of anything with a shape and dtype. A typed key counts its data.

    >>> nbytes(jax.ShapeDtypeStruct((2, 3), jnp.float32))
    24
    """
    return math.prod(x.shape) * getattr(x.dtype, "itemsize", 0)
