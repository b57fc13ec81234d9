"""The values that leave a shard, and by which spec.

A written state goes back by the first rule of `state_out_specs` that matches; otherwise by the spec
that it came in by. States in the output follow `state_out_specs`, then their kind
(`NonBatchState`), then `out_specs`. Along a mesh axis that a spec does not name, the value leaves
as the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import PartitionSpec

from .._calls.code import as_code
from .._calls.notes import NEXT, arrays_of, refuse_tracers
from .._calls.running import Run
from .._ground.errors import BatchAxisError, UnmatchedFilterWarning
from .._ground.paths import Path, to_path, to_place
from .._mapping.leaving import Written
from .._sharding.specs import names_in
from .._states.kinds import NonBatchState
from .._states.messages import kind_code, warn
from .._states.state import State, is_state
from .._trees.slots import Slot
from .._trees.unmatched import with_more
from .options import SAME, SpecRule, axes_of, trimmed
from .plan import ShardPlan, spread_out_specs


@dataclasses.dataclass
class ShardLeaving:
    """An array that leaves a shard by a spec, and why.

    `placed` returns its name in messages; `kind` is that of a state, `None` for other arrays.
    """

    value: Any
    spec: PartitionSpec
    reason: str
    placed: Callable[[], str]
    kind: type[State] | None = None
    slot: int | None = None
    reducer: Callable[[Any], Any] | None = None  # it ran in the shard
    refused: bool = False

    @property
    def axis(self) -> str:
        """The spec, as text."""
        return "refused" if self.refused else as_code(self.spec)

    @property
    def place(self) -> str:
        """The name of the array in messages."""
        return self.placed() if self.kind is None else f"{self.placed()} ({self.kind.__name__})"

    @property
    def code(self) -> str:
        """The kind of a state as code."""
        return "" if self.kind is None else kind_code(self.kind)


class ShardOutputs:
    """The values that leave the shards: the arrays of the output, and the written states."""

    def __init__(
        self,
        program: Any,
        leaves: Sequence[Any],
        plan: ShardPlan,
        run: Run,
        split: frozenset[int],
        lines: Mapping[int, str],
        lenient: bool = False,
    ):
        self._program = program
        self._options = program.options
        self._signature = program.signature
        self._leaves = leaves
        self._plan = plan
        self._run = run
        self._split = split
        self._lines = lines
        #: The errors that would be raised; only if `lenient` says to continue, as `explain` does.
        self.problems: list[str] = []
        self._lenient = lenient
        try:
            self.leaving, self.out_leaves, self.out_treedef = self._output()
            self.written = [self._written(index) for index in sorted(set(run.writes) | split)]
        except BatchAxisError as error:
            raise with_more(error, self._unmatched()) from None

    def all_leaving(self) -> list[ShardLeaving]:
        """The arrays that leave the shards: those of the output, then those of written states."""
        return self.leaving + [leaf for state in self.written for leaf in state.leaves]

    def settle(self, differ: Sequence[frozenset[str]]) -> None:
        """Refuse values that leave as the same along a mesh axis but may differ; warn about typos.

        `differ` says for each array that leaves along which mesh axes it may differ.

        **Raises:** `BatchAxisError`.
        """
        for leaf, axes in zip(self.all_leaving(), differ, strict=True):
            bad = [name for name in self._plan.manual if name in axes - set(names_in(leaf.spec))]
            if bad:
                self._refuse(leaf, self._differs(leaf, bad[0]))
        for message in self._unmatched():
            warn(message, UnmatchedFilterWarning)

    def _refuse(self, leaf: ShardLeaving, message: str) -> None:
        if self._lenient:
            leaf.refused = True
            if message not in self.problems:
                self.problems.append(message)
            return
        error = with_more(BatchAxisError(message), self._unmatched())
        self._add_line(error, leaf.slot)
        raise error

    @contextmanager
    def _telling_the_line(self, index: int) -> Iterator[None]:
        """Add to an error about a state the line in which it was written."""
        try:
            yield
        except BatchAxisError as error:
            self._add_line(error, index)
            raise

    def _add_line(self, error: BaseException, index: int | None) -> None:
        if index is not None and index in self._lines:
            error.add_note(f"`{self._program.place(index)}` was written here:\n{self._lines[index]}")

    # The output -----------------------------------------------------------------------------------

    def _output(self) -> tuple[list[ShardLeaving], list[Any], Any]:
        out = self._run.out
        leaves, treedef = jtu.tree_flatten(out)
        specs = iter(spread_out_specs(out, self._options.out_specs))
        candidates: list[ShardLeaving] = []
        for key_path, item in jtu.tree_flatten_with_path(out, is_leaf=is_state)[0]:
            place = lambda key_path=key_path: f"`{to_place('out', key_path)}`"
            if not isinstance(item, State):
                spec = next(specs)
                candidates.append(ShardLeaving(item, spec, f"out_specs={as_code(spec)}", place))
                continue
            rule = self._match(to_path(key_path), item)
            for leaf in jtu.tree_leaves(item):
                candidates.append(self._state_in_output(leaf, next(specs), rule, item, place))
        is_array = arrays_of(out, leaves)
        refuse_tracers(out, leaves, is_array)
        leaves = [NEXT if is_one else leaf for leaf, is_one in zip(leaves, is_array, strict=True)]
        leaving = [c for c, leaf in zip(candidates, leaves, strict=True) if leaf is NEXT]
        return list(map(self._checked, leaving)), leaves, treedef

    def _state_in_output(
        self,
        leaf: Any,
        spec: PartitionSpec,
        rule: SpecRule | None,
        state: State,
        place: Callable[[], str],
    ) -> ShardLeaving:
        kind = type(state)
        if rule is not None:
            return self._by_rule(leaf, rule, place, kind, None)
        if isinstance(state, NonBatchState):
            return ShardLeaving(leaf, SAME, "NonBatchState", place, kind)
        return ShardLeaving(leaf, spec, f"out_specs={as_code(spec)}", place, kind)

    def _by_rule(
        self,
        leaf: Any,
        rule: SpecRule,
        place: Callable[[], str],
        kind: type[State],
        slot: int | None,
    ) -> ShardLeaving:
        reason = f"state_out_specs {rule}"
        value = leaf if rule.reducer is None else rule.reducer(leaf)
        return ShardLeaving(value, rule.spec, reason, place, kind, slot, rule.reducer)

    def _checked(self, leaf: ShardLeaving) -> ShardLeaving:
        """Refuse a spec for more axes than the array has."""
        shape = tuple(jnp.shape(leaf.value))
        if len(shape) < len(leaf.spec):
            fix = "value = value[None]" if not shape else f"of {len(leaf.spec)} axes or more"
            raise BatchAxisError(
                f"{leaf.place} leaves by {as_code(leaf.spec)} ({leaf.reason}), which puts the shards "
                f"on axis {len(leaf.spec) - 1}, but a shard's value has shape {shape}. Give the value "
                f"that axis: {fix}; or reduce it, value = jax.lax.pmean(value, "
                f"{names_in(leaf.spec)[0]!r}), and let it leave by P()."
            )
        return leaf

    # States that were written ---------------------------------------------------------------------

    def _written(self, index: int) -> Written:
        with self._telling_the_line(index):
            written = self._state(index)
            written.leaves = list(map(self._checked, written.leaves))
            return written

    def _state(self, index: int) -> Written:
        slot = self._signature.layout.slots[index]
        place = lambda: f"`{self._program.place(index)}`"
        rule = self._match(self._signature.path(index), slot.state(self._leaves))
        soft = index not in self._run.writes
        if soft or (index in self._split and (rule is None or not rule.spec)):
            # Whatever the shards draw, the state keeps keys[0]. A key that shards only read has
            # still been split, and must not be used again.
            return Written(index, slot.treedef, [], "keys[0] of the split", kept=True, soft=soft)
        leaves, treedef = jtu.tree_flatten(self._run.writes[index])
        if rule is not None:
            leaving = [self._by_rule(leaf, rule, place, slot.kind, index) for leaf in leaves]
            return Written(index, treedef, leaving, f"{rule}")
        specs = [given.spec for given in self._plan.leaves[slot.start : slot.stop]]
        if treedef != slot.treedef:
            if len(set(specs)) > 1:
                kind = kind_code(slot.kind)
                raise BatchAxisError(
                    f"{place()} ({slot.kind.__name__}) came in with parts by different specs and was "
                    "written with a value of another structure, so its spec is not known. Declare it: "
                    f"state_out_specs={{P(): {kind}}}."
                )
            specs = [self._plan.of(slot).spec] * len(leaves)
        reason = "as it came in"
        leaving = [
            ShardLeaving(leaf, spec, reason, place, slot.kind, index)
            for leaf, spec in zip(leaves, specs, strict=True)
        ]
        self._check_shapes(slot, treedef, leaving)
        return Written(index, treedef, leaving, reason)

    def _check_shapes(self, slot: Slot, treedef: Any, leaving: Sequence[ShardLeaving]) -> None:
        """Refuse a block whose shape has changed, so that it is not a block of the old value."""
        if treedef != slot.treedef:
            return  # another value on purpose
        for leaf, old in zip(leaving, self._leaves[slot.start : slot.stop], strict=True):
            block = block_of(old.shape, leaf.spec, self._plan)
            shape = tuple(jnp.shape(leaf.value))
            if leaf.spec and shape != block and not self._lenient:
                raise BatchAxisError(
                    f"{leaf.place} came in by {as_code(leaf.spec)} with shape {block} in each shard, "
                    f"but was written with shape {shape}. Write a value of the shape that came in, or "
                    "declare that the change is intended: "
                    f"state_out_specs={{{as_code(leaf.spec)}: {leaf.code}}}."
                )

    def _match(self, path: Path, state: State) -> SpecRule | None:
        return next((rule for rule in self._options.rules_out if rule.predicate(path, state)), None)

    # What to say ----------------------------------------------------------------------------------

    def _differs(self, leaf: ShardLeaving, name: str) -> str:
        said = (
            f"{leaf.place} leaves by {as_code(leaf.spec)} ({leaf.reason}), so as the same in all shards "
            f"along the mesh axis {name!r}, but its value differs between them."
        )
        collective = _collective(leaf.value)
        reduce = f" Reduce it in the function: value = jax.lax.{collective}(value, {name!r})"
        if not leaf.code:
            spec = as_code(_with_axis(leaf.spec, name))
            given = "value" if getattr(leaf.value, "shape", ()) else "value[None]"
            stack = f"let each shard give its part: return {given}, with out_specs={spec}."
            return f"{said}{reduce}; or {stack}" if collective else f"{said} Or rather {stack}"
        rule = f"ft.partial(jax.lax.{collective}, axis_name={name!r})"
        by_rule = f"; or by a rule: state_out_specs={{{rule}: {leaf.code}}}"
        own = as_code(_with_axis(leaf.spec, name))
        cut = f"give each shard a part of it: state_in_specs={{{own}: {leaf.code}}}."
        if leaf.slot is None:
            cut = f"let each shard give its part: state_out_specs={{{own}: {leaf.code}}}."
        return f"{said}{reduce}{by_rule}; or {cut}" if collective else f"{said} Or rather {cut}"

    def _unmatched(self) -> list[str]:
        """The messages for filters that match no state."""
        made = [
            (to_path(key_path), item)
            for key_path, item in jtu.tree_flatten_with_path(self._run.out, is_leaf=is_state)[0]
            if isinstance(item, State)
        ]
        return self._program.unmatched(self._leaves, made)


def block_of(shape: Sequence[int], spec: PartitionSpec, plan: ShardPlan) -> tuple[int, ...]:
    """The shape of an array's block in one shard."""
    pairs = zip(shape, axes_of(spec, len(shape)), strict=True)
    return tuple(n // plan.size(names) for n, names in pairs)


def _with_axis(spec: PartitionSpec, name: str) -> PartitionSpec:
    """A spec whose first axis is cut over one more mesh axis."""
    first, *rest = axes_of(spec, max(len(spec), 1))
    return trimmed(PartitionSpec((*first, name), *rest))


def _collective(value: Any) -> str:
    """The collective that keeps the dtype of a value; empty if there is none."""
    dtype = jnp.result_type(value) if not hasattr(value, "dtype") else value.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return ""
    return "pmean" if jnp.issubdtype(dtype, jnp.inexact) else "pmax"
