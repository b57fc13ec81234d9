"""`Map`: a module, many times over."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from .._calls.callables import Method
from .._ground.exact import Exact
from .._ground.integers import as_count
from .._ground.paths import Path
from .._ground.public import public_in
from .._ground.typing import StateAxes
from .._ground.values import same
from .._mapping.mapping import StatefulMapping
from .._mapping.new_states import Made, NewStates, make_new_states
from .._mapping.options import check_name
from .._trees.axis_specs import Rule, Rules, parse_state_axes
from .._trees.bulk import states
from .._trees.initialising import Initialised


_BEHAVIORS = ("vmap", "pmap")


@dataclasses.dataclass(frozen=True)
class AtPaths:
    """A filter: the states at these paths."""

    paths: frozenset[Path]

    def __call__(self, path: Path, leaf: Any) -> bool:
        return path in self.paths


@dataclasses.dataclass(frozen=True, eq=False)
class _Options:
    """The options that a `Map` was made with. Not part of the pytree; compared by `key`."""

    init_state_axes: StateAxes
    state_tag: str | None
    in_axes: Any
    out_axes: Any
    axis_name: Any
    spmd_axis_name: Any
    call_state_axes: StateAxes
    key: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Options) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


@public_in("pstate.nn")
class Map(eqx.Module):
    """A module whose states are made, and whose methods are run, for many lanes at once.

    It is itself a module: `jax.jit`, gradients, `eqx.tree_serialise_leaves` and further mappings
    take it. Other modules may hold it, and their `init_all_states` makes the states of its lanes
    too. A `Map` of a `Map` has lanes within lanes.

    **Arguments:**

    - `module`: an Equinox module in which some module defines `init_state`.
    - `init_map_size`: the number of lanes.
    - `init_state_axes`: along which axes new states get their lanes, `{axis: filter}`; by default
        axis 0, and no axis for a `NonBatchState`.
    - `state_tag`: a tag that the new states get.
    - `in_axes`, `out_axes`: of the arguments and the output of `update`, as for `pstate.vmap2`.
    - `axis_name`: a name for collectives, in `update` and, unless you pass another one there, in
        `map`.
    - `spmd_axis_name`: as for `jax.vmap`; not for `behavior="pmap"`.
    - `call_state_axes`: the axes along which states are fed to calls; they override those on which
        the states were made.
    - `behavior`: `"vmap"` on one device, or `"pmap"` with one device per lane.

    **Raises:** `ValueError` for arguments that do not fit, and for a call before `init_all_states`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> class Accumulator(ps.nn.Module):
        ...     total: ps.ShortTermState = ps.ShortTermState()
        ...     def init_state(self):
        ...         self.total.value = 0.0
        ...     def update(self, x):
        ...         self.total.value += x
        ...         return self.total.value
        >>> mapper = ps.nn.Map(Accumulator(), init_map_size=3).init_all_states()
        >>> out, mapper = ps.pure(mapper.update)(jnp.arange(3.0))
        >>> mapper.module.total.value
        Array([0., 1., 2.], dtype=float32)
    """

    module: Any
    init_map_size: int = eqx.field(static=True)
    behavior: str = eqx.field(static=True)
    _options: _Options = eqx.field(static=True, repr=False)
    _axes: tuple[tuple[int | None, frozenset[Path]], ...] | None = eqx.field(static=True, repr=False)

    def __init__(
        self,
        module: Any,
        init_map_size: Any,  # checked below, with its own message
        init_state_axes: StateAxes = None,
        state_tag: str | None = None,
        in_axes: Any = 0,
        out_axes: Any = 0,
        axis_name: Any = None,
        spmd_axis_name: Any = None,
        call_state_axes: StateAxes = None,
        behavior: str = "vmap",
    ):
        if not isinstance(module, eqx.Module):
            raise ValueError(
                f"Map maps an Equinox module; got {module!r} of type {type(module).__name__}. For a "
                "function use ps.vmap2(f)."
            )
        size = as_count(init_map_size, "init_map_size", "the number of lanes", least=1, example=10)
        check_name(axis_name, "axis_name")
        check_name(spmd_axis_name, "spmd_axis_name")
        if behavior not in _BEHAVIORS:
            raise ValueError(
                f"behavior is one of {', '.join(map(repr, _BEHAVIORS))}; got {behavior!r}. Write "
                "behavior='vmap'."
            )
        if behavior == "pmap" and spmd_axis_name is not None:
            raise ValueError(
                f"spmd_axis_name={spmd_axis_name!r} is an option of jax.vmap, but behavior is 'pmap'. "
                "Leave it out, or write behavior='vmap'."
            )
        self.module = module
        self.init_map_size = size
        self.behavior = behavior
        rules = (
            parse_state_axes(init_state_axes, "init_state_axes"),
            parse_state_axes(call_state_axes, "call_state_axes"),
        )
        key = Exact((*rules, state_tag, in_axes, out_axes, axis_name, spmd_axis_name))
        self._options = _Options(
            init_state_axes,
            state_tag,
            in_axes,
            out_axes,
            axis_name,
            spmd_axis_name,
            call_state_axes,
            key,
        )
        self._axes = None

    @property
    def dict_vmap_states(self) -> NewStates | None:
        """The states that were made for the lanes, `{axis: {path: state}}`; `None` before that."""
        if self._axes is None:
            return None
        known = states(self.module)
        return {
            axis: {path: known[path] for path in sorted(paths, key=str)} for axis, paths in self._axes
        }

    def init_all_states(self, **kwargs: Any) -> "Map":
        """Make the states of the module for all lanes, in one run of `init_state`.

        **Arguments:** the keywords of the module's `init_all_states`, the same for all lanes; a
        `RandomState` among them is split.

        **Returns:** the map with its states. It is ready for `update` and `map`.
        """
        made, axes = self._make(kwargs)
        mapper = object.__new__(Map)
        for field in dataclasses.fields(self):
            object.__setattr__(mapper, field.name, getattr(self, field.name))
        object.__setattr__(mapper, "module", made.module)
        object.__setattr__(mapper, "_axes", axes)
        return mapper

    def _make(self, kwargs: dict[str, Any]) -> tuple[Made, Any]:
        options = self._options
        made = make_new_states(
            self.module,
            kwargs,
            options.state_tag,
            self.init_map_size,
            options.init_state_axes,
            jax.vmap if self.behavior == "vmap" else jax.pmap,
            ("init_state_axes", "ps.nn.Map"),
        )
        return made, tuple((axis, frozenset(found)) for axis, found in made.states.items())

    def _init_kept(self, kwargs: dict[str, Any]) -> Initialised:
        """Be initialised as part of a tree whose states are live: the new values are written there."""
        made, axes = self._make(kwargs)
        run = made.initialised
        values = states(made.module)
        for path, state in states(self.module).items():
            new = values.get(path)
            assigned = any(path[: len(field)] == field for field in run.assigned)
            if new is not None and not assigned and not same(state._peek(), new._peek()):
                state.value = new._peek()
        static = {("module", *path): value for path, value in run.static.items()}
        return Initialised(
            {("module", *path): value for path, value in run.assigned.items()},
            {("_axes",): axes, **static},
            {("module", *path): tags for path, tags in run.tags.items()},
        )

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's `update`, or the module itself if it has none, in every lane.

        A stateful function: `out, mapper = ps.pure(mapper.update)(x)`.

        **Raises:** `ValueError` before `init_all_states`.
        """
        name = "update" if hasattr(type(self.module), "update") else "__call__"
        options = self._options
        return self.map(name, options.in_axes, options.out_axes)(*args, **kwargs)

    def map(
        self,
        fn: str | Callable[..., Any],
        in_axes: Any = 0,
        out_axes: Any = 0,
        axis_name: Any = None,
        state_axes: StateAxes = None,
    ) -> Callable[..., Any]:
        """A method of the module, or a function that gets the module first, in every lane.

        **Arguments:**

        - `fn`: the name of a method, or a function `fn(module, *args)`.
        - `in_axes`, `out_axes`: as for `pstate.vmap2`; leave out the module.
        - `axis_name`: a name for collectives; by default the one that the map was made with.
        - `state_axes`: the axes along which states are fed, instead of those on which they were
            made; states that it does not select are shared. A state that was made for the lanes is
            written back along its axis.

        **Returns:** a stateful function: `out, mapper = ps.pure(mapper.map("predict"))(x)`.

        **Raises:** `ValueError` before `init_all_states`; `AttributeError` for an unknown method.
        """
        if self._axes is None:
            raise ValueError(
                "The map has no states yet: init_all_states has not run. Make them first: "
                "mapper = mapper.init_all_states(...)."
            )
        if isinstance(fn, str) and not hasattr(type(self.module), fn):
            kind = type(self.module)
            known = sorted(name for name in vars(kind) if callable(getattr(kind, name)))
            known = [name for name in known if not name.startswith("_")]
            raise AttributeError(
                f"{kind.__name__} has no method {fn!r}; it has {', '.join(known) or 'none of its own'}. "
                f"Name one of these: mapper.map({(known or ['__call__'])[0]!r})."
            )
        name = self._options.axis_name if axis_name is None else axis_name
        return Method(_MapCaller(fn, Exact(in_axes), Exact(out_axes), name, Exact(state_axes)), self)

    def _mapping(
        self, fn: Any, in_axes: Any, out_axes: Any, axis_name: Any, state_axes: StateAxes
    ) -> StatefulMapping:
        function = getattr(type(self.module), fn) if isinstance(fn, str) else fn
        assert self._axes is not None
        made = tuple(Rule(axis, AtPaths(paths)) for axis, paths in self._axes)
        if state_axes is None:
            fed = (*parse_state_axes(self._options.call_state_axes, "call_state_axes"), *made)
        else:
            fed = parse_state_axes(state_axes, "state_axes")
        spmd = self._options.spmd_axis_name
        return StatefulMapping(
            Method(function, self.module),
            in_axes=in_axes,
            out_axes=out_axes,
            state_in_axes=Rules(fed),
            state_out_axes=Rules(made),
            axis_size=self.init_map_size,
            axis_name=axis_name,
            mapping_fn=jax.vmap if self.behavior == "vmap" else jax.pmap,
            mapping_kwargs={} if spmd is None else {"spmd_axis_name": spmd},
        )


@dataclasses.dataclass(frozen=True)
class _MapCaller:
    """The stateful function, of the map and the arguments, that `Map.map` binds to the map."""

    fn: Any
    in_axes: Exact
    out_axes: Exact
    axis_name: Any
    state_axes: Exact

    def __call__(self, mapper: Map, *args: Any, **kwargs: Any) -> Any:
        axes = self.in_axes.value, self.out_axes.value, self.axis_name, self.state_axes.value
        return Map._mapping(mapper, self.fn, *axes)(*args, **kwargs)
