"""Lanes for states that have none: `broadcast`."""

from typing import Any, TypeVar

import jax.numpy as jnp
import jax.tree_util as jtu

from .._ground.errors import BatchAxisError, UnmatchedFilterWarning
from .._ground.integers import Integer, as_count
from .._ground.paths import Path
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import StateAxes
from .._states.keys import batch_shape, split_for_lanes
from .._states.messages import warn
from .._states.random_state import RandomState
from .._states.state import State
from .axis_specs import Rule, parse_state_axes
from .bulk import states, update
from .unmatched import unmatched_message


T = TypeVar("T")


@public
@short_tracebacks
def broadcast(tree: T, state_axes: StateAxes, axis_size: Integer) -> T:
    """Give states a lane axis, so that a mapping can feed them along it.

    Each lane starts with the state's current value, as by `jnp.broadcast_to`. A `RandomState` is
    split instead, so that lanes draw different numbers: they get the keys that a mapping over as
    many lanes would give them, and the key itself is used up.

    To reset the states later, keep what this returns:
    `net = ps.update(net, ps.states(fresh, ps.HiddenState))`.

    **Arguments:**

    - `tree`: any pytree with states. If they are live, the values are written into them.
    - `state_axes`: `{axis: filter}` in priority order, or a bare filter meaning `{0: filter}`, as
        `state_in_axes` of a mapping takes it. A state under `None`, or one that no filter matches,
        stays as it is, and so does an empty one.
    - `axis_size`: the number of lanes.

    **Returns:** the tree with the new values, of shape `(..., axis_size, ...)`; the same tree if
    its states are live. A filter that selects no state causes a warning (`UnmatchedFilterWarning`).

    **Raises:** `BatchAxisError` for an axis that does not fit a value; `ValueError` for an
    `axis_size` that is not a number of lanes; `AliasedStateError` for one state at two places.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> net = {"h": ps.HiddenState(jnp.zeros(3)), "w": ps.ParamState(jnp.ones(3))}
        >>> ps.broadcast(net, {0: ps.HiddenState}, 4)
        {'h': HiddenState(f32[4,3]), 'w': ParamState(f32[3])}
    """
    n = as_count(axis_size, "axis_size", "the number of lanes", least=0, example=4)
    rules = parse_state_axes(state_axes, "state_axes")
    found = states(tree)
    _warn_of_unmatched(rules, found)
    new: dict[Path | str, Any] = {}
    for path, state in found.items():
        axis = next((rule.axis for rule in rules if rule.predicate(path, state)), None)
        if axis is not None and state._peek() is not None:
            new[path] = _with_lanes(state, axis, n, path)
    return update(tree, new)


def _with_lanes(state: State, axis: int, n: int, path: Path) -> Any:
    if not isinstance(state, RandomState):
        return jtu.tree_map(
            lambda leaf: _repeated(leaf, _place(axis, leaf, state, path), n), state.value
        )
    key: Any = state.value
    place = _place(axis, key, state, path)
    if place > len(batch_shape(key)):  # among the numbers of a raw key
        raise BatchAxisError(_no_axis(axis, batch_shape(key), state, path))
    return jnp.moveaxis(split_for_lanes(key, n)[1], 0, place)


def _repeated(leaf: Any, axis: int, n: int) -> Any:
    shape = (*leaf.shape[:axis], n, *leaf.shape[axis:])
    return jnp.broadcast_to(jnp.expand_dims(leaf, axis), shape)


def _place(axis: int, leaf: Any, state: State, path: Path) -> int:
    ndim = len(leaf.shape) + 1
    if not -ndim <= axis < ndim:
        raise BatchAxisError(_no_axis(axis, leaf.shape, state, path))
    return axis % ndim


def _no_axis(axis: int, shape: tuple[int, ...], state: State, path: Path) -> str:
    return (
        f"The state at {path!r} ({type(state).__name__}) has a value of shape {tuple(shape)}, where "
        f"a lane axis {axis} does not fit. Put the lanes first: ps.broadcast(tree, {{0: ...}}, 4)."
    )


def _warn_of_unmatched(rules: tuple[Rule, ...], found: dict[Path, State]) -> None:
    for rule in rules:
        if rule.wants_a_match and not any(rule.predicate(*each) for each in found.items()):
            given = f"state_axes={rule} of ps.broadcast"
            warn(unmatched_message(given, "tree", found.values()), UnmatchedFilterWarning)
