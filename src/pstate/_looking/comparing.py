"""Comparing two leaves: by shape, by dtype, and by value if both have one.

A value is *known* if it can be looked at here and now: not that of a shape, of a tracer, of a
deleted array, of an array on other hosts, or of a key that was not yet drawn.
"""

import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._ground.exact import exact_key
from .._states.keys import is_typed_key
from .entries import is_array


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was found.

    `what` lists some of `shape`, `dtype` and `value`; `differing` counts elements, and `distance`
    is the norm of the difference of inexact arrays. `known` says whether values could be compared,
    if shapes and dtypes allow it.
    """

    what: tuple[str, ...] = ()
    differing: int | None = None
    distance: float | None = None
    known: bool = True


_SAME = Comparison()


def compare(old: Any, new: Any) -> Comparison:
    """Compare two leaves. The same object is not looked into."""
    if old is new:
        return _SAME
    if not (is_array(old) and is_array(new)):
        same = not is_array(old) and not is_array(new) and same_static(old, new)
        return _SAME if same else Comparison(("value",))
    what = ("shape",) * (old.shape != new.shape) + ("dtype",) * (old.dtype != new.dtype)
    if old.shape != new.shape or not _comparable(old, new):
        return Comparison(what)
    olds, news = _known(old), _known(new)
    if olds is None or news is None:
        return Comparison(what, known=False)
    return _compare_values(what, olds, news, np.ndim(old))


def _compare_values(what: tuple[str, ...], old: Any, new: Any, ndim: int) -> Comparison:
    inexact = _is_inexact(old) or _is_inexact(new)
    if inexact or old.dtype != new.dtype:
        old, new = _wide(old), _wide(new)
    same = np.asarray(old == new)
    if inexact:
        same |= np.isnan(old) & np.isnan(new)
    # Only where they differ, because the difference of two infinities would be `nan`.
    distance = _norm(new[~same], old[~same]) if inexact else None
    # The data of a key is along axes after those of the array of keys.
    differing = np.count_nonzero(~same.all(tuple(range(ndim, same.ndim))))
    return Comparison((*what, "value") if differing else what, int(differing), distance)


def _norm(new: Any, old: Any = 0.0) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(new - old))


def norm_of(leaf: Any) -> float | None:
    """The norm of an inexact array whose value is known."""
    value = _known(leaf) if is_array(leaf) else None
    if value is None or not _is_inexact(value):
        return None
    return _norm(_wide(value))


def same_static(old: Any, new: Any) -> bool:
    """Whether two non-array leaves are the same, by type and value."""
    if old is new:
        return True
    try:
        return exact_key(old) == exact_key(new)
    except TypeError:  # unhashable
        return type(old) is type(new) and bool(old == new)


def _comparable(old: Any, new: Any) -> bool:
    """Numbers compare with numbers, and anything else, such as keys, with its own dtype."""
    return old.dtype == new.dtype or (_is_number(old) and _is_number(new))


def _is_number(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, np.number) or jnp.issubdtype(x.dtype, np.bool_))


def _known(x: Any) -> Any:
    """The value on the host, or `None`."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer) or x.is_deleted():
        return None
    if not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    # Concrete arrays are looked at as they are, also while JAX traces something.
    with jax.ensure_compile_time_eval():
        return np.asarray(jr.key_data(x) if is_typed_key(x) else x)


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _wide(x: Any) -> Any:
    """In double precision, which NumPy computes with whatever the dtype was, `bfloat16` included."""
    dtype = np.complex128 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64
    return x.astype(dtype)
