"""Running `init_state` on every module of a tree.

A module takes part if it defines `init_state`. Children go first, each gets the keywords that its
signature names, and a module of `pstate.nn` may assign its declared fields while it is being
initialised. A *keeper*, `nn.Map`, makes the states of the modules that it holds by itself, in
lanes: it is called instead of them.
"""

import dataclasses
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._ground.paths import Path, to_path, to_place
from .._states.state import State, is_state, make_frozen
from .slots import root_name


class _Initialising(threading.local):
    """The modules of the tree that is being initialised, by identity, and what was assigned to them."""

    paths: dict[int, Path] | None = None
    assigned: dict[Path, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Initialised:
    """What an initialisation changed in a tree, other than the values that it wrote into states.

    By path: the values `assigned` to declared fields, among them the `static` fields, which no
    mapping carries, and the `tags` that states got.
    """

    assigned: dict[Path, Any]
    static: dict[Path, Any]
    tags: dict[Path, tuple[str, ...]]


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


def run_init_states(live: Any, kwargs: dict[str, Any]) -> Initialised:
    """Run `init_state` in a tree whose states are live. Fields keep what is assigned to them.

    **Returns:** the changes other than written values.

    **Raises:** `TypeError` for a keyword that no `init_state` names, and for one that is missing.
    """
    modules = list(_modules(live, ()))
    root = root_name(live)
    takers = [(path, module) for path, module in modules if hasattr(module, "init_state")]
    accepted = {id(module): _accepted(module, kwargs, to_place(root, path)) for path, module in takers}
    _refuse_unknown(kwargs, accepted.values(), root, [to_place(root, path) for path, _ in takers])
    keepers = _keepers(modules)
    static: dict[Path, Any] = {}
    tags: dict[Path, tuple[str, ...]] = {}
    with _initialise({id(module): to_path(path) for path, module in modules}) as assigned:
        for path, module in modules:
            at = to_path(path)
            if any(_is_inside(at, keeper) for keeper in keepers):
                continue
            if at in keepers:
                names = {n for p, m in takers if _is_inside(to_path(p), at) for n in accepted[id(m)]}
                made = module._init_kept({name: kwargs[name] for name in kwargs if name in names})
                own = {(*at, *inner): value for inner, value in made.assigned.items()}
                _set(live, own)
                assigned.update(own)
                static.update({(*at, *inner): value for inner, value in made.static.items()})
                tags.update({(*at, *inner): tag for inner, tag in made.tags.items()})
            elif id(module) in accepted:
                module.init_state(**{name: kwargs[name] for name in accepted[id(module)]})
    _set(live, static)
    by_path = _by_path(live)
    for path in [p for p in assigned if _is_static(by_path[p[:-1]], p[-1])]:
        static[path] = assigned.pop(path)
    return Initialised(assigned, static, tags)


def _keepers(modules: list[tuple[tuple[Any, ...], Any]]) -> set[Path]:
    """The paths of the outermost keepers."""
    found = {to_path(path) for path, module in modules if hasattr(type(module), "_init_kept")}
    return {path for path in found if not any(_is_inside(path, other) for other in found)}


def _is_inside(path: Path, other: Path) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def _is_static(module: Any, name: str) -> bool:
    return any(f.name == name and f.metadata.get("static", False) for f in dataclasses.fields(module))


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
            f"No `init_state` in `{root}` takes the keyword {unknown[0]!r}; `init_state` is defined at "
            f"{', '.join(places) or 'no module'}. Leave it out, or add it to the init_state that "
            "needs it."
        )


def with_fields(module: Any, fields: dict[Path, Any]) -> Any:
    """A copy of a frozen module with fields assigned, by path."""
    if not fields:
        return module
    fresh = jtu.tree_map(lambda leaf: leaf, module)
    _set(fresh, fields)
    return fresh


def with_tags(tree: Any, tags: dict[Path, tuple[str, ...]]) -> Any:
    """A copy of a frozen tree in which the states at these paths have these tags."""
    if not tags:
        return tree

    def tagged(key_path: Any, item: Any) -> Any:
        tag = tags.get(to_path(key_path)) if isinstance(item, State) else None
        return item if tag is None else make_frozen(type(item), tag, item._peek())

    return jtu.tree_map_with_path(tagged, tree, is_leaf=is_state)


def _set(module: Any, fields: dict[Path, Any]) -> None:
    by_path = _by_path(module) if fields else {}
    for path, value in fields.items():
        object.__setattr__(by_path[path[:-1]], path[-1], value)


def _by_path(module: Any) -> dict[Path, Any]:
    return {to_path(path): each for path, each in _modules(module, ())}
