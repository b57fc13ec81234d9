"""Integers that a program depends on: how many lanes, how many steps, which arguments; and their names.

Like JAX, pstate accepts any concrete integer: a Python or NumPy integer, or a JAX array. It is kept
as a Python `int`. A traced integer is refused: a program cannot depend on what it computes.
"""

import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex

import jax
import jax.core

from .values import short_type


#: An integer of any of these types, to a type checker.
Integer = SupportsIndex

#: Positions of arguments: one, or several.
Positions = SupportsIndex | Iterable[SupportsIndex]


def as_count(value: Any, name: str, what: str, *, least: int, example: int) -> int:
    """A number of things as an `int`. `name` is the option, and `what` says what it counts.

    **Raises:** `TypeError` for a traced integer, and `ValueError` for anything but an integer of at
    least `least`.
    """
    refuse_traced(value, name, f"{name}={example}, or {name}=x.shape[0]")
    count = as_index(value)
    if count is None or count < least:
        raise ValueError(
            f"{name} is {what}, an integer of at least {least}; got {value!r}. Write {name}={example}."
        )
    return count


def as_index(value: Any) -> int | None:
    """A concrete integer as an `int`; `None` for anything else, such as a bool."""
    if isinstance(value, bool | jax.core.Tracer):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_positions(value: Any, name: str) -> tuple[int, ...]:
    """Positions of arguments, one or several, as a tuple.

    **Raises:** `TypeError` for anything else.
    """
    refuse_traced(value, name, f"{name}=0")
    one = as_index(value)
    if one is not None:
        return (one,)
    several = (
        [as_index(v) for v in value] if isinstance(value, Iterable) and not _is_text(value) else [None]
    )
    if None in several:
        raise TypeError(
            f"{name} counts positional arguments from 0, an integer or several; got {value!r}. Write "
            f"{name}=0. Keyword arguments have no position."
        )
    return tuple(i for i in several if i is not None)


def as_names(value: Any, name: str) -> tuple[str, ...]:
    """Names of arguments, one or several, as a tuple.

    **Raises:** `TypeError` for anything else.
    """
    names = (value,) if isinstance(value, str) else value
    names = tuple(names) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(each, str) for each in names):
        raise TypeError(
            f"{name} names arguments, by a string or several; got {value!r}. Write {name}='x'."
        )
    return names


def as_argnums(value: Any, name: str = "argnums") -> int | tuple[int, ...] | None:
    """The option `argnums`: one position, a tuple of one position and `None` mean different things."""
    if value is None:
        return None
    positions = as_positions(value, name)
    return positions if as_index(value) is None else positions[0]


def refuse_traced(value: Any, name: str, right: str) -> None:
    """Raise if an integer that the program depends on is traced. `right` is the right code."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is part of the program, and got a traced {short_type(value)}, which has no value "
            f"before the program runs. Pass an integer that is known beforehand: {right}. In jax.jit, "
            "static_argnums keeps an argument as it is."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)
