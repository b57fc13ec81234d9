"""The plan: the spec by which each leaf goes into the shards, and the reason.

A state going in takes, in this order: the first rule of `state_in_specs` that matches; if it is a
`RandomState` whose key, or keys, all shards would share, a key per shard, of each; if it is a
`NonBatchState`, the same in all shards; else its argument's `in_specs`. The leaves of a bound
module are the same in all shards. An empty state takes what its value would take.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.tree_util as jtu
from jax.sharding import PartitionSpec

from .._calls.code import as_code
from .._calls.signature import Described, Signature
from .._mapping.empty_states import axes_of_empty
from .._mapping.prefixes import spread_prefix
from .._sharding.specs import check_divides, check_spec, names_in
from .._states.kinds import NonBatchState
from .._states.random_state import shape_of_keys
from .._trees.flattening import unflatten_frozen
from .._trees.slots import Slot
from .options import SAME, ShardOptions, SpecRule, trimmed


@dataclasses.dataclass(frozen=True)
class ShardInput:
    """How a leaf goes in: its spec and the reason.

    `over` has the mesh axes over which a key is split; it is `None` for other leaves.
    """

    spec: PartitionSpec
    reason: str
    over: tuple[str, ...] | None = None

    @property
    def split(self) -> bool:
        """Whether each shard gets its own key."""
        return self.over is not None


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """How each leaf goes in; the mesh, and its axes over which the body runs, once for each
    place."""

    leaves: tuple[ShardInput, ...]
    mesh: Any
    manual: tuple[str, ...]
    #: By slot, how a state that came in empty would go in, if it had a value.
    empty: Mapping[int, ShardInput]

    @property
    def axis_size(self) -> int:
        """The number of shards."""
        return self.size(self.manual)

    def size(self, names: Sequence[str]) -> int:
        """The number of shards along these mesh axes."""
        return math.prod(self.mesh.shape[name] for name in names)

    def of(self, slot: Slot) -> ShardInput:
        """How a state goes in, or would, if it were not empty."""
        return self.leaves[slot.start] if slot.stop > slot.start else self.empty[slot.index]


def plan_shards(
    signature: Signature,
    leaves: Sequence[Any],
    is_array: Sequence[bool],
    options: ShardOptions,
    mesh: Any,
    manual: tuple[str, ...],
    described: Described,
) -> ShardPlan:
    """Decide how each leaf of a call goes in.

    **Raises:** `ValueError` for `in_specs` that do not fit the arguments and for a mesh axis that
    does not exist; `BatchAxisError` for an array that cannot be cut as its spec says.
    """
    by_argument = _spread_in_specs(signature, options.in_specs, described, leaves)
    # In the order in which they are named, which is the order of the corresponding lanes.
    union = tuple(dict.fromkeys(name for spec in by_argument for name in names_in(spec)))
    inputs = [
        ShardInput(spec, f"in_specs={as_code(spec)}") if array else ShardInput(SAME, "no array")
        for spec, array in zip(by_argument, is_array, strict=True)
    ]
    for i in range(signature.n_fn):
        if is_array[i]:
            inputs[i] = ShardInput(SAME, "of the bound module")
    spread = lambda of, specs, leaves: _spread_in_specs(of, specs, described, leaves)
    empty_specs = axes_of_empty(signature, options.in_specs, leaves, spread)
    empty = {index: ShardInput(spec, f"in_specs={as_code(spec)}") for index, spec in empty_specs.items()}
    for slot in signature.layout.slots:
        ruled = _of_state(signature, slot, leaves, options.rules_in, by_argument, union)
        if ruled is not None and slot.index in empty:
            empty[slot.index] = ruled
        elif ruled is not None:
            inputs[slot.start : slot.stop] = [ruled] * (slot.stop - slot.start)
    for i, given in enumerate(inputs):
        if not given.spec:
            continue
        place = signature.place(signature.layout.key_path_of_leaf[i], described.names)
        check_manual(given.spec, manual, mesh, f"{given.reason} for `{place}`")
        check_divides(leaves[i].shape, given.spec, mesh, f"`{place}` ({given.reason})")
    return ShardPlan(tuple(inputs), mesh, manual, empty)


def _of_state(
    signature: Signature,
    slot: Slot,
    leaves: Sequence[Any],
    rules: Sequence[SpecRule],
    by_argument: Sequence[PartitionSpec],
    union: tuple[str, ...],
) -> ShardInput | None:
    state = slot.state(leaves)
    path = signature.path(slot.index)
    batch = shape_of_keys(state)
    rule = next((rule for rule in rules if rule.predicate(path, state)), None)
    if rule is not None:
        reason = f"state_in_specs {rule}"
        if batch == () and rule.spec:
            return ShardInput(SAME, reason, over=names_in(rule.spec))
        return ShardInput(rule.spec, reason)
    if batch == () or (batch is not None and not by_argument[slot.start]):
        reason = f"RandomState: a key{'' if batch == () else ' of each'} per shard"
        return (
            ShardInput(SAME, reason, over=union) if union else ShardInput(SAME, "in_specs name no axis")
        )
    if issubclass(slot.kind, NonBatchState):
        return ShardInput(SAME, "NonBatchState")
    return None


def check_manual(spec: PartitionSpec, manual: Sequence[str], mesh: Any, where: str) -> None:
    """Raise if a spec names a mesh axis that a mapping does not map over.

    **Raises:** `ValueError`.
    """
    left = [name for name in names_in(spec) if name not in manual and name in mesh.axis_names]
    if left:
        raise ValueError(
            f"{where} names the mesh axis {left[0]!r}, but this mapping maps over {tuple(manual)} "
            f"only. Leave it out of the spec, or map over it too: axis_names={(*manual, left[0])}."
        )
    check_spec(spec, mesh, where)


# `in_specs` and `out_specs`, prefixes of trees ------------------------------------------------------


def _spread_in_specs(
    signature: Signature, in_specs: Any, described: Described, leaves: Sequence[Any]
) -> list[PartitionSpec]:
    """The spec of each leaf, by `in_specs` alone."""
    _, args, kwargs = unflatten_frozen(signature.treedef, list(leaves))
    result: list[PartitionSpec] = [SAME] * len(leaves)
    by_position, by_name = _per_argument(signature, in_specs, described)
    for position, arg in enumerate(args):
        name = described.names[position] if position < len(described.names) else f"args[{position}]"
        _spread_one(by_position[position], arg, name, result, signature.starts[position])
    for position, name in enumerate(signature.keywords):
        start = signature.keyword_starts[position]
        _spread_one(by_name.get(name, SAME), kwargs[name], name, result, start)
    return result


def _per_argument(
    signature: Signature, in_specs: Any, described: Described
) -> tuple[list[Any], Mapping[str, Any]]:
    n = signature.n_args
    if in_specs is None or isinstance(in_specs, PartitionSpec) or callable(in_specs):
        return [in_specs] * n, {}
    if isinstance(in_specs, Mapping):
        names = described.names[:n]
        unknown = set(in_specs) - set(names) - set(signature.keywords)
        if unknown:
            raise ValueError(
                f"in_specs names {sorted(map(str, unknown))}, which {described.fn} was not called with; "
                f"its arguments are {[*names, *signature.keywords]}. Name one of these: "
                f"in_specs={{{[*names, *signature.keywords, 'x'][0]!r}: P('data')}}."
            )
        return [in_specs.get(name, SAME) for name in names] + [SAME] * (n - len(names)), in_specs
    if isinstance(in_specs, tuple):
        if len(in_specs) != n:
            extra = (
                " Leave out the module that the function is bound to." if signature.has_carrier else ""
            )
            given = in_specs[1:] if signature.has_carrier and len(in_specs) == n + 1 else in_specs
            right = as_code(tuple(given[i] if i < len(given) else SAME for i in range(n)))
            raise ValueError(
                f"in_specs={as_code(in_specs)} has {len(in_specs)} entries, but {described.fn} was "
                f"called with {n} positional arguments.{extra} Give one entry for each: "
                f"in_specs={right}."
            )
        return list(in_specs), {}
    raise TypeError(
        "in_specs is a spec, jax.sharding.PartitionSpec, a function of the leaf, a tuple with an entry "
        f"per argument, or a dict by argument name; got {in_specs!r}. Write in_specs=P('data')."
    )


def _spread_one(prefix: Any, arg: Any, name: str, result: list[PartitionSpec], start: int) -> None:
    try:
        spread_prefix(prefix, arg, result, start, _of_leaves)
    except _NoSpecError as error:
        raise TypeError(
            f"The specs of `{name}` in in_specs are jax.sharding.PartitionSpec; {error}. Write "
            f"in_specs={{{name!r}: P('data')}}."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"in_specs={as_code(prefix)} for `{name}` is not a prefix of its structure, "
            f"{jtu.tree_structure(arg)}: {error}. Give one spec for the whole argument: "
            f"in_specs={{{name!r}: P('data')}}."
        ) from None


def spread_out_specs(out: Any, out_specs: Any) -> list[PartitionSpec]:
    """The spec of each leaf of an output, by the prefix `out_specs`.

    **Raises:** `ValueError` if `out_specs` is not a prefix of the output.
    """
    leaves, treedef = jtu.tree_flatten(out)
    result: list[PartitionSpec] = [SAME] * len(leaves)
    try:
        spread_prefix(out_specs, out, result, 0, _of_leaves)
    except _NoSpecError as error:
        raise TypeError(
            f"out_specs are jax.sharding.PartitionSpec; {error}. Write out_specs=P('data')."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"out_specs={as_code(out_specs)} is not a prefix of the output's structure, {treedef}: "
            f"{error}. Give one spec for the whole output: out_specs=P('data')."
        ) from None
    return result


class _NoSpecError(Exception):
    """An entry of a prefix that is not a spec."""


def _of_leaves(entry: Any, leaves: Sequence[Any]) -> list[PartitionSpec]:
    found: list[PartitionSpec] = []
    make: Callable[[Any], Any] = entry if callable(entry) else lambda leaf: entry
    for leaf in leaves:
        spec = make(leaf)
        if spec is not None and not isinstance(spec, PartitionSpec):
            raise _NoSpecError(f"got {spec!r}")
        found.append(trimmed(spec))
    return found
