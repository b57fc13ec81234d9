"""The compiled programs of calls of one structure.

There is one for each set of shapes, donated operands, and shardings. What a call needs is worked
out once, from a separate trace that serves all of them: its *plan*.
"""

import dataclasses
import functools as ft
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, SingleDeviceSharding

from .._calls.notes import Note
from .._ground.errors import CapturedStateError
from .._ground.versions import is_eager, trace_context
from .._programs.capturing import Captured, Untraced, captured_message, watched
from .._programs.donation import Argument, with_buffers_of_their_own
from .._programs.runtime_errors import CompiledFunction
from .._sharding.putting import constrained, put
from .._states.threads import local
from .ahead import Given
from .placement import Placement, Result, spread_sharding, whole_on


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """How calls of some shapes and shardings run.

    `donated` are the operands that give up their buffers. An *idle* one is the buffer of a state
    that is written but never read: JAX drops the operand, and the buffer has to be given up by
    hand. (Keeping such operands, by `keep_unused`, means in JAX 0.12 that the constants of the
    program are never collected.) `moved` are operands that are resharded beforehand.
    """

    donated: tuple[int, ...]
    idle: tuple[int, ...]
    note: Note
    compiled: CompiledFunction
    moved: dict[int, Any]


def in_place(arrays: list[Any], moved: dict[int, Any]) -> list[Any]:
    """The operands, with some of them resharded."""
    if not moved:
        return arrays
    brought = put([arrays[i] for i in moved], list(moved.values()))
    arrays = list(arrays)
    for position, array in zip(moved, brought, strict=True):
        arrays[position] = array
    return arrays


class JitEntry:
    """The compiled programs of calls of one structure."""

    uncompiled = False

    def __init__(
        self,
        program: Any,
        name: str,
        compiler_options: dict[str, Any] | None,
        placement: Placement,
    ):
        self.program = program
        self.placement = placement
        self.placed = placement.into is not None or placement.out is not None
        self.flat = program.presented(watched(program), name=name)
        self.jit = ft.partial(jax.jit, compiler_options=compiler_options)
        self.jitted = self.jit(self.flat)
        self.compiled = CompiledFunction(self.jitted)
        self._plans: dict[Any, _Plan] = {}
        self._compiled: dict[Any, CompiledFunction] = {}
        self._last: tuple[Any, _Plan | None] = ((), None)

    def run(self, arrays: list[Any]) -> tuple[list[Any], Note]:
        try:  # not `_looked_at`: each level of nested transforms has little of Python's stack
            return self._call(*arrays)
        except Captured as captured:
            raise self.error(captured) from None

    @property
    def call(self) -> Callable[..., tuple[list[Any], Note]]:
        """What runs the program, without giving up buffers. `Captured` is raised as it is."""
        return self._call if self.placed or _several_devices() else self.compiled.call

    def _call(self, *operands: Any) -> tuple[list[Any], Note]:
        arrays = list(operands)
        if not self.placed and not self._keeps(arrays):
            return self.compiled.call(*arrays)
        if not is_eager():
            return self._call_traced(arrays) if self.placed else self.compiled.call(*arrays)
        plan = self._plan(arrays, frozenset())
        return plan.compiled.call(*in_place(arrays, plan.moved))

    def _call_traced(self, arrays: list[Any]) -> tuple[list[Any], Note]:
        """Run as part of a program that is being traced: the arrays are constrained in it."""
        arrays = _constrained(arrays, self.placement.of_operands(arrays))
        outs, note = self.compiled.call(*arrays)
        results = self.placement.of_results(note, outs, [None] * len(arrays), arrays)
        return _constrained(outs, [result.sharding for result in results]), note

    def run_donating(
        self, arrays: list[Any], kept: frozenset[Argument], check: Callable[[Note], None]
    ) -> tuple[list[Any], Note]:
        """Run, and give up buffers. `check` raises if the call will be refused: it must not run."""
        plan = self._looked_at(lambda: self._plan(arrays, kept))
        check(plan.note)
        arrays = with_buffers_of_their_own(in_place(arrays, plan.moved), plan.donated)
        result = plan.compiled.call(*arrays)
        for position in plan.idle:
            arrays[position].delete()
        return result

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        """The program; a call that has run is not traced again."""
        return self._looked_at(lambda: self.jitted.trace(*avals).jaxpr)

    def lower(self, arrays: Sequence[Any], kept: frozenset[Argument]) -> tuple[Any, Given | None]:
        """The program, lowered, and the buffers that it gives up."""
        donates = self.program.donates
        if not donates and not self.placed and not self._keeps(arrays):
            return self._looked_at(lambda: self.jitted.lower(*arrays)), None
        plan = self._looked_at(lambda: self._plan(arrays, kept if donates else frozenset()))
        by_argument = frozenset(self.program.by_argument())
        given = Given(plan.donated, plan.idle, plan.note, by_argument, kept) if donates else None
        return plan.compiled.jitted.lower(*in_place(list(arrays), plan.moved)), given

    def _looked_at(self, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Captured as captured:
            raise self.error(captured) from None

    def error(self, captured: Captured) -> CapturedStateError:
        """The error to raise if the body read a captured state."""
        return CapturedStateError(captured_message(self.program.described.fn, captured.shown))

    # Plans --------------------------------------------------------------------------------------

    def _keeps(self, arrays: Sequence[Any]) -> bool:
        """Whether written states may have a sharding to keep."""
        return self.program.keeps_shardings and _several_devices() and _on_a_mesh(arrays)

    def _plan(self, arrays: Sequence[Any], kept: frozenset[Argument]) -> _Plan:
        spread = self.placed or self._keeps(arrays)
        key = (trace_context(), kept, tuple(map(_facts if spread else _type, arrays)))
        last, plan = self._last
        if plan is not None and last == key:
            return plan
        found = self._plans.get(key)
        if found is None:
            if local.flat is self.program:
                raise Untraced
            found = self._plans[key] = self._made(list(arrays), kept, spread)
        self._last = key, found
        return found

    def _made(self, arrays: list[Any], kept: frozenset[Argument], spread: bool) -> _Plan:
        wanted = self.placement.of_operands(arrays)
        # By hand: an array that `jax.jit` reshards has another type than one that is already there.
        moved: dict[Any, Any] = {
            i: w for i, (x, w) in enumerate(zip(arrays, wanted, strict=True)) if w and _is_free(x)
        }
        arrays = in_place(arrays, moved)
        traced = self._jitted((), wanted, ()).trace(*arrays)
        results: list[Result] = []
        if spread:
            outs, note = traced.out_info
            where = [
                w or spread_sharding(getattr(x, "sharding", None))
                for x, w in zip(arrays, wanted, strict=True)
            ]
            incoming = where if self.program.keeps_shardings else [None] * len(arrays)
            results = self.placement.of_results(note, outs, incoming, arrays)
            free = _moved(arrays, wanted, where, results)
            moved |= free
            results = [r._replace(sharding=moved.get(r.operand, r.sharding)) for r in results]
            arrays = in_place(arrays, free)
            if free:  # to JAX they have other types now
                traced = self._jitted((), wanted, ()).trace(*arrays)
        outs, note = traced.out_info
        donated: tuple[int, ...] = ()
        if self.program.donates:
            elsewhere = {
                r.operand for r in results if r.operand is not None and _leaves(r, arrays, wanted)
            }
            donated = self.program.donated(note, outs, arrays, kept)
            donated = tuple(position for position in donated if position not in elsewhere)
        used = _used(traced.jaxpr.jaxpr) if donated else set()
        idle = tuple(position for position in donated if position not in used)
        targets = [result.sharding for result in results]
        return _Plan(donated, idle, note, self._compiled_for(donated, wanted, targets), moved)

    def _compiled_for(
        self, donated: tuple[int, ...], wanted: Sequence[Any], targets: Sequence[Any]
    ) -> CompiledFunction:
        wanted = tuple(wanted) if any(s is not None for s in wanted) else ()
        targets = tuple(targets) if any(s is not None for s in targets) else ()
        if not donated and not wanted and not targets:
            return self.compiled
        key = donated, wanted, targets
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = CompiledFunction(self._jitted(*key))
        return found

    def _jitted(self, donated: Any, wanted: Sequence[Any], targets: Sequence[Any]) -> Any:
        options: dict[str, Any] = {}
        if any(s is not None for s in wanted):
            options["in_shardings"] = tuple(wanted)
        if any(s is not None for s in targets):
            options["out_shardings"] = (list(targets), None)
        if donated:
            options["donate_argnums"] = donated
        return self.jit(self.flat, **options) if options else self.jitted


@ft.cache
def _several_devices() -> bool:
    """Whether an array can be on more than one device. Called when there are arrays."""
    return jax.device_count() > 1


_sharding_of = operator.attrgetter("sharding")
_facts_of = operator.attrgetter("shape", "dtype", "weak_type", "sharding", "committed")


def _on_a_mesh(arrays: Sequence[Any]) -> bool:
    try:
        kinds = set(map(type, map(_sharding_of, arrays)))  # 0.1 us per array
    except AttributeError:  # tracers, NumPy arrays
        kinds = {type(getattr(x, "sharding", None)) for x in arrays}
    return NamedSharding in kinds


def _type(x: Any) -> Any:
    return x.shape, x.dtype, getattr(x, "weak_type", False)


def _facts(x: Any) -> Any:
    try:
        return _facts_of(x)
    except AttributeError:
        return *_type(x), getattr(x, "sharding", None)


def _is_free(x: Any) -> bool:
    """Whether JAX may move an array: it is not on a device, or was not placed there explicitly."""
    sharding = getattr(x, "sharding", None)
    return sharding is None or (
        isinstance(sharding, SingleDeviceSharding) and not getattr(x, "committed", True)
    )


def _moved(
    arrays: Sequence[Any], wanted: Sequence[Any], where: Sequence[Any], results: Sequence[Result]
) -> dict[int, Any]:
    """Arrays of written states that were not placed anywhere, and where to put them.

    Otherwise they would come back with another sharding, and the next call would be compiled again.
    """
    mesh = next((s.mesh for s in where if spread_sharding(s) is not None), None)
    otherwise = None if mesh is None else whole_on(mesh)
    found = {
        r.operand: r.sharding or otherwise
        for r in results
        if r.operand is not None and wanted[r.operand] is None and _is_free(arrays[r.operand])
    }
    return {position: sharding for position, sharding in found.items() if sharding is not None}


def _leaves(result: Result, arrays: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether a written state moves to another sharding, so that its old buffer cannot be reused."""
    assert result.operand is not None
    here = wanted[result.operand] or getattr(arrays[result.operand], "sharding", None)
    return None not in (here, result.sharding) and here != result.sharding


def _constrained(arrays: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
    pairs = zip(arrays, shardings, strict=True)
    return [x if sharding is None else constrained(x, sharding) for x, sharding in pairs]


def _used(jaxpr: Any) -> set[int]:
    """The positions of the operands that a program uses."""
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | set(map(id, jaxpr.outvars))
    return {position for position, v in enumerate(jaxpr.invars) if id(v) in used}
