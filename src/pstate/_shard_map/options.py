"""The options of a mapping over shards, checked, and compared by value."""

import dataclasses
import functools as ft
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax.tree_util as jtu
from jax.sharding import PartitionSpec

from .._calls.code import as_code
from .._ground.exact import Exact
from .._ground.integers import as_names
from .._sharding.meshes import mesh_or_current
from .._sharding.specs import names_in
from .._trees.unmatched import names_something
from ..filter import to_predicate


#: The spec of a value that is the same in all shards.
SAME = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class SpecRule:
    """One line of `state_in_specs` or `state_out_specs`.

    A `reducer`, if there is one, runs in each shard and reduces its value to one that all share.
    """

    spec: PartitionSpec
    predicate: Callable[..., bool]
    reducer: Callable[[Any], Any] | None = dataclasses.field(default=None, compare=False)
    reducer_key: Any = None

    @property
    def wants_a_match(self) -> bool:
        """Whether it is nearly always a typo if this rule selects nothing."""
        return (self.reducer is not None or bool(self.spec)) and names_something(self.predicate)

    def __str__(self) -> str:
        key = as_code(self.spec if self.reducer is None else self.reducer)
        return f"{{{key}: {self.predicate!r}}}"


@dataclasses.dataclass(frozen=True, eq=False)
class ShardOptions:
    """The options of a mapping over shards. Two are equal if their keys are."""

    #: Options that are equal are the same: their key is exact.
    is_exact: ClassVar[bool] = True

    mesh: Any
    in_specs: Any
    out_specs: Any
    state_in_specs: dict[Any, Any]
    state_out_specs: dict[Any, Any]
    axis_names: tuple[str, ...]
    rules_in: tuple[SpecRule, ...]
    rules_out: tuple[SpecRule, ...]
    key: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardOptions) and other.key == self.key

    def __hash__(self) -> int:
        return self._hash

    @ft.cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def given(self) -> dict[str, Any]:
        """The non-default options, as keywords of `shard_map2`."""
        given = {
            "mesh": self.mesh,
            "in_specs": self.in_specs,
            "out_specs": self.out_specs,
            "state_in_specs": self.state_in_specs,
            "state_out_specs": self.state_out_specs,
            "axis_names": self.axis_names,
        }
        always = ("in_specs", "out_specs")
        return {name: v for name, v in given.items() if name in always or not _is_default(v)}

    def code(self) -> list[str]:
        """The options as code, `in_specs=P('data')`."""
        return [f"{name}={as_code(value)}" for name, value in self.given().items()]


def _is_default(value: Any) -> bool:
    return value is None or (isinstance(value, dict | tuple) and not value)


def make_options(
    *,
    mesh: Any,
    in_specs: Any,
    out_specs: Any,
    state_in_specs: Any,
    state_out_specs: Any,
    axis_names: str | Iterable[str],
) -> ShardOptions:
    """Check and parse the options of a mapping over shards.

    **Raises:** `TypeError` for a mesh, specs or rules of another type.
    """
    if mesh is not None:  # otherwise it is that of the context, of each call
        mesh = mesh_or_current(mesh, "ps.shard_map2")
    in_specs = tuple(in_specs) if isinstance(in_specs, list) else in_specs
    rules_in = _parse(state_in_specs, "state_in_specs", reducers=False)
    rules_out = _parse(state_out_specs, "state_out_specs", reducers=True)
    names = as_names(axis_names, "axis_names")
    keys = _key(in_specs, "in_specs"), _key(out_specs, "out_specs")
    return ShardOptions(
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        state_in_specs=dict(_as_mapping(state_in_specs)),
        state_out_specs=dict(_as_mapping(state_out_specs)),
        axis_names=names,
        rules_in=rules_in,
        rules_out=rules_out,
        key=(mesh, *keys, rules_in, rules_out, names),
    )


def _parse(rules: Any, option: str, *, reducers: bool) -> tuple[SpecRule, ...]:
    return tuple(_rule(key, f, option, reducers) for key, f in _as_mapping(rules).items())


def _as_mapping(rules: Any) -> Mapping[Any, Any]:
    if isinstance(rules, Mapping):
        return rules
    if rules is None:
        return {}
    raise TypeError(
        f"The rules for states are a dict of filters by spec; got {rules!r}. Write "
        "state_in_specs={P('data'): ps.HiddenState}, with P = jax.sharding.PartitionSpec."
    )


def _rule(key: Any, filter_: Any, option: str, reducers: bool) -> SpecRule:
    predicate = to_predicate(filter_)
    if isinstance(key, PartitionSpec):
        return SpecRule(trimmed(key), predicate)
    if reducers and callable(key) and not isinstance(key, type):
        # A partial that is made again on each call is the same function.
        return SpecRule(SAME, predicate, key, Exact(key))
    also = ", or functions that reduce over a mesh axis" if reducers else ""
    raise TypeError(
        f"The keys of {option} are specs, jax.sharding.PartitionSpec{also}; got {key!r}. Write "
        f"{option}={{P('data'): ps.HiddenState}}."
    )


def trimmed(spec: PartitionSpec | None) -> PartitionSpec:
    """A spec in its shortest form: `P()` for `None`, no `None`s at its end, and one name by
    itself."""
    entries = [e[0] if isinstance(e, tuple) and len(e) == 1 else e for e in spec or ()]
    while entries and entries[-1] in (None, ()):
        del entries[-1]
    return PartitionSpec(*(None if e == () else e for e in entries))


def axes_of(spec: PartitionSpec, ndim: int) -> list[tuple[str, ...]]:
    """For each axis of an array, the mesh axes over which it is cut."""
    named = [names_in(PartitionSpec(entry)) for entry in spec]
    return [*named, *[()] * (ndim - len(named))]


def _key(prefix: Any, option: str) -> Any:
    if isinstance(prefix, Mapping):
        return tuple((name, _key(specs, option)) for name, specs in prefix.items())
    leaves, treedef = jtu.tree_flatten(prefix, is_leaf=lambda x: x is None)
    for leaf in leaves:
        by_leaf = callable(leaf) and option == "in_specs"  # out_specs are needed before the body runs
        if not (leaf is None or isinstance(leaf, PartitionSpec) or by_leaf):
            raise TypeError(
                f"{option} are specs, jax.sharding.PartitionSpec; got {leaf!r}. Write "
                f"{option}=P('data')."
            )
    return tuple(Exact(x) if callable(x) else x for x in leaves), treedef
