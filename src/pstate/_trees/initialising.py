"""Running `init_state` on every module of a tree.

A module takes part if it defines `init_state`. Children go first, each gets the keywords that it names,
and a module of `pstate.nn` may assign its declared fields while it is being initialised.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._ground.paths import Path, to_path, to_place
from .._states.state import State
from .slots import root_name


class _Initialising(threading.local):
    """The modules of the tree that is being initialised, by identity, and what was assigned to them."""

    paths: dict[int, Path] | None = None
    assigned: dict[Path, Any] | None = None


_initialising = _Initialising()


def assign(module: Any, name: str, value: Any) -> bool:
    """Assign a field of a module that is being initialised; `False` for any other module."""
    paths = _initialising.paths
    if paths is None or id(module) not in paths:
        return False
    assert _initialising.assigned is not None
    object.__setattr__(module, name, value)
    _initialising.assigned[(*paths[id(module)], name)] = value
    return True


def run_init_states(live: Any, kwargs: dict[str, Any]) -> dict[Path, Any]:
    """Run `init_state` in a tree whose states are live.

    **Returns:** what was assigned to declared fields, by path.

    **Raises:** `TypeError` for a keyword that no `init_state` names, and for one that is missing.
    """
    modules = list(_modules(live, ()))
    root = root_name(live)
    takers = [(path, module) for path, module in modules if hasattr(module, "init_state")]
    accepted = {id(module): _accepted(module, kwargs, to_place(root, path)) for path, module in takers}
    _refuse_unknown(kwargs, accepted.values(), root, [to_place(root, path) for path, _ in takers])
    with _initialise({id(module): to_path(path) for path, module in modules}) as assigned:
        for _, module in takers:
            module.init_state(**{name: kwargs[name] for name in accepted[id(module)]})
    return assigned


@contextmanager
def _initialise(paths: dict[int, Path]) -> Iterator[dict[Path, Any]]:
    outer = _initialising.paths, _initialising.assigned
    _initialising.paths, _initialising.assigned = paths, {}
    try:
        yield _initialising.assigned
    finally:
        _initialising.paths, _initialising.assigned = outer


def _modules(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The modules of a tree with their key paths, children first."""

    def stops(x: Any) -> bool:
        return x is not node and isinstance(x, eqx.Module | State)

    for key_path, child in jtu.tree_flatten_with_path(node, is_leaf=stops)[0]:
        if isinstance(child, eqx.Module) and child is not node:
            yield from _modules(child, (*path, *key_path))
    if isinstance(node, eqx.Module):
        yield path, node


def _accepted(module: Any, kwargs: dict[str, Any], place: str) -> tuple[str, ...]:
    """The keywords that go to a module's `init_state`."""
    parameters = inspect.signature(module.init_state).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return tuple(kwargs)
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    missing = [name for name in required if name not in kwargs]
    if missing:
        raise TypeError(
            f"`{place}.init_state` needs the keyword {missing[0]!r}, which was not given; given were "
            f"{sorted(kwargs)}. Pass it: init_all_states({missing[0]}=...)."
        )
    return tuple(p.name for p in parameters if p.name in kwargs)


def _refuse_unknown(kwargs: dict[str, Any], accepted: Any, root: str, places: list[str]) -> None:
    known = {name for names in accepted for name in names}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise TypeError(
            f"No `init_state` in `{root}` names the keyword {unknown[0]!r}; it was asked at "
            f"{', '.join(places) or 'no module'}. Leave it out, or name it in the init_state that "
            "needs it."
        )


def with_assigned(module: Any, assigned: dict[Path, Any]) -> Any:
    """A copy of a frozen module with fields assigned, by path."""
    if not assigned:
        return module
    fresh = jtu.tree_map(lambda leaf: leaf, module)
    by_path = {to_path(path): each for path, each in _modules(fresh, ())}
    for path, value in assigned.items():
        object.__setattr__(by_path[path[:-1]], path[-1], value)
    return fresh
