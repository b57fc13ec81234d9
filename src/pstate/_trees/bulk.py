"""States in bulk: selecting, listing and updating them, and giving them axes."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import jax
import jax.tree_util as jtu
import numpy as np

from .._ground.errors import AliasedStateError, UnmatchedPathWarning
from .._ground.paths import Path, to_path, to_place
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import Filter, PyTree, StateAxes
from .._states.messages import warn
from .._states.state import State, is_state
from ..filter import Trainable, to_predicate
from .axis_specs import parse_state_axes
from .packed import Packed, pack, unpacked
from .unmatched import warn_of_unmatched


T = TypeVar("T")
S = TypeVar("S", bound=State[Any])

#: Types that count as arrays: also a shape and dtype alone.
ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


class Leaf(NamedTuple):
    """A state, or a leaf outside states."""

    path: Path
    place: str
    leaf: Any


def leaves_of(tree: PyTree) -> tuple[list[Leaf], Any]:
    """The leaves of a tree, where a state counts as a leaf, and its structure down to these."""
    flat, treedef = jtu.tree_flatten_with_path(unpacked(tree), is_leaf=is_state)
    return [Leaf(to_path(kp), to_place("tree", kp), leaf) for kp, leaf in flat], treedef


if TYPE_CHECKING:

    @overload
    def select(tree: Packed[T], filter: Filter = ...) -> T: ...
    @overload
    def select(tree: T, filter: Filter = ...) -> T: ...


@public
def select(tree: Any, filter: Filter = Trainable) -> Any:  # noqa: A002
    """A mask: `tree` with a boolean for every leaf, `True` where `filter` selects.

    For `eqx.partition`, `eqx.filter`, `optax.masked` and similar functions.

    **Arguments:**

    - `tree`: any pytree.
    - `filter`: a filter or literal; see `pstate.filter`. All leaves of a state are selected, or
        none.

    **Returns:** a pytree of `bool` with the structure of `tree`. Leaves that are neither states nor
    arrays are `False`. A filter that names something but selects nothing causes a warning
    (`UnmatchedFilterWarning`).

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> ps.select({"w": ps.ParamState(jnp.ones(2)), "n": ps.State(0)})["w"].value
        True
    """
    return _mask_of(tree, filter, "filter={!r} of ps.select")


@public
def trainable(tree: T, wrt: Filter = Trainable) -> T:
    """The parameters of a tree, as an optimiser wants them, and `None` for everything else.

    It has the structure of the gradient that `ps.grad(..., wrt=wrt)` returns for the tree, which is
    what Optax needs: `optim.init(ps.trainable(model))`, and
    `optim.update(grads, opt_state, ps.trainable(model))` if the optimiser needs the parameters in
    each step. `eqx.is_inexact_array` would select running statistics and hidden states as well, and
    train them.

    **Arguments:**

    - `tree`: any pytree; a packed one stays packed.
    - `wrt`: a filter, as `grad` takes it; by default every `ParamState`, and inexact arrays outside
        states.

    **Returns:** `tree`, with `None` for each leaf that `wrt` does not select; a state without its
    value is empty. `eqx.combine(parameters, tree)` puts them back. A filter that names something
    but selects nothing causes a warning (`UnmatchedFilterWarning`).

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> model = {"w": ps.ParamState(jnp.ones(2)), "b": jnp.ones(2), "mean": ps.BatchState(0.0)}
        >>> ps.trainable(model)
        {'b': Array([1., 1.], dtype=float32), 'mean': BatchState(), 'w': ParamState(f32[2])}
    """
    # Leaf by leaf, and not by `eqx.filter`, so that a packed tree keeps its form.
    mask = jtu.tree_leaves(_mask_of(tree, wrt, "wrt={!r} of ps.trainable"))
    leaves, treedef = jtu.tree_flatten(tree)
    return treedef.unflatten(
        [leaf if is_one else None for leaf, is_one in zip(leaves, mask, strict=True)]
    )


def _mask_of(tree: PyTree, filter: Filter, told: str) -> PyTree:  # noqa: A002
    """The mask of a filter; `told` is what a warning calls the filter."""
    predicate = to_predicate(filter)
    leaves, treedef = leaves_of(tree)
    chosen = [isinstance(i.leaf, (State, *ARRAYS)) and bool(predicate(i.path, i.leaf)) for i in leaves]
    if not any(chosen):
        warn_of_unmatched(predicate, told.format(predicate), (i.leaf for i in leaves))
    # A mask is a tree of states like any other, but it holds Python booleans, and reading one
    # through `.value` shows them as they are.
    return treedef.unflatten(
        [_mask(item.leaf, is_one) for item, is_one in zip(leaves, chosen, strict=True)]
    )


def _mask(leaf: Any, chosen: bool) -> Any:
    return jtu.tree_map(lambda _: chosen, leaf) if isinstance(leaf, State) else chosen


@public
@short_tracebacks
def axes(tree: PyTree, state_axes: StateAxes) -> PyTree:
    """An `in_axes` prefix for raw `jax.vmap`, by filters.

    **Arguments:**

    - `tree`: the argument that will be mapped.
    - `state_axes`: `{axis: filter}` in priority order, or a bare filter meaning `{0: filter}`. Here
        filters also apply to raw arrays.

    **Returns:** `tree` with an axis, or `None`, instead of every state and every leaf outside
    states. Leaves that no filter selects are broadcast (`None`). A filter under an axis that
    selects nothing causes a warning (`UnmatchedFilterWarning`).

    !!! example

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> model = {"w": ps.ParamState(jnp.ones(3)), "h": ps.HiddenState(jnp.ones((5, 3)))}
        >>> in_axes = ps.axes(model, {0: ps.HiddenState})
        >>> jax.vmap(lambda m: m["w"].value @ m["h"].value, in_axes=(in_axes,))(model)
        Array([3., 3., 3., 3., 3.], dtype=float32)
    """
    rules = parse_state_axes(state_axes, "state_axes")

    def axis(item: Leaf) -> int | None:
        if not isinstance(item.leaf, (State, *ARRAYS)):
            return None
        for rule in rules:
            if rule.predicate(item.path, item.leaf):
                return rule.axis
        return None

    leaves, treedef = leaves_of(tree)
    candidates = [item for item in leaves if isinstance(item.leaf, (State, *ARRAYS))]
    for rule in rules:
        if rule.wants_a_match and not any(rule.predicate(i.path, i.leaf) for i in candidates):
            warn_of_unmatched(rule.predicate, f"state_axes={rule} of ps.axes", (i.leaf for i in leaves))
    return treedef.unflatten([axis(item) for item in leaves])


if TYPE_CHECKING:

    @overload
    def states(tree: PyTree, filter: type[S]) -> dict[Path, S]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def states(tree: PyTree, filter: Filter = ...) -> dict[Path, State[Any]]: ...


@public
def states(tree: PyTree, filter: Filter = ...) -> dict[Path, Any]:  # noqa: A002
    """The states of a tree by path.

    **Returns:** `{path: state}` in the order of the tree, for the states that `filter` selects. A
    filter that names something but selects nothing causes a warning (`UnmatchedFilterWarning`).

    !!! example

        >>> import pstate as ps
        >>> ps.states({"w": ps.ParamState(1.0), "n": ps.State(0)}, ps.ParamState)
        {('w',): ParamState(f32[])}
    """
    predicate = to_predicate(filter)
    leaves, _ = leaves_of(tree)
    found = {
        item.path: item.leaf
        for item in leaves
        if isinstance(item.leaf, State) and predicate(item.path, item.leaf)
    }
    if not found:
        warn_of_unmatched(predicate, f"filter={predicate!r} of ps.states", (i.leaf for i in leaves))
    return found


@public
@short_tracebacks
def update(tree: T, values: Mapping[Any, Any], strict: bool = True) -> T:
    """Give states of a tree new values, by path.

    **Arguments:**

    - `tree`: any pytree with states. If they are live, the values are written into them.
    - `values`: `{path: State or value}`, as `states` and `written` return it. A path may be written
        as one string, `"layers.0.count"`. States whose paths are left out stay as they are.
    - `strict`: whether a path without a state raises an error. Otherwise a warning lists the values
        without a state and the states without a value.

    **Returns:** the tree with the new values; the same tree if its states are live.

    **Raises:** `KeyError` for an unknown path.

    !!! example

        >>> import pstate as ps
        >>> net = {"v": ps.HiddenState(3.0), "w": ps.ParamState(2.0)}
        >>> fresh = {"v": ps.HiddenState(0.0), "w": ps.ParamState(1.0)}
        >>> net = ps.update(net, ps.states(fresh, ps.HiddenState))
        >>> net["v"].value.item(), net["w"].value.item()
        (0.0, 2.0)
    """
    leaves, treedef = leaves_of(tree)
    known = {item.path for item in leaves if isinstance(item.leaf, State)}
    values = _by_path(values, known)
    unknown = [path for path in values if path not in known]
    if unknown and strict:
        raise KeyError(
            f"There is no state at {_listed(unknown)}. The tree has states at {_listed(known)}. Write "
            f"one of these{_or_dotted(unknown, known)}, or ps.update(tree, values, strict=False) to "
            "skip the paths that do not fit."
        )
    if not strict:
        missing = [item.path for item in leaves if item.path in known - set(values)]
        _list_mismatches(unknown, missing)
    new = {path: v._received() if isinstance(v, State) else v for path, v in values.items()}
    live = [item for item in leaves if item.path in new and _is_live(item.leaf)]
    _refuse_aliases(item for item in leaves if item.path in new)
    for item in live:
        item.leaf.value = new[item.path]
    if not new or all(_is_live(i.leaf) for i in leaves if i.path in new and isinstance(i.leaf, State)):
        return tree
    updated = treedef.unflatten(
        [
            item.leaf.replace(new[item.path])
            if item.path in new and isinstance(item.leaf, State) and not _is_live(item.leaf)
            else item.leaf
            for item in leaves
        ]
    )
    result: Any = pack(updated) if isinstance(tree, Packed) else updated
    return result


def _by_path(values: Mapping[Any, Any], known: set[Path]) -> dict[Any, Any]:
    """The values by paths that are tuples. A key that is not the name of a state stays as it is."""
    if all(isinstance(path, tuple) for path in values):
        return dict(values)
    named: dict[Any, list[Path]] = {}
    for path in known:
        named.setdefault(_dotted(path), []).append(path)
    result: dict[Any, Any] = {}
    for given, value in values.items():
        paths = [given] if isinstance(given, tuple) else named.get(given, [given])
        if len(paths) > 1 or paths[0] in result:
            found = "each of the states at" if len(paths) > 1 else "a second value for the state at"
            raise KeyError(
                f"{given!r} is {found} {_listed(paths)}. Write the path that you mean as a tuple, and "
                f"once: ps.update(tree, {{{paths[0]!r}: value}})."
            )
        result[paths[0]] = value
    return result


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _or_dotted(unknown: list[Any], known: set[Path]) -> str:
    if all(isinstance(path, tuple) for path in unknown) or not known:
        return ""
    return f" as a tuple, or as one string, {_dotted(min(known, key=str))!r}"


def _is_live(leaf: Any) -> bool:
    return isinstance(leaf, State) and leaf._cell is not None


def _refuse_aliases(items: Iterable[Leaf]) -> None:
    seen: dict[int, Leaf] = {}
    for item in items:
        first = seen.setdefault(id(item.leaf), item)
        if first is not item and item.leaf._peek() is not None:
            raise AliasedStateError(
                f"`{first.place}` and `{item.place}` are one state object at two places, and would "
                "be updated separately. Make two states of it, "
                "or share it on purpose: eqx.nn.Shared(tree, where, get)."
            )


def _listed(paths: Iterable[Any]) -> str:
    shown = [repr(path) for path in paths]
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "") if shown else "no path"


def _list_mismatches(left_over: list[Any], missing: list[Path]) -> None:
    if left_over or missing:
        warn(
            f"update(strict=False): values without a state, which are skipped: {_listed(left_over)}; "
            f"states without a value, which keep their own: {_listed(missing)}.",
            UnmatchedPathWarning,
        )
