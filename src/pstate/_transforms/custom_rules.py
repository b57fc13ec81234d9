"""The common base of `custom_vjp` and `custom_jvp`: functions with custom derivative rules.

A *rule* runs as the function does, with live states, and writes what the function writes.

Always: the cotangents and tangents that a rule returns are trees like the arguments, in which
`None` stands for zero, and a state stands for its value.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .._calls.code import as_code
from .._calls.lifting import Lifted
from .._calls.naming import name_of
from .._calls.notes import Note, WriteNote, taken_apart
from .._calls.running import Run
from .._calls.transform import code_of
from .._calls.typed import C, P, R
from .._ground.integers import Positions
from .._ground.values import short_type


class Rules:
    """The rules of one function. They are defined after it is made, and only once."""

    __slots__ = ("functions",)

    def __init__(self):
        self.functions: tuple[Callable[..., Any], ...] = ()


class RuleOptions(TypedDict, total=False):
    """The options of `custom_vjp` and `custom_jvp`."""

    nondiff_argnums: Positions
    nondiff_argnames: str | tuple[str, ...]


class CustomRule(Lifted[P, R, C]):
    """A stateful function with rules for its derivatives."""

    __slots__ = ("nondiff_argnames", "nondiff_argnums", "rules")

    rules: Rules
    nondiff_argnums: tuple[int, ...]
    nondiff_argnames: tuple[str, ...]

    @property
    def beside(self) -> tuple[Callable[..., Any], ...]:
        """The rules, which may run instead of the function."""
        return self.rules.functions

    def _tell(self, *functions: Callable[..., Any]) -> None:
        if self.rules.functions:
            raise AttributeError(
                f"{self._code()} already has its rules, and programs may have been compiled with them. "
                f"Make another one: ps.{self._name()}({name_of(self.fun)})."
            )
        self.rules.functions = functions

    def _told(self, line: str) -> tuple[Any, ...]:
        """The rules.

        **Raises:** `AttributeError` if they are not defined.
        """
        if not self.rules.functions:
            name = name_of(self.fun)
            raise AttributeError(
                f"{self._code()} was called, but has no rule for its derivative. Define it first: "
                f"{name}.{line}."
            )
        return self.rules.functions

    def _name(self) -> str:
        raise NotImplementedError

    def _code(self) -> str:
        options = [
            f"{name}={as_code(value)}"
            for name in ("nondiff_argnums", "nondiff_argnames")
            if (value := getattr(self, name))
        ]
        return f"ps.{self._name()}({', '.join([code_of(self.fun), *options])})"

    def _maker(self) -> Callable[[Any], Any]:
        raise TypeError(
            f"{self!r} cannot be pickled: its rules belong to this object. Decorate a module-level "
            f"function, @ps.{self._name()}, which is pickled by its name."
        )


class Traced:
    """The results of running the function and its rule in one call: the first run defines the output.

    JAX runs one of them, or both; their results must line up.
    """

    def __init__(self, name: str):
        self._name = name  # not the function: bound to a live tree, it would keep tracers
        self.note: Note | None = None

    def taken_apart(
        self, run: Run, place: Callable[[int], str], rule: Any = None
    ) -> tuple[list[Any], Note]:
        """The arrays that a run returns, and what they mean. `rule` is the rule that ran, if not
        the function; `place` returns a slot as code.

        **Raises:** `TypeError` if function and rule do not agree.
        """
        arrays, note = taken_apart(run)
        first = self.note
        if first is None:
            self.note = note
            return arrays, note
        if first.out_treedef != note.out_treedef:
            raise TypeError(
                f"{self._name} and its rule {_name(rule)} must return the same output, but the "
                f"structures differ: {first.out_treedef} and {note.out_treedef}."
            )
        if _written(first) != _written(note):
            differ = {index for index, _ in _written(first) ^ _written(note)}
            places = ", ".join(f"`{place(i)}`" for i in sorted(differ))
            raise TypeError(
                f"{self._name} and its rule {_name(rule)} must write the same states, but they differ "
                f"in {places}. Let both write the same: a gradient must not change what a call does."
            )
        return arrays, note


def _written(note: Note) -> set[tuple[int, Any]]:
    return {(index, treedef) for index, treedef, _ in note.writes}


def _name(rule: Any) -> str:
    return getattr(rule, "__qualname__", "").rpartition("<locals>.")[2] or repr(rule)


# Arrays that have derivatives ------------------------------------------------------------------------


def is_inexact(x: Any) -> bool:
    """Whether an array has a derivative."""
    return jnp.issubdtype(jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype, jnp.inexact)


def materialised(x: Any) -> Any:
    """A cotangent or tangent as an array; `None` if there is none."""
    if isinstance(x, SymbolicZero):
        aval: Any = x.aval
        return None if aval.dtype == jax.dtypes.float0 else jnp.zeros(aval.shape, aval.dtype)
    x = without_numbers(x)
    return None if x.dtype == jax.dtypes.float0 else x


def without_numbers(x: Any) -> Any:
    """An array that JAX passes, which may be a number if nothing is traced."""
    return jnp.asarray(x) if isinstance(x, bool | int | float | complex) else x


def fitting(value: Any, like: Any, place: str, what: str) -> Any:
    """A cotangent or tangent of an array, as an array of its shape and dtype.

    **Raises:** `TypeError` for another shape or dtype.
    """
    if isinstance(value, bool | int | float | complex):
        value = jnp.full(like.shape, value, like.dtype) if like.shape == () else jnp.asarray(value)
    if not hasattr(value, "dtype") or value.shape != like.shape or value.dtype != like.dtype:
        got = (
            short_type(value) if hasattr(value, "dtype") else f"{value!r} of type {type(value).__name__}"
        )
        raise TypeError(
            f"{what} have {got} for `{place}`, but {short_type(like)} is expected. Reduce or cast it: "
            f"jnp.asarray(value, jnp.{like.dtype}).reshape({tuple(like.shape)})."
        )
    return value


def values_of_writes(note: Note, arrays: Sequence[Any]) -> dict[int, tuple[WriteNote, list[Any]]]:
    """By slot, how a written value is put together, and its arrays."""
    n = len(arrays) - sum(count for _, _, count in note.writes)
    found = {}
    for each in note.writes:
        found[each[0]] = each, list(arrays[n : n + each[2]])
        n += each[2]
    return found


def value_of(write: WriteNote, leaves: Sequence[Any]) -> Any:
    """A written value, or values in place of its arrays; `None` if there are none at all."""
    if all(leaf is None for leaf in leaves):
        return None
    return leaves[0] if write[1] is None else write[1].unflatten(leaves)
