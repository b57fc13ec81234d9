"""Saving and loading: what `eqx.tree_serialise_leaves` needs to handle trees with random states.

Equinox writes one NumPy array per leaf, in the order of the tree, and nothing else. Typed keys are
not NumPy arrays. Here such a leaf is saved as a *record*: a NumPy array of the leaf's shape whose
only field is named after its content, such as `key<threefry2x32>`, so that loading can compare.
Extension types, whose names NumPy loses or cannot read back (`float8_e5m2`, `int4`), are saved in
the same way.

A file is read by position. So the first leaf that does not fit is refused before it is read: those
after it would get other leaves' data.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpy.lib import format as npy

from .._ground.public import public
from .._states.keys import is_typed_key


@runtime_checkable
class Writable(Protocol):
    """A binary file, as far as saving uses it."""

    def write(self, data: bytes, /) -> object: ...


@runtime_checkable
class Readable(Protocol):
    """A binary file, as far as loading uses it."""

    def read(self, size: int = ..., /) -> bytes: ...

    def seek(self, offset: int, whence: int = ..., /) -> object: ...

    def tell(self) -> int: ...


_ADVICE = (
    "Build `like` as the saved tree was built. To copy the states that fit into a model that is "
    "built differently:\n"
    "    saved = eqx.tree_deserialise_leaves(file, like, filter_spec=ps.deserialise_filter_spec)\n"
    "    model = ps.update(model, ps.states(saved), strict=False)"
)
_NUMBERS = (bool, int, float, complex)
#: The value of `dtype.isbuiltin` for types that were registered with NumPy from outside.
_REGISTERED = 2
_NUMBER_OF_KIND = {"b": "bool", "i": "int", "u": "int", "f": "float", "c": "complex"}


@public
def serialise_filter_spec(f: Writable, x: Any) -> None:
    """Save a leaf, typed keys included. Pass it to `eqx.tree_serialise_leaves` as `filter_spec=`.

    Everything is saved in Equinox's format, except typed keys and types such as float8, which
    Equinox cannot load. Python numbers keep their full precision.

    **Arguments:**

    - `f`: the open file.
    - `x`: the leaf. A leaf that is neither an array nor a number is skipped.

    **Raises:** `TypeError` for a key whose implementation has no name.

    !!! example

        >>> import io
        >>> import equinox as eqx
        >>> import pstate as ps
        >>> model = {"rng": ps.RandomState(0), "n": ps.State(1)}
        >>> file = io.BytesIO()
        >>> eqx.tree_serialise_leaves(file, model, filter_spec=ps.serialise_filter_spec)
    """
    if is_typed_key(x):
        data = np.asarray(jr.key_data(x))
        _save_record(f, _key_name(x), data, x.shape)
    elif _is_extension(x):
        bits = np.asarray(x).view(f"u{x.dtype.itemsize}")
        _save_record(f, x.dtype.name, bits, x.shape)
    elif isinstance(x, _NUMBERS):
        # Equinox would go through JAX, which keeps 32 bits: a rate of 0.1 would come back changed.
        np.save(f, np.asarray(x), allow_pickle=False)
    else:
        eqx.default_serialise_filter_spec(f, x)


@public
def deserialise_filter_spec(f: Readable, x: Any) -> Any:
    """Load a leaf, typed keys included. Pass it to `eqx.tree_deserialise_leaves` as `filter_spec=`.

    It reads files saved with `serialise_filter_spec` or with Equinox's default.

    **Arguments:**

    - `f`: the open file.
    - `x`: the leaf of `like` in whose place the loaded one goes.

    **Returns:** the loaded leaf, or `x` itself if it is neither an array nor a number.

    **Raises:** `ValueError` if the file holds another shape, dtype or key implementation than `x`
    has, or has ended. Equinox wraps it in an error that has the path of the leaf.

    !!! example

        >>> import io
        >>> import equinox as eqx
        >>> import jax.random as jr
        >>> import pstate as ps
        >>> file = io.BytesIO()
        >>> eqx.tree_serialise_leaves(file, ps.RandomState(7), filter_spec=ps.serialise_filter_spec)
        >>> _ = file.seek(0)
        >>> rng = eqx.tree_deserialise_leaves(
        ...     file, ps.RandomState(0), filter_spec=ps.deserialise_filter_spec
        ... )
        >>> bool(rng.value == jr.key(7))
        True
    """
    if is_typed_key(x):
        _refuse_abstract(x)
        data = _checked(f, x, _key_name(x), x.shape, _name_of_array)
        return jr.wrap_key_data(jnp.asarray(data), impl=jr.key_impl(x))
    if isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        array = _checked(f, x, x.dtype.name, x.shape, _name_of_array).view(x.dtype)
        return _weak(array) if x.weak_type else jnp.asarray(array)
    if _is_extension(x):  # NumPy's
        array = _checked(f, x, x.dtype.name, x.shape, _name_of_array).view(x.dtype)
        return array[()] if isinstance(x, np.generic) else array
    if isinstance(x, _NUMBERS):
        return type(x)(_checked(f, x, type(x).__name__, (), _name_of_number).item())
    return eqx.default_deserialise_filter_spec(f, x)


def _key_name(keys: Any) -> str:
    implementation = jr.key_impl(keys)
    if not isinstance(implementation, str):
        raise TypeError(
            f"Keys of the implementation {implementation!r} cannot be saved, because it has no name by "
            "which to load it. Save their data, jax.random.key_data(keys), in a separate state."
        )
    return f"key<{implementation}>"


def _is_extension(x: Any) -> bool:
    """Whether an array has a type that is not NumPy's own."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic) or x.dtype.isbuiltin != _REGISTERED:
        return False
    # Among JAX's extension types Equinox recognises only bfloat16, by its width.
    return x.dtype != jnp.bfloat16 or not isinstance(x, jax.Array)


def _save_record(f: Writable, name: str, data: np.ndarray, shape: tuple[int, ...]) -> None:
    record = np.empty(shape, [(name, data.dtype, data.shape[len(shape) :])])
    record[name] = data
    np.save(f, record, allow_pickle=False)


def _checked(
    f: Readable, like: Any, name: str, shape: tuple[int, ...], name_of: Callable[[np.dtype], str]
) -> np.ndarray:
    """The next array of a file, which must have this name and shape; for a record, its content."""
    held_shape, dtype = _header(f, name, shape)
    held = name_of(dtype)
    if (held, held_shape) != (name, tuple(shape)):
        raise ValueError(
            f"The file holds {held}{list(held_shape)} where `like` has {name}{list(shape)}. {_ADVICE}"
        )
    array = np.load(f, allow_pickle=False)
    return array[dtype.names[0]] if dtype.names else array


def _header(f: Readable, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the next array of a file, which is left unread."""
    start = f.tell()
    if not f.read(1):
        raise ValueError(f"The file ends where `like` has {name}{list(shape)}. {_ADVICE}")
    f.seek(start)
    one = npy.read_magic(f) == (1, 0)
    read = npy.read_array_header_1_0 if one else npy.read_array_header_2_0
    held_shape, _, dtype = read(f)
    f.seek(start)
    return held_shape, dtype


def _weak(array: np.ndarray) -> jax.Array:
    """A weakly typed array, like `jnp.array(0)`. Files do not record this; Equinox's states need it."""
    python_type = {"b": bool, "i": int, "f": float, "c": complex}[array.dtype.kind]
    return jnp.full(array.shape, python_type(0)).at[...].set(array)


def _name_of_array(dtype: np.dtype) -> str:
    if dtype.names:
        return dtype.names[0]
    return "bfloat16" if dtype == np.dtype("V2") else dtype.name


def _name_of_number(dtype: np.dtype) -> str:
    return _NUMBER_OF_KIND.get(dtype.kind, _name_of_array(dtype))


def _refuse_abstract(x: Any) -> None:
    if isinstance(x, jax.ShapeDtypeStruct):
        raise ValueError(
            f"`like` has a shape here, {x}, but Equinox loads typed keys only where `like` has keys. "
            "Build `like` with arrays: like = Model(...), not eqx.filter_eval_shape(Model, ...)."
        )
