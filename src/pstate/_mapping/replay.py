"""A body traced once, for one lane, and then run by a separate engine.

`jax.pmap` and a loop over chunks cannot say whether lanes differ, but the body must run only once.
So it is traced to a jaxpr for one lane; an abstract `jax.vmap` of the jaxpr finds out which outputs
differ between lanes; and the engine runs the same jaxpr.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax.extend.core import jaxpr_as_fun

from .._calls.running import Run
from .._ground.versions import NESTED_PMAP, STRUCTS_VARY, manual_type, varies_over
from .._states.deferred import Deferred
from .._states.keys import is_typed_key, split_for_lanes
from .._states.threads import local
from .devices import manual_axes
from .lane_sharding import explicit_sharding, with_axis, without_axis
from .lanes import Lanes, Meta, ordered
from .leaving import Outputs
from .leaving_array import Leaving
from .mapped_function import MappedFunction
from .plan import InPlan
from .probes import which_differ


class Replay(Lanes):
    """A mapping whose body has been traced."""

    def __init__(
        self, mapped: MappedFunction, leaves: list[Any], plan: InPlan, wants_rows: bool = False
    ):
        super().__init__(mapped, leaves, plan, wants_rows)
        self.drawn: dict[int, None] = {}
        #: All lanes, including those of other processes.
        n_devices, n_processes, self._process = self.options.devices()
        if self.options.on_devices and plan.axis_size > n_devices:
            raise ValueError(
                f"{mapped.described.fn} maps {plan.axis_size} lanes, one per device, but there are "
                f"{n_devices} devices. Map fewer lanes, or map on one device: ps.vmap2."
            )
        if self.options.on_devices and local.on_devices and not NESTED_PMAP:
            raise NotImplementedError(
                f"{mapped.described.fn} is called in the body of another mapping over devices, but "
                "this version of JAX cannot run one jax.pmap inside another. Map the inner lanes on the "
                "device that they are on: ps.vmap2."
            )
        if self.options.on_devices and manual_axes():
            raise NotImplementedError(
                f"{mapped.described.fn} is called in the body of a mapping over shards, but JAX cannot "
                "run jax.pmap inside jax.shard_map. Map the lanes on the devices of their shard: "
                "ps.vmap2."
            )
        self.n_lanes = plan.axis_size * n_processes
        self.axis_name = self.options.axis_name
        self.keys_in = [slot.start for slot in self.split]
        self._trace()
        self._engine: Callable[..., list[Any]] | None = None

    # What engines ask for ---------------------------------------------------------------------------

    @property
    def n_local(self) -> int:
        """The number of lanes that this process runs."""
        return self.plan.axis_size

    @property
    def out_axes(self) -> list[int | None]:
        """Where the lanes go, for each output of the jaxpr; `None` if it is the same in all."""
        return [leaf.axis for leaf in self.leaving]

    def example(self) -> list[Any]:
        """The operands with which the body was traced."""
        return self.operands()

    def key_impls(self) -> list[Any]:
        """The implementations of the typed keys that are split; `None` for raw keys."""
        keys = [self.leaves[slot.start] for slot in self.split]
        keys = [key.value() if type(key) is Deferred else key for key in keys]
        return [jr.key_impl(key) if is_typed_key(key) else None for key in keys]

    def donated(self) -> frozenset[int]:
        """The operands that give up their buffers, by position among those that are passed."""
        self.mapped.warn_of_idle_donation([index for index, _, _ in self.found.writes])
        return frozenset(
            position
            for position, leaf in enumerate(self.passed)
            if self.mapped.is_donated(leaf, self.found.writes)
        )

    def mark(self, index: int, needed: bool) -> None:
        if needed:
            self.drawn[index] = None
        else:
            del self.drawn[index]

    # Once: trace, and ask what differs --------------------------------------------------------------

    def _trace(self) -> None:
        passed = [self.leaves[i] for i in self.passed]
        passed = [x.get() if type(x) is Deferred else x for x in passed]
        if not STRUCTS_VARY and any(map(varies_over, passed)):
            raise NotImplementedError(
                f"{self.mapped.described.fn} is called in jax.shard_map on values that vary over the "
                "mesh, but this version of JAX cannot trace a chunk for them. Leave chunk_size out, "
                "or pass check_vma=False to jax.shard_map."
            )
        avals = _avals(passed)
        lanes = [_lane_aval(a, axis) for a, axis in zip(avals, self.in_axes(), strict=True)]
        keys = _avals([_as_aval(self.leaves[i]) for i in self.keys_in])
        found: list[Any] = []

        def lane(passed: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
            by_slot = {slot.index: key for slot, key in zip(self.split, keys, strict=True)}

            def lane_key_of(index: int) -> Callable[[bool], Any]:
                return lambda needed: by_slot[index]

            run, outputs = Lanes.run(self, passed, lane_key_of, self.drawn, anywhere=True)
            values = [leaf.value for leaf in outputs.all_leaving()]
            impls = [jr.key_impl(x) if is_typed_key(x) else None for x in values]
            found.extend((run, outputs, impls))
            forget_values(run, outputs)
            return values

        env = [] if self.axis_name is None else [(self.axis_name, self.n_lanes)]
        outer, local.on_devices = local.on_devices, self.options.on_devices or local.on_devices
        try:
            shown = self.mapped.presented(lane, [*self.passed, *self.keys_in])
            self.jaxpr = jax.make_jaxpr(shown, axis_env=env)(lanes, keys)
        finally:
            local.on_devices = outer
        run, outputs, self.out_impls = found
        for index in self.drawn:  # not earlier: a key that is itself deferred has another trace
            Lanes.mark(self, index, True)
        self._settle(outputs, lanes, keys)
        self.found: Meta = self.meta(run, outputs)
        self.order: list[Leaving | int] = ordered(outputs)
        self.leaving: list[Leaving] = outputs.all_leaving()

    def _settle(self, outputs: Outputs, lanes: Sequence[Any], keys: Sequence[Any]) -> None:
        index = {id(leaf): i for i, leaf in enumerate(outputs.all_leaving())}
        differ: list[bool] = []

        def probe(reference: Any, passed: Sequence[Any], keys: Sequence[Any]) -> Any:
            differ.extend(which_differ(reference, self._flat(passed, keys)))
            return reference

        mapped = jax.vmap(
            probe, in_axes=(0, self.in_axes(), 0), axis_name=self.axis_name, axis_size=self.n_lanes
        )
        # The sizes for all processes together, for which the body was traced.
        whole = [
            _stacked_aval(a, axis, self.n_lanes) for a, axis in zip(lanes, self.in_axes(), strict=True)
        ]
        all_keys = [_stacked_aval(a, 0, self.n_lanes) for a in keys]
        jax.eval_shape(mapped, jax.ShapeDtypeStruct((self.n_lanes,), jnp.int32), whole, all_keys)
        outputs.settle(lambda asked: [differ[index[id(leaf)]] for leaf in asked])

    def _flat(self, passed: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
        """The traced body as a function."""
        return jaxpr_as_fun(self.jaxpr)(*passed, *keys)

    # Each time: keys, engine, order -----------------------------------------------------------------

    def run(self) -> tuple[list[Any], Meta]:  # pyright: ignore[reportIncompatibleMethodOverride]
        leaves = self.leaves
        return self.run_on(leaves)

    def run_on(self, leaves: Sequence[Any]) -> tuple[list[Any], Meta]:
        """Run on the leaves of a call with the same shapes."""
        passed = [leaves[i] for i in self.passed]
        passed = [x.get() if type(x) is Deferred else x for x in passed]
        kept, keys = self._split_keys(leaves)
        outs = self.prepare()(passed, keys)
        by_leaf = {id(leaf): out for leaf, out in zip(self.leaving, outs, strict=True)}
        arrays = []
        for item in self.order:
            if isinstance(item, int):
                arrays.append(kept[item])
                continue
            out = by_leaf[id(item)]
            arrays.append(out if item.reducer is None else item.reducer(out))
        return arrays, self.found

    def prepare(self) -> Callable[..., list[Any]]:
        """The engine. After this, the leaves with which the body was traced are released."""
        engine = self._engine
        if engine is None:
            engine = self._engine = self.options.prepare(self)
            self.leaves = []
        return engine

    def _split_keys(self, leaves: Sequence[Any]) -> tuple[dict[int, Any], list[Any]]:
        """The remainder of each split key, and the keys of this process's lanes."""
        kept: dict[int, Any] = {}
        keys: list[Any] = []
        n = self.plan.axis_size
        first = self._process * n
        for slot in self.split:
            key = leaves[slot.start]
            if slot.index in self.drawn:
                shared = key.value() if type(key) is Deferred else key
                kept[slot.index], split = split_for_lanes(shared, self.n_lanes)
                keys.append(split[first : first + n])
            else:
                # Nothing is drawn from it, so any keys will do; these cost nothing.
                keys.append(jnp.empty((n, *key.shape), key.dtype))
        return kept, keys


def forget_values(run: Run, outputs: Any) -> None:
    """Keep only the types of the results of a run: their values are tracers of a trace that ends."""
    for leaf in outputs.all_leaving():
        leaf.value = _type(leaf.value)
    run.out = jtu.tree_map(_type, run.out)
    run.writes = {index: jtu.tree_map(_type, value) for index, value in run.writes.items()}


def _type(leaf: Any) -> Any:
    return _as_aval(leaf) if hasattr(leaf, "dtype") else leaf


def _avals(leaves: list[Any]) -> list[Any]:
    avals = jax.eval_shape(lambda leaves: leaves, leaves)
    return [
        _struct(a.shape, a, None if isinstance(x, jax.ShapeDtypeStruct) else explicit_sharding(x), x)
        for a, x in zip(avals, leaves, strict=True)
    ]


def _as_aval(leaf: Any) -> Any:
    # A key that is itself deferred belongs to lanes around these, and has no type yet.
    varying = {} if type(leaf) is Deferred else manual_type(leaf, len(leaf.shape))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, **varying)


def _struct(shape: Any, aval: Any, sharding: Any, like: Any) -> Any:
    given = {"sharding": sharding, **manual_type(like, len(shape))}
    return jax.ShapeDtypeStruct(tuple(shape), aval.dtype, weak_type=aval.weak_type, **given)


def _lane_aval(aval: Any, axis: int | None) -> Any:
    if axis is None:
        return aval
    shape = list(aval.shape)
    del shape[axis]
    return _struct(shape, aval, without_axis(aval.sharding, axis, len(aval.shape)), aval)


def _stacked_aval(aval: Any, axis: int | None, n: int) -> Any:
    if axis is None:
        return aval
    shape = list(aval.shape)
    axis %= len(shape) + 1
    shape.insert(axis, n)
    return _struct(shape, aval, with_axis(aval.sharding, axis, len(aval.shape)), aval)
