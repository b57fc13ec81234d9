"""New states of a module, made for all lanes at once.

`init_state` runs once, mapped. The axis of a state that it makes is the first of these that
applies: no axis, if it is a `NonBatchState`; the axis of the first filter that matches; axis 0.
States that the module held before stay as they were.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.tree_util as jtu

from .._calls.pure import pure
from .._ground.errors import UnmatchedFilterWarning
from .._ground.integers import Integer, as_index, refuse_traced
from .._ground.paths import Path, to_path
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import PyTree, StateAxes
from .._states.catching import catch_new_states
from .._states.keys import is_raw_key, is_typed_key
from .._states.kinds import NonBatchState
from .._states.messages import warn
from .._states.random_state import RandomState
from .._states.state import State, is_state, make_frozen
from .._trees.axis_specs import Rule, Rules, parse_state_axes
from .._trees.bulk import states
from .._trees.initialising import Initialised, run_init_states, with_fields, with_tags
from .._trees.unmatched import unmatched_message
from ..filter import Everything, OfType
from .mapping import StatefulMapping


M = TypeVar("M")
NewStates = dict[int | None, dict[Path, State[Any]]]


@public
@short_tracebacks
def vmap2_new_states(
    module: M,
    init_kwargs: dict[str, Any],
    state_tag: str | None = None,
    axis_size: Integer | None = None,
    state_out_axes: StateAxes = None,
) -> tuple[M, NewStates]:
    """Run `init_all_states` once, mapped, so that each lane has its own states.

    **Arguments:**

    - `module`: an Equinox module in which some module defines `init_state`. It is not changed.
    - `init_kwargs`: the keywords of `init_all_states`, the same for all lanes. A `RandomState`
        among them is split, so that lanes draw different numbers; a bare key is refused. Inside a
        recording a live one is advanced; a frozen one serves as a seed.
    - `state_tag`: a tag that the new states get.
    - `axis_size`: the number of lanes.
    - `state_out_axes`: `{axis: filter}` in priority order, or a bare filter meaning `{0: filter}`.

    **Returns:** `(module, states)`: the module with its new states, and the new states by axis and path,
    `{axis: {path: state}}`. The axis is `None` for a `NonBatchState`; otherwise that of the first
    filter that matches; otherwise 0.

    **Raises:** `ValueError` without `axis_size` and for a bare key; `BatchAxisError` for a
    `NonBatchState` whose value differs between lanes; `TypeError` for keywords that do not fit.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> class Counter(ps.nn.Module):
        ...     count: ps.ShortTermState = ps.ShortTermState()
        ...     def init_state(self):
        ...         self.count.value = 0
        >>> counter, new = ps.vmap2_new_states(Counter(), {}, axis_size=5)
        >>> counter.count, new
        (ShortTermState(i32[5]), {0: {('count',): ShortTermState(i32[5])}})
    """
    spec = "state_out_axes", "ps.vmap2_new_states"
    made = make_new_states(module, init_kwargs, state_tag, axis_size, state_out_axes, jax.vmap, spec)
    return made.module, made.states


@public
@short_tracebacks
def pmap2_new_states(
    module: M,
    init_kwargs: dict[str, Any],
    state_tag: str | None = None,
    axis_size: Integer | None = None,
    state_out_axes: StateAxes = None,
) -> tuple[M, NewStates]:
    """The same as `vmap2_new_states`, with one device per lane.

    **Arguments:** as there; `axis_size` defaults to the number of local devices.

    **Returns:** as there. States with an axis live on their devices, the others are replicated.

    **Raises:** as there, and `ValueError` for more lanes than devices.
    """
    spec = "state_out_axes", "ps.pmap2_new_states"
    made = make_new_states(module, init_kwargs, state_tag, axis_size, state_out_axes, jax.pmap, spec)
    return made.module, made.states


class Made(NamedTuple):
    """The module with its new states; these by axis and path; and the changes other than values."""

    module: PyTree
    states: NewStates
    initialised: Initialised


def make_new_states(
    module: PyTree,
    init_kwargs: dict[str, Any],
    state_tag: str | None,
    axis_size: Integer | None,
    state_out_axes: StateAxes,
    mapping_fn: Any,
    given_as: tuple[str, str],
) -> Made:
    """The work of `vmap2_new_states` and `pmap2_new_states`, with all its results.

    `given_as` is the user's name for `state_out_axes`, and the function that has it.
    """
    if axis_size is None and mapping_fn is jax.pmap:
        axis_size = jax.local_device_count()
    refuse_traced(axis_size, "axis_size", "axis_size=4")
    size = as_index(axis_size)
    if size is None or size < 1:
        raise ValueError(
            "axis_size is the number of lanes, an integer of at least 1, and is needed here; "
            f"got {axis_size!r}. Write axis_size=4."
        )
    for name, value in init_kwargs.items():
        _refuse_bare_keys(name, value)
    option, maker = given_as
    own = parse_state_axes(state_out_axes, option)
    rules = (Rule(None, OfType(NonBatchState)), *own, Rule(0, Everything))
    paths: list[Path] = []
    runs: list[Initialised] = []

    def build(module: PyTree, kwargs: dict[str, Any]) -> list[Any]:
        with catch_new_states(state_tag):
            run = run_init_states(module, kwargs)
        runs[:] = [run]
        paths[:] = run.assigned
        return list(run.assigned.values())

    mapped = StatefulMapping(
        build,
        in_axes=None,
        out_axes=None,
        state_out_axes=_Located(rules, paths),
        # States that are filled get their axis here, deliberately.
        unexpected_out_state_mapping="ignore",
        axis_size=size,
        name="init_all_states",
        mapping_fn=mapping_fn,
    )
    values, (filled, advanced) = pure(mapped, argnums=(0, 1))(module, init_kwargs)
    _advance(init_kwargs, advanced)
    (run,) = runs
    assigned = dict(zip(paths, values, strict=True))
    result = with_tags(with_fields(filled, {**assigned, **run.static}), run.tags)
    tree, new = _tagged(module, result, state_tag, rules)
    found = states(tree)
    for rule in own:
        if rule.wants_a_match and not any(rule.predicate(*each) for each in found.items()):
            given = f"{option}={rule} of {maker}"
            warn(unmatched_message(given, "module", found.values()), UnmatchedFilterWarning)
    tags = {path: state.tag for found in new.values() for path, state in found.items()}
    return Made(tree, new, Initialised(assigned, run.static, {**run.tags, **tags}))


def _advance(init_kwargs: dict[str, Any], advanced: dict[str, Any]) -> None:
    """Write back random states that were drawn from, if live; a frozen one serves as a seed."""
    new = states(advanced)
    for path, state in states(init_kwargs).items():
        if state._cell is not None and not _same(state, new[path]):
            state.value = new[path].value


class _LocatedRule(Rule):
    """A rule that the mapping does not warn about: it knows neither the option nor the module."""

    @property
    def wants_a_match(self) -> bool:
        return False


class _Located(Rules):
    """Rules that see an assigned state at its place in the module, not in the output."""

    def __new__(cls, rules: tuple[Rule, ...], paths: list[Path]) -> "_Located":
        return super().__new__(
            cls, (_LocatedRule(r.axis, _AtItsPlace(r.predicate, paths)) for r in rules)
        )


class _AtItsPlace:
    """The filter behind a located rule. Paths in the output start with the number of the assignment."""

    def __init__(self, predicate: Any, paths: list[Path]):
        self._predicate = predicate
        self._paths = paths

    def __call__(self, path: Path, state: Any) -> bool:
        if path and isinstance(path[0], int):
            return bool(self._predicate((*self._paths[path[0]], *path[1:]), state))
        # A random state that the module held before, and that lanes drew from, keeps one key.
        if isinstance(state, RandomState) and _filled(state):
            return False
        return bool(self._predicate(path, state))

    def __repr__(self) -> str:
        return repr(self._predicate)


def _tagged(
    module: PyTree, result: PyTree, tag: str | None, rules: tuple[Rule, ...]
) -> tuple[PyTree, NewStates]:
    before = states(module)
    new: NewStates = {}

    def visit(key_path: Any, item: Any) -> Any:
        if not isinstance(item, State):
            return item
        path = to_path(key_path)
        old = before.get(path)
        if old is not None and (_same(old, item) or (isinstance(item, RandomState) and _filled(old))):
            return item
        tags = item.tag if tag is None or tag in item.tag else (*item.tag, tag)
        state = make_frozen(type(item), tags, item._peek())
        axis = next(rule.axis for rule in rules if rule.predicate(path, state))
        new.setdefault(axis, {})[path] = state
        return state

    tree = jtu.tree_map_with_path(visit, result, is_leaf=is_state)
    return tree, new


def _same(old: State, item: State) -> bool:
    a, b = jtu.tree_leaves(old), jtu.tree_leaves(item)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _filled(state: State) -> bool:
    return state._peek() is not None


def _refuse_bare_keys(name: str, value: Any) -> None:
    for leaf in jtu.tree_leaves(value, is_leaf=is_state):
        if not isinstance(leaf, State) and (is_typed_key(leaf) or is_raw_key(leaf)):
            raise ValueError(
                f"init_kwargs[{name!r}] holds a bare key, so all lanes would draw the same. Pass a "
                f"random state, which is split: {name}=ps.RandomState(key)."
            )
