"""The program of a mapping over shards: a flat function of arrays that runs the body once.

The body is traced inside `jax.shard_map` and nowhere else, and the traced program says what may
differ between shards. A random state is split inside the shards, if one of them draws from it:
every shard splits the key that all share, and takes its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.random as jr
import jax.tree_util as jtu
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from .._calls.running import Run
from .._ground.paths import Path
from .._ground.versions import checks_key_reuse, reshard
from .._mapping.devices import manual_axes
from .._mapping.explaining import Row
from .._mapping.lane_sharding import explicit_sharding
from .._mapping.lanes import Lanes, Meta, ordered
from .._mapping.replay import forget_values
from .._programs.donation import Donation
from .._sharding.meshes import current_mesh
from .._sharding.specs import names_in
from .._states.deferred import ForeignReadError
from .._states.keys import is_typed_key, split_for_lanes
from .._states.state import State
from .._states.threads import local
from .._trees.leaves import operand_mask
from .._trees.unmatched import unmatched_rules
from .agreement import Axes, flow
from .explaining import rows_of
from .leaving import ShardOutputs
from .options import SAME, ShardOptions, SpecRule, axes_of, trimmed
from .plan import ShardPlan, check_manual, plan_shards


@dataclasses.dataclass(eq=False)
class ShardProgram(Donation):
    """A mapping of one function over shards, for calls of one structure: a flat function of
    arrays."""

    options: ShardOptions

    def __call__(self, *arrays: Any) -> tuple[list[Any], Meta]:
        return self._run(arrays, wants_rows=False)

    def explained(self, *arrays: Any) -> tuple[list[Any], Meta]:
        """The same, with the rows of `explain`, which an ordinary run does not need."""
        return self._run(arrays, wants_rows=True)

    def _run(self, arrays: Sequence[Any], wants_rows: bool) -> tuple[list[Any], Meta]:
        if local.on_devices:
            raise NotImplementedError(
                f"{self.described.fn} is called in the body of ps.pmap2, but JAX cannot run "
                "jax.shard_map inside jax.pmap. Give the mesh an axis for each: "
                "ps.shard_map2(f, in_specs=P(('hosts', 'data')), out_specs=P(('hosts', 'data')))."
            )
        leaves = self.leaves(arrays)
        return Shards(self, leaves, self.plan(leaves), wants_rows).run()

    def plan(self, leaves: Sequence[Any]) -> ShardPlan:
        mesh, manual = self._mesh()
        return plan_shards(
            self.signature, leaves, operand_mask(leaves), self.options, mesh, manual, self.described
        )

    def _mesh(self) -> tuple[Any, tuple[str, ...]]:
        """The mesh, and the axes of it that this mapping maps over."""
        given, names = self.options.mesh, self.options.axis_names
        around = manual_axes()
        mesh = current_mesh(self.described.fn) if given is None or around else given
        if given is not None and around and dict(given.shape) != dict(mesh.shape):
            raise ValueError(
                f"{self.described.fn} is called in the body of another mapping over shards, with the "
                f"mesh {dict(mesh.shape)}, but names another mesh, {dict(given.shape)}. Leave mesh out: "
                "it is the mesh of the context."
            )
        free = tuple(name for name in mesh.axis_names if name not in around)
        wrong = [name for name in names if name not in free]
        if wrong:
            there = "not taken by the mappings around it, " if around else ""
            raise ValueError(
                f"axis_names={names} of {self.described.fn} names {wrong[0]!r}, but the axes of the "
                f"mesh {there}are {free}. Name some of these: axis_names={free[:1]}."
            )
        if not free:
            raise ValueError(
                f"{self.described.fn} is called in the body of another mapping over shards, which takes "
                f"all axes of the mesh, {mesh.axis_names}. Leave one for it by axis_names= in the outer "
                "mapping; or map over lanes: ps.vmap2."
            )
        if not all(isinstance(name, str) for name in free):
            raise TypeError(
                f"The mesh axes of {self.described.fn} are {free}, but ps.shard_map2 needs axis names "
                "that are strings. Make the mesh with such names: jax.make_mesh((4,), ('data',))."
            )
        return mesh, tuple(name for name in free if not names or name in names)

    def declared_specs(self, plan: ShardPlan) -> list[PartitionSpec]:
        """The specs by which values may leave, according to the options.

        **Raises:** `ValueError` if one names a mesh axis that the mapping does not map over.
        """
        out = list(map(trimmed, jtu.tree_leaves(self.options.out_specs)))
        rules = [rule.spec for rule in self.options.rules_out]
        for option, specs in (("out_specs", out), ("state_out_specs", rules)):
            for spec in specs:
                check_manual(spec, plan.manual, plan.mesh, f"{option} of {self.described.fn}")
        return [*out, *rules]

    def unmatched(self, leaves: Sequence[Any], made: Sequence[tuple[Path, State]]) -> list[str]:
        """The messages for filters that match no state, neither of a call nor one that it made."""
        slots = self.signature.layout.slots
        came = [(self.signature.path(slot.index), slot.state(leaves)) for slot in slots]
        return [
            *self._unmatched("state_in_specs", self.options.rules_in, came),
            *self._unmatched("state_out_specs", self.options.rules_out, [*came, *made]),
        ]

    def _unmatched(
        self, option: str, rules: Sequence[SpecRule], states: Sequence[tuple[Path, State]]
    ) -> list[str]:
        return unmatched_rules(option, self.described.fn, rules, states)


class Shards(Lanes):
    """The body of a mapping over shards for the leaves of one call."""

    plan: Any
    mapped: Any
    options: Any

    def __init__(
        self, program: ShardProgram, leaves: list[Any], plan: ShardPlan, wants_rows: bool = False
    ):
        super().__init__(program, leaves, plan, wants_rows)
        self.program = program
        #: The keys of random states that were split, and the remainders of those that were drawn from.
        self.first: dict[int, Any] = {}
        self.kept: dict[int, Any] = {}
        self.found: Meta | None = None
        self.outputs: ShardOutputs | None = None
        #: For each array that comes back, in order, its group and its place there.
        self.positions: list[tuple[int, int]] = []
        self.leaving_at: list[tuple[int, int]] = []

    def run(self) -> tuple[list[Any], Meta]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self._run(ahead=False)
        except ForeignReadError:
            # A shard first needs its key under a further trace, where it cannot be split. So the
            # key is split beforehand, and the body runs once more.
            if not self.split:
                raise
        return self._run(ahead=True)

    def _run(self, ahead: bool) -> tuple[list[Any], Meta]:
        plan, options = self.plan, self.options
        positions = [*self.passed, *(slot.start for slot in self.split)]
        specs = [plan.leaves[i].spec for i in positions]
        self.first, self.kept, self.positions, self.leaving_at = {}, {}, [], []
        groups = self._possible_specs()
        shard = lambda *operands: self._shard(operands, groups, ahead)
        mapped = jax.shard_map(
            self.program.presented(shard, positions),
            # Inside another mapping the mesh is that of the context, as jax.shard_map requires.
            mesh=None if plan.mesh is not options.mesh else plan.mesh,
            in_specs=tuple(specs),
            out_specs=tuple(groups),
            axis_names=frozenset(plan.manual),
            check_vma=False,
        )
        pairs = zip(positions, specs, strict=True)
        operands = [self._where_it_goes(self.leaves[i], spec) for i, spec in pairs]
        inside, arrays = _traced(mapped, operands)
        assert self.outputs is not None
        self.outputs.settle(self._differ(inside, specs))
        assert self.found is not None
        return [arrays[group][where] for group, where in self.positions], self.found

    def _possible_specs(self) -> list[PartitionSpec]:
        """Every spec by which a value may leave, once each."""
        declared = self.program.declared_specs(self.plan)
        came = [given.spec for given in (*self.plan.leaves, *self.plan.empty.values())]
        return list(dict.fromkeys([SAME, *declared, *came]))

    def _where_it_goes(self, x: Any, spec: PartitionSpec) -> Any:
        """An operand, on an explicit mesh resharded as its spec says.

        There `jax.shard_map` treats its `in_specs` as an assertion.
        """
        mesh = self.plan.mesh
        if not any(kind.name == "Explicit" for kind in mesh.axis_types):
            return x
        sharding = explicit_sharding(x)
        lies = axes_of(SAME if sharding is None else sharding.spec, len(x.shape))
        others = [tuple(name for name in names if name not in self.plan.manual) for names in lies]
        pairs = zip(axes_of(spec, len(x.shape)), others, strict=True)
        target = [(*wanted, *kept) for wanted, kept in pairs]
        if target == lies:
            return x
        if is_typed_key(x):
            # As data: JAX does not move typed keys to a mesh that is not in its context.
            data = reshard(jr.key_data(x), NamedSharding(mesh, PartitionSpec(*target)))
            return jr.wrap_key_data(data, impl=jr.key_impl(x))
        return reshard(x, NamedSharding(mesh, PartitionSpec(*target)))

    def _differ(self, inside: Any, specs: Sequence[PartitionSpec]) -> list[Axes]:
        """The mesh axes over which each array that leaves may differ."""
        n_constants = len(inside.invars) - len(specs)  # what the body closes over comes first
        inputs = [frozenset()] * n_constants + [frozenset(names_in(spec)) for spec in specs]
        order = self._order_of_groups()
        found = flow(inside, inputs, frozenset(self.plan.manual))
        return [found[order[at]] for at in self.leaving_at]

    def _order_of_groups(self) -> dict[tuple[int, int], int]:
        """The position of an array of a group among all outputs of the traced body."""
        each = sorted({*self.positions, *self.leaving_at})
        return {at: i for i, at in enumerate(each)}

    # Inside a shard -----------------------------------------------------------------------------

    def _shard(
        self, operands: Sequence[Any], groups: Sequence[PartitionSpec], ahead: bool
    ) -> tuple[list[Any], ...]:
        n = len(self.passed)
        keys = dict(zip([slot.index for slot in self.split], operands[n:], strict=True))
        own = {index: self._own_key(index, key, True) for index, key in keys.items()} if ahead else {}

        def lane_key_of(index: int) -> Callable[[bool], Any]:
            if ahead:
                return lambda needed: own[index]
            return lambda needed: self._own_key(index, keys[index], needed)

        run, outputs = Lanes.run(self, operands[:n], lane_key_of, self.kept, anywhere=ahead)
        self.outputs = outputs
        self.found = self.meta(run, outputs)
        result: tuple[list[Any], ...] = tuple([] for _ in groups)
        for item in ordered(outputs):
            kept = isinstance(item, int)
            group = groups.index(SAME if kept else item.spec)  # pyright: ignore[reportAttributeAccessIssue]
            at = group, len(result[group])
            self.positions.append(at)
            if not kept:
                self.leaving_at.append(at)
            result[group].append(self.kept[item] if kept else item.value)
        forget_values(run, outputs)
        self.first, self.kept = {}, {}
        return result

    def _own_key(self, index: int, key: Any, needed: bool) -> Any:
        """This shard's key, or batch of keys, of a random state whose key all shards share."""
        slot = self.signature.layout.slots[index]
        over = self.plan.leaves[slot.start].over
        if not needed and checks_key_reuse():
            # It may turn out that no shard draws; then the shared key has not been used.
            key = jr.clone(key)
        self.first[index], keys = split_for_lanes(key, self.plan.size(over))
        first, *others = over
        number = lax.axis_index(first)
        for name in others:
            number = number * self.plan.mesh.shape[name] + lax.axis_index(name)
        return lax.dynamic_index_in_dim(keys, number, keepdims=False)

    def mark(self, index: int, needed: bool) -> None:
        Lanes.mark(self, index, needed)
        if needed:
            self.kept[index] = self.first[index]
        else:
            del self.kept[index]

    def outputs_of(self, run: Run, drawn: frozenset[int], lines: dict[int, str]) -> ShardOutputs:
        return ShardOutputs(
            self.program, self.leaves, self.plan, run, drawn, lines, lenient=self.wants_rows
        )

    def rows(self, run: Run, outputs: Any) -> list[Row]:
        described = self.program.described
        return rows_of(self.signature, described, self.leaves, self.plan, run, outputs)


def _traced(mapped: Callable[..., Any], operands: Sequence[Any]) -> tuple[Any, Any]:
    """The program of one shard, and the results of all shards; the body runs once for both.

    It is compiled under `jax.disable_jit()` too: otherwise JAX does not run a `jax.shard_map` over
    only some of the axes of a mesh.
    """
    with jax.disable_jit(False):
        compiled = jax.jit(mapped)
        jaxpr = compiled.trace(*operands).jaxpr.jaxpr
        (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map"]
        return eqn.params["jaxpr"], compiled(*operands)  # JAX keeps the trace
