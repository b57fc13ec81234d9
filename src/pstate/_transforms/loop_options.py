"""The options of `scan` and `for_loop`, checked, and compared by value.

The *role* of a leaf of `xs` is an axis along which it is sliced; `None`, if it is the same in all
steps; or `"carry"`, if it is held from step to step, which only states can be.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Mapping
from typing import Any

import jax.tree_util as jtu

from .._ground.integers import as_count, as_index
from .._ground.typing import StateAxes
from ..filter import to_predicate
from .progress import BarOptions, Progress, progress_options


#: The role of states that go from step to step.
CARRIED = "carry"


@dataclasses.dataclass(frozen=True)
class LoopRule:
    """The role in a loop of the states that a filter selects."""

    role: Any
    predicate: Callable[..., bool]


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """The options of a loop. `has_carry` distinguishes `scan` from `for_loop`.

    Two are equal if they make the same program; equal values of different types, 1 and True, are
    compared separately.
    """

    has_carry: bool
    length: int | None
    reverse: bool
    unroll: int | bool
    progress: BarOptions | None
    checkpoints: int | None = None
    in_axes: Any = dataclasses.field(default=0, compare=False)
    out_axes: Any = dataclasses.field(default=0, compare=False)
    state_in_axes: tuple[LoopRule, ...] = ()
    state_out_axes: tuple[LoopRule, ...] = ()
    unroll_type: type = dataclasses.field(init=False)
    prefixes: Any = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "unroll_type", type(self.unroll))
        prefixes = _key(self.in_axes, "in_axes"), _key(self.out_axes, "out_axes")
        object.__setattr__(self, "prefixes", prefixes)

    def code(self) -> list[str]:
        """The non-default options, as code."""
        given = (
            ("length", self.length, None),
            ("reverse", self.reverse, False),
            ("unroll", self.unroll, 1),
            ("in_axes", self.in_axes, 0),
            ("out_axes", self.out_axes, 0),
            ("state_in_axes", _rules_code(self.state_in_axes), "{}"),
            ("state_out_axes", _rules_code(self.state_out_axes), "{}"),
            ("checkpoints", self.checkpoints, None),
        )
        shown = lambda value: value if isinstance(value, str) else repr(value)
        return [
            f"{name}={shown(value)}"
            for name, value, default in given
            if type(value) is not type(default) or value != default
        ]


def loop_options(
    *,
    has_carry: bool,
    length: Any,
    reverse: bool,
    unroll: Any,
    progress: Progress,
    in_axes: Any,
    out_axes: Any,
    state_in_axes: StateAxes,
    state_out_axes: StateAxes,
    checkpoints: Any,
) -> LoopOptions:
    """The options of a loop, checked.

    **Raises:** `TypeError` for an invalid key in axis specs, and for a filter of an unusable type;
    `ValueError` for an invalid count.
    """
    simple = (length, reverse, unroll, in_axes, out_axes, checkpoints)
    if state_in_axes is state_out_axes is progress is None and set(map(type, simple)) <= _SIMPLE:
        return _of_simple(has_carry, *simple)
    return _made(
        has_carry,
        *simple,
        state_in_axes=state_in_axes,
        state_out_axes=state_out_axes,
        progress=progress,
    )


_SIMPLE = {int, bool, type(None)}


def _made(
    has_carry: bool,
    length: Any,
    reverse: bool,
    unroll: Any,
    in_axes: Any,
    out_axes: Any,
    checkpoints: Any,
    *,
    state_in_axes: StateAxes = None,
    state_out_axes: StateAxes = None,
    progress: Progress = None,
) -> LoopOptions:
    if length is not None and not isinstance(length, bool):
        length = as_count(length, "length", "the number of steps", least=0, example=10)
    if not isinstance(unroll, bool):
        unroll = as_count(unroll, "unroll", "how many steps run in one iteration", least=0, example=1)
    if checkpoints is not None:
        what = "how many steps keep their carry"
        checkpoints = as_count(checkpoints, "checkpoints", what, least=1, example=8)
    return LoopOptions(
        has_carry,
        length,
        reverse,
        unroll,
        progress_options(progress),
        checkpoints,
        tuple(in_axes) if isinstance(in_axes, list) else in_axes,
        out_axes,
        _rules(state_in_axes, "state_in_axes", (None, CARRIED)),
        _rules(state_out_axes, "state_out_axes", ()),
    )


#: Options that need no more than a lookup. `typed` keeps 1 and True apart.
_of_simple = ft.lru_cache(maxsize=256, typed=True)(_made)


def _rules(spec: StateAxes, name: str, others: tuple[Any, ...]) -> tuple[LoopRule, ...]:
    if spec is None:
        return ()
    given = spec if isinstance(spec, Mapping) else {0: spec}
    rules = []
    for key, filter_ in given.items():
        axis = as_index(key)
        if axis is None and not any(key is other or key == other for other in others):
            also = ", None for states that all steps share, and 'carry'" if others else ""
            raise TypeError(
                f"The keys of {name} of a loop are axes{also}; got {key!r}. Write "
                f"{name}={{0: ps.HiddenState}}."
            )
        rules.append(LoopRule(key if axis is None else axis, to_predicate(filter_)))
    return tuple(rules)


def _rules_code(rules: tuple[LoopRule, ...]) -> str:
    return f"{{{', '.join(f'{rule.role!r}: {rule.predicate!r}' for rule in rules)}}}"


def _key(prefix: Any, name: str) -> Any:
    leaves, treedef = jtu.tree_flatten(prefix, is_leaf=lambda x: x is None)
    for leaf in leaves:
        if leaf is not None and as_index(leaf) is None and not (name == "in_axes" and callable(leaf)):
            also = ", None and functions of the leaf" if name == "in_axes" else ""
            raise TypeError(f"{name} of a loop are integers{also}; got {leaf!r}. Write {name}=0.")
    return tuple(leaves), treedef
