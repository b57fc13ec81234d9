"""The options of a mapping, checked, and compared by value."""

import dataclasses
import functools as ft
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.tree_util as jtu

from .._calls.code import as_code
from .._ground.exact import Exact
from .._ground.integers import Integer, Positions, as_count, as_names, as_positions
from .._ground.typing import Filter, StateAxes
from .._trees.axis_specs import Rule, Rules, parse_state_axes
from ..filter import to_predicate
from .chunks import prepare_chunks
from .devices import devices_of, prepare_devices


#: What to do with an undeclared write that differs between lanes.
POLICIES = ("raise", "warn", "ignore")


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """The options of a mapping. Two are equal if their keys are.

    `rules_in` and `rules_out` are the parsed axis specs. `infers` says that the mapping function
    can find out whether lanes agree on a value.
    """

    #: Options that are equal are the same: their key is exact.
    is_exact: ClassVar[bool] = True

    in_axes: Any
    out_axes: Any
    state_in_axes: dict[Any, Any]
    state_out_axes: dict[Any, Any]
    policy: str
    static_argnums: tuple[int, ...]
    static_argnames: tuple[str, ...]
    axis_size: int | None
    axis_name: Any
    name: str | None
    mapping_fn: Callable[..., Any]
    mapping_kwargs: dict[str, Any]
    rules_in: tuple[Rule, ...]
    rules_out: tuple[Rule, ...]
    infers: bool
    chunk_size: int | None
    donate_argnums: tuple[int, ...]
    donate: Any
    key: Any

    @property
    def on_devices(self) -> bool:
        """Whether each lane has its own device."""
        return innermost(self.mapping_fn) is jax.pmap

    @property
    def donates(self) -> bool:
        """Whether any buffers may be given up."""
        return self.donate is not None or bool(self.donate_argnums)

    def replays(self, axis_size: int) -> bool:
        """Whether the body is traced first and then run by a separate engine."""
        return self.on_devices or (self.chunk_size is not None and self.chunk_size < axis_size)

    def prepare(self, traced: Any) -> Callable[..., list[Any]]:
        """The engine for a traced body."""
        if self.on_devices:
            return prepare_devices(traced, self.mapping_fn, self.mapping_kwargs)
        assert self.chunk_size is not None
        return prepare_chunks(traced, self.chunk_size)

    def devices(self) -> tuple[int, int, int]:
        """How many lanes fit on this process, the number of processes, and the index of this one."""
        return devices_of(self._all_kwargs()) if self.on_devices else (0, 1, 0)

    def _all_kwargs(self) -> dict[str, Any]:
        given = self.mapping_fn.keywords if isinstance(self.mapping_fn, ft.partial) else {}
        return {**given, **self.mapping_kwargs}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and other.key == self.key

    def __hash__(self) -> int:
        return self._hash

    @ft.cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def given(self) -> dict[str, Any]:
        """The options as keywords of `StatefulMapping`."""
        parsed = ("policy", "rules_in", "rules_out", "infers", "key")
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in parsed}
        return {**own, "unexpected_out_state_mapping": self.policy}

    def code(self, fn: str) -> str:
        """The mapping of `fn` as code, with its non-default options."""
        options = [
            f"{name}={as_code(value)}"
            for name, value, default in (
                ("in_axes", self.in_axes, 0),
                ("out_axes", self.out_axes, 0),
                ("state_in_axes", self.state_in_axes, {}),
                ("state_out_axes", self.state_out_axes, {}),
                ("unexpected_out_state_mapping", self.policy, "raise"),
                ("axis_size", self.axis_size, None),
                ("axis_name", self.axis_name, None),
                ("chunk_size", self.chunk_size, None),
                ("spmd_axis_name", self.mapping_kwargs.get("spmd_axis_name"), None),
                (f"static_{'broadcasted_' * self.on_devices}argnums", self.static_argnums, ()),
                ("donate_argnums", self.donate_argnums, ()),
                ("donate", self.donate, None),
            )
            if type(value) is not type(default) or value != default
        ]
        maker = "pmap2" if self.on_devices else "vmap2" if self.infers else "StatefulMapping"
        return f"ps.{maker}({', '.join([fn, *options])})"


def make_options(
    *,
    in_axes: Any,
    out_axes: Any,
    state_in_axes: StateAxes,
    state_out_axes: StateAxes,
    policy: str,
    static_argnums: Positions,
    static_argnames: str | Iterable[str],
    axis_size: Integer | None,
    axis_name: Any,
    name: Any,
    mapping_fn: Callable[..., Any],
    mapping_kwargs: Mapping[str, Any] | None,
    chunk_size: Integer | None,
    donate_argnums: Positions,
    donate: Filter,
) -> Options:
    """Check and parse the options of a mapping.

    **Raises:** `ValueError` for an unknown policy and for an invalid axis size; `TypeError` for an
    axis spec with an invalid axis or filter, and for an invalid name.
    """
    if policy not in POLICIES:
        raise ValueError(
            f"unexpected_out_state_mapping is one of {', '.join(map(repr, POLICIES))}; got {policy!r}. "
            "Write unexpected_out_state_mapping='raise'."
        )
    check_name(axis_name, "axis_name")
    check_name((mapping_kwargs or {}).get("spmd_axis_name"), "spmd_axis_name")
    if name is not None and not isinstance(name, str):
        raise TypeError(
            f"name is the name of the function in messages and profiles, a string; got {name!r} of type "
            f"{type(name).__name__}. Write name='step'."
        )
    if axis_size is not None:
        axis_size = as_count(axis_size, "axis_size", "the number of lanes", least=0, example=4)
    if chunk_size is not None:
        chunk_size = _chunk_size(chunk_size, axis_name, mapping_fn)
    in_axes = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    rules_in = parse_state_axes(state_in_axes, "state_in_axes")
    rules_out = parse_state_axes(state_out_axes, "state_out_axes", reducers=True)
    kwargs = dict(mapping_kwargs or {})
    nums = as_positions(static_argnums, "static_argnums")
    names = as_names(static_argnames, "static_argnames")
    donated = as_positions(donate_argnums, "donate_argnums")
    key = (
        _prefix_key(in_axes, "in_axes"),
        _prefix_key(out_axes, "out_axes"),
        rules_in,
        rules_out,
        policy,
        nums,
        names,
        axis_size,
        axis_name,
        name,
        chunk_size,
        donated,
        to_predicate(donate),
        Exact(mapping_fn),
        Exact(kwargs),
    )
    return Options(
        in_axes=in_axes,
        out_axes=out_axes,
        state_in_axes=_as_dict(state_in_axes),
        state_out_axes=_as_dict(state_out_axes),
        policy=policy,
        static_argnums=nums,
        static_argnames=names,
        axis_size=axis_size,
        axis_name=axis_name,
        name=name,
        mapping_fn=mapping_fn,
        mapping_kwargs=kwargs,
        rules_in=rules_in,
        rules_out=rules_out,
        infers=innermost(mapping_fn) in (jax.vmap, jax.pmap),
        chunk_size=chunk_size,
        donate_argnums=donated,
        donate=donate,
        key=key,
    )


def check_name(name: Any, option: str) -> None:
    """Raise if an option that names an axis does not hold a name.

    **Raises:** `TypeError`.
    """
    if not _is_hashable(name):
        raise TypeError(
            f"{option} names an axis, by a string or anything else that is hashable; got {name!r} of "
            f"type {type(name).__name__}. Write {option}='batch'."
        )


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _chunk_size(chunk_size: Any, axis_name: Any, mapping_fn: Any) -> int:
    size = as_count(chunk_size, "chunk_size", "how many lanes run at a time", least=1, example=64)
    if axis_name is not None:
        raise ValueError(
            f"chunk_size={chunk_size} and axis_name={axis_name!r} exclude each other: a collective over "
            "the axis would see only the lanes of one chunk. Leave chunk_size out, or reduce the "
            "outputs after the call."
        )
    if innermost(mapping_fn) is not jax.vmap:
        raise ValueError(
            "chunk_size needs jax.vmap as the mapping function. Leave chunk_size out, or map with "
            "ps.vmap2(f, chunk_size=64)."
        )
    return size


def innermost(mapping_fn: Any) -> Any:
    """A mapping function without the partials around it."""
    return innermost(mapping_fn.func) if isinstance(mapping_fn, ft.partial) else mapping_fn


def _prefix_key(prefix: Any, option: str) -> Any:
    if isinstance(prefix, Mapping):
        # By argument name; the keys may be of types that cannot be sorted together.
        return tuple((name, _prefix_key(axes, option)) for name, axes in prefix.items())
    leaves, treedef = jtu.tree_flatten(prefix, is_leaf=lambda x: x is None)
    for leaf in leaves:
        if not _is_hashable(leaf):
            raise TypeError(f"{option} are integers and None; got {leaf!r}. Write {option}=0.")
    return tuple(leaves), treedef


def _as_dict(spec: Any) -> dict[Any, Any]:
    if spec is None:
        return {}
    if isinstance(spec, Rules):
        return {rule.axis: rule.predicate for rule in spec}
    return dict(spec) if isinstance(spec, Mapping) else {0: spec}
