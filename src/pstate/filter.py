"""Filters: they select states of a tree.

A filter is called with `(path, leaf)`: the leaf is a state, or a raw array outside states; the path
is the tuple of names and indices that leads to it within its argument, `("layers", 0, "count")`.

Wherever a filter is expected, a literal will do:

| literal | selects |
|---|---|
| a type, `ps.ParamState` | leaves of that type |
| a string, `"encoder"` | states with that tag |
| a callable `(path, leaf) -> bool` | the leaves for which it returns true |
| `...` or `True` | everything |
| `None` or `False` | nothing |
| a tuple or list of filters | whatever any of them selects |

Filters are hashable and combine: `OfType(ps.ParamState) & ~WithTag("frozen")`.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable

import jax.numpy as jnp

from ._ground.paths import Path
from ._ground.typing import Filter
from ._states.kinds import ParamState
from ._states.state import State


__all__ = [
    "All",
    "Any",
    "Everything",
    "Not",
    "Nothing",
    "OfType",
    "PathContains",
    "Trainable",
    "WithTag",
    "to_predicate",
]

_Any = typing.Any


class _Operators:
    """`|`, `&` and `~` between filters and literals."""

    __slots__ = ()

    def __call__(self, path: Path, leaf: _Any) -> bool:
        raise NotImplementedError

    def __or__(self, other: Filter) -> "_Operators":
        return Any(self, other)

    def __ror__(self, other: Filter) -> "_Operators":
        return Any(other, self)

    def __and__(self, other: Filter) -> "_Operators":
        return All(self, other)

    def __rand__(self, other: Filter) -> "_Operators":
        return All(other, self)

    def __invert__(self) -> "_Operators":
        return Not(self)


@dataclasses.dataclass(frozen=True)
class OfType(_Operators):
    """Leaves of a type: a kind of state, or a class of array.

    >>> import pstate as ps
    >>> OfType(ps.HiddenState)((), ps.HiddenState(0.0))
    True
    """

    type: type

    def __call__(self, path: Path, leaf: _Any) -> bool:
        return isinstance(leaf, self.type)

    def __repr__(self) -> str:
        return f"OfType({self.type.__name__})"


@dataclasses.dataclass(frozen=True)
class WithTag(_Operators):
    """States that carry a tag.

    >>> import pstate as ps
    >>> WithTag("slow")((), ps.State(0.0, tag="slow"))
    True
    """

    tag: str

    def __call__(self, path: Path, leaf: _Any) -> bool:
        return isinstance(leaf, State) and self.tag in leaf.tag

    def __repr__(self) -> str:
        return f"WithTag({self.tag!r})"


@dataclasses.dataclass(frozen=True)
class PathContains(_Operators):
    """Leaves whose path has `key`, a name or an index, at any depth.

    >>> PathContains("encoder")(("encoder", "layers", 0), None)
    True
    """

    key: _Any

    def __call__(self, path: Path, leaf: _Any) -> bool:
        return self.key in path

    def __repr__(self) -> str:
        return f"PathContains({self.key!r})"


class _Combined(_Operators):
    """The base of `Any` and `All`: any number of filters, including literals."""

    __slots__ = ("filters",)

    filters: tuple[Callable[..., bool], ...]

    def __init__(self, *filters: Filter):
        self.filters = tuple(to_predicate(f) for f in filters)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.filters == self.filters  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self), self.filters))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.filters))})"


class Any(_Combined):
    """Leaves that at least one of the filters selects.

    >>> import pstate as ps
    >>> Any(ps.ParamState, "slow")((), ps.State(0.0, tag="slow"))
    True
    """

    __slots__ = ()

    def __call__(self, path: Path, leaf: _Any) -> bool:
        return any(f(path, leaf) for f in self.filters)


class All(_Combined):
    """Leaves that all of the filters select.

    >>> import pstate as ps
    >>> All(ps.ParamState, "slow")((), ps.State(0.0, tag="slow"))
    False
    """

    __slots__ = ()

    def __call__(self, path: Path, leaf: _Any) -> bool:
        return all(f(path, leaf) for f in self.filters)


class Not(_Operators):
    """Leaves that the filter does not select.

    >>> import pstate as ps
    >>> Not(ps.ParamState)((), ps.HiddenState(0.0))
    True
    """

    __slots__ = ("filter",)

    filter: Callable[..., bool]

    def __init__(self, filter: Filter):  # noqa: A002 (the word the field uses)
        self.filter = to_predicate(filter)

    def __call__(self, path: Path, leaf: _Any) -> bool:
        return not self.filter(path, leaf)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Not) and other.filter == self.filter

    def __hash__(self) -> int:
        return hash((Not, self.filter))

    def __repr__(self) -> str:
        return f"Not({self.filter!r})"


@dataclasses.dataclass(frozen=True)
class _Everything(_Operators):
    def __call__(self, path: Path | None = None, leaf: _Any = None) -> _Any:
        # In other libraries they are classes, and used as `Everything()`.
        return self if path is None else True

    def __repr__(self) -> str:
        return "Everything"


@dataclasses.dataclass(frozen=True)
class _Nothing(_Operators):
    def __call__(self, path: Path | None = None, leaf: _Any = None) -> _Any:
        return self if path is None else False

    def __repr__(self) -> str:
        return "Nothing"


@dataclasses.dataclass(frozen=True)
class _Trainable(_Operators):
    def __call__(self, path: Path, leaf: _Any) -> bool:
        if isinstance(leaf, State):
            return isinstance(leaf, ParamState)
        dtype = getattr(leaf, "dtype", None)
        return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))

    def __repr__(self) -> str:
        return "Trainable"


#: Selects every leaf. `Everything()` is the same.
Everything = _Everything()

#: Selects no leaf. `Nothing()` is the same.
Nothing = _Nothing()

#: Selects trainable leaves: every `ParamState`, and inexact arrays outside states.
Trainable = _Trainable()


def _check_parameters(function: Callable[..., _Any]) -> None:
    """Refuse a callable that does not take a path and a leaf, such as `eqx.is_array`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # its signature is not known
        return
    try:
        signature.bind((), None)
    except TypeError:
        name = getattr(function, "__name__", "f")
        name = name if name.isidentifier() else "f"
        raise TypeError(
            f"A callable filter takes (path, leaf); got {name}{signature}, which does not take these "
            f"two. Write a function of both: lambda path, leaf: {name}(leaf)."
        ) from None


def to_predicate(filter: Filter) -> Callable[..., bool]:  # noqa: A002
    """A literal as a hashable `(path, leaf) -> bool`; see the table at the top of this module.

    **Raises:** `TypeError` for anything but a filter, for a callable with other arguments, and for
    a state.

    >>> import pstate as ps
    >>> to_predicate((ps.ParamState, "slow"))
    Any(OfType(ParamState), WithTag('slow'))
    """
    match filter:
        case _Operators():
            return filter
        case State():
            raise TypeError(
                f"A state is not a filter, because states are values and have no identity; got "
                f"{filter!r}. Select it by a tag it was made with, or by its path:\n"
                '    ps.State(value, tag="mine")  # and then the filter "mine"\n'
                '    ps.filter.PathContains("count")'
            )
        case type():
            return OfType(filter)
        case str():
            return WithTag(filter)
        case types.UnionType():
            return Any(*filter.__args__)
        case True:
            return Everything
        case False | None:
            return Nothing
        case tuple() | list():
            return Any(*filter)
        case _ if filter is ...:
            return Everything
        case _ if callable(filter):
            _check_parameters(filter)
            return filter
        case _:
            raise TypeError(
                f"A filter is a type, a tag, a callable (path, leaf) -> bool, ..., None, or a list of "
                f"these; got {filter!r} of type {type(filter).__name__}. To select a kind write "
                "ps.ParamState, to select a tag write 'name'."
            )
