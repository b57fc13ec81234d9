"""`jit`: compiled stateful functions.

The compiled call returns the output and the written states, and nothing that merely passed through:
what the output shares with the arguments is put in outside. A buffer that is donated belongs to a state
that was written, so which ones those are is learned from the trace, before anything is compiled.
"""

import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ._around import finish, needed, settle
from ._body import Body, body_of
from ._call import Call
from ._callable import anchor_of
from ._compat import is_eager, jit_is_disabled
from ._compiled import Compiled, programs
from ._entry import Captured, captured_message, watched
from ._errors import CapturedStateError, UnmatchedFilterWarning
from ._leaves import kinds_of
from ._messages import warn
from ._options import as_code
from ._packed_call import PackedProgram, packed_program
from ._returned import Note, Operand, taken_apart
from ._run import Writes
from ._signature import ARGS
from ._transform import checked, code_of
from ._typing import Filter, as_tuple
from .filter import to_predicate


@dataclasses.dataclass(eq=False)
class _Program(Body):
    """The body as a flat function; `donate` and `donate_argnums` say whose buffers are given up."""

    donate: Any
    donate_argnums: tuple[int, ...]

    def __call__(self, *arrays: Any) -> tuple[list[Any], Note]:
        leaves = self.leaves(arrays)
        return taken_apart(self.run(leaves), arrays)

    @property
    def donates(self) -> bool:
        return self.donate is not None or bool(self.donate_argnums)

    def donated(
        self, note: Note, arrays: Sequence[Any], written: dict[int, Any], kept_whole: bool
    ) -> tuple[int, ...]:
        """Which operands give up their buffers.

        `written` has the new leaves of each written state. `kept_whole` says that somebody goes on with
        the arguments, so that only what is overwritten can be given up.
        """
        static = {index for index, _ in self.statics}
        operands = [i for i in range(len(self.signature.layout.slot_of_leaf)) if i not in static]
        kept = {leaf.index for leaf in note.out_leaves if type(leaf) is Operand}
        return tuple(
            position
            for position, leaf in enumerate(operands)
            if position not in kept and self._is_donated(leaf, arrays[position], written, kept_whole)
        )

    def warn_of_idle_donation(self, written: Collection[int]) -> None:
        """Warn where `donate` selects none of the states that are written."""
        signature = self.signature
        if self.donate is None or any(
            self.donate(signature.path(i), signature.layout.slots[i].empty()) for i in written
        ):
            return
        writes = ", ".join(f"`{self.place(i)}`" for i in written) or "none"
        warn(
            f"donate={self.donate!r} of {self.described.fn} gives up nothing: it selects none of the "
            f"states that the function writes, which are {writes}. For an argument whose new tree is "
            "returned, name the argument: donate_argnums=(0,).",
            UnmatchedFilterWarning,
        )

    def _is_donated(self, leaf: int, array: Any, written: dict[int, Any], kept_whole: bool) -> bool:
        signature = self.signature
        slot = signature.layout.slot_of_leaf[leaf]
        group, which = signature.argument(signature.layout.key_path_of_leaf[leaf])
        by_argument = group == ARGS and which in {n % signature.n_args for n in self.donate_argnums}
        if by_argument and not kept_whole:
            return True
        if slot is None or slot.index not in written:
            return False
        new = written[slot.index]
        same = len(new) == slot.stop - slot.start and _same_type(new[leaf - slot.start], array)
        chosen = by_argument or (
            self.donate is not None and self.donate(signature.path(slot.index), slot.empty())
        )
        return same and bool(chosen)


def _same_type(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


class _JitEntry:
    """The compiled programs of calls of one structure, by the shapes of their operands."""

    def __init__(self, program: _Program, name: str):
        self.program = program
        self.flat = watched(program, name)
        self.jitted = jax.jit(self.flat)
        self._donating: dict[Any, tuple[tuple[int, ...], Any]] = {}
        self._by_donated: dict[tuple[int, ...], Any] = {(): self.jitted}

    def run(self, arrays: list[Any], eager: bool, kept_whole: bool) -> tuple[list[Any], Note]:
        try:
            if self.program.donates and eager:
                donated, jitted = self._donates(arrays, kept_whole)
                return jitted(*_with_buffers_of_their_own(arrays, donated))
            return self.jitted(*arrays)
        except Captured as captured:
            raise self._error(captured) from None

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        """The program; a call that ran is not traced again."""
        return self._looked_at(lambda: self.jitted.trace(*avals).jaxpr)

    def lower(self, avals: Sequence[Any]) -> Any:
        """The program, lowered."""
        return self._looked_at(lambda: self._donates(avals, False)[1].lower(*avals))

    def _looked_at(self, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Captured as captured:
            raise self._error(captured) from None

    def _error(self, captured: Captured) -> CapturedStateError:
        return CapturedStateError(captured_message(self.program.described.fn, captured.shown))

    def _donates(self, arrays: Sequence[Any], kept_whole: bool) -> tuple[tuple[int, ...], Any]:
        """Which operands these shapes donate, and the compiled function that does so.

        One trace serves all: JAX keeps it by the function and the shapes.
        """
        key = (kept_whole, *((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in arrays))
        found = self._donating.get(key)
        if found is None:
            donated = self._learn(arrays, kept_whole) if self.program.donates else ()
            jitted = self._by_donated.get(donated)
            if jitted is None:
                jitted = jax.jit(self.flat, donate_argnums=donated)
                self._by_donated[donated] = jitted
            found = self._donating[key] = (donated, jitted)
        return found

    def _learn(self, arrays: Sequence[Any], kept_whole: bool) -> tuple[int, ...]:
        outs, note = self.jitted.trace(*arrays).out_info
        supply = iter(outs[len(outs) - sum(count for _, _, count in note.writes) :])
        written = {index: [next(supply) for _ in range(count)] for index, _, count in note.writes}
        self.program.warn_of_idle_donation(written)
        return self.program.donated(note, arrays, written, kept_whole)


def _with_buffers_of_their_own(arrays: list[Any], donated: Sequence[int]) -> list[Any]:
    """The operands, with copies of those donated buffers that stand at a second place too."""
    ids = list(map(id, arrays))
    if len(set(ids)) == len(ids):
        return arrays
    arrays = list(arrays)
    for position in donated:
        if ids.count(ids[position]) > 1:
            arrays[position] = jnp.copy(arrays[position])
    return arrays


class Jit(Compiled):
    """What `jit` returns: a compiled stateful function."""

    fun: Callable[..., Any]
    donate: Any = eqx.field(static=True)
    donate_argnums: tuple[int, ...] = eqx.field(static=True)

    def _apply(self, call: Call, threaded: bool = False) -> tuple[Any, Writes]:
        operands = call.kinds.operands(needed(call))
        if jit_is_disabled():
            arrays, note = Jit._program(self, call)(*operands)
        else:
            kept_whole = threaded or call.is_live
            arrays, note = Jit._compiled(self, call, operands, kept_whole)
        out, writes = finish(self, call, note, note.result(arrays, operands), threaded)
        settle(call, note.reads, writes)
        return out, writes

    def _compiled(self, call: Call, operands: list[Any], kept_whole: bool) -> tuple[list[Any], Note]:
        entry = Compiled._entry(self, call)
        try:
            return entry.run(operands, is_eager(), kept_whole)
        except (RuntimeError, ValueError):
            # Only looked for where something failed: to ask each array costs more than the call.
            call.refuse_deleted(self._code)
            raise

    def _call_packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.donate is not None or self.donate_argnums or not is_eager() or jit_is_disabled():
            return None
        packed = args[0]
        rest, treedef = jtu.tree_flatten((args[1:], kwargs))
        kinds = kinds_of(rest)
        if kinds.statics:
            return None  # numbers are told apart, and warned of, on the usual way
        anchor = anchor_of(self.fun)
        key = (PackedProgram, packed.form, packed.statics[1], treedef, kinds)

        def make() -> PackedProgram:
            call = Jit._call(self, args, kwargs)
            return packed_program(call, Compiled._entry(self, call))

        program = programs.get(anchor, key, make)
        if program.general:
            return None
        try:
            return program.run(packed, rest)
        except Exception:
            # The usual way finds out what was wrong, and says it.
            return None

    def _code(self) -> str:
        donate = [] if self.donate is None else [f"donate={as_code(self.donate)}"]
        if self.donate_argnums:
            donate.append(f"donate_argnums={as_code(self.donate_argnums)}")
        return f"ps.jit({', '.join([code_of(self.fun), *donate])})"

    def _options_key(self) -> Hashable:
        return Jit, self.donate, self.donate_argnums

    def _program(self, call: Call) -> _Program:
        return body_of(call, code_of(self), _Program, self.donate, self.donate_argnums)

    def _make_entry(self, program: _Program) -> _JitEntry:
        return _JitEntry(program, self.__name__)


def jit(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    donate: Filter = None,
    donate_argnums: int | Iterable[int] = (),
) -> Any:
    """Compile a stateful function.

    As `jax.jit`, with states. Arrays are traced; every other leaf of the arguments is static, part of
    the program by type and value, as in `eqx.filter_jit`. Compiled once for each signature, also where
    the wrapper is made anew. States that were not written, and what the function returns as it came
    in, do not pass through the compiled call: they come back as the very same arrays. Usable as a
    decorator, with options and without; on a method, `self` is not counted.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `donate`: a filter; the states that it selects give up their buffers where a call overwrites them
        with values of the same shape and dtype, and nowhere else.
    - `donate_argnums`: positional arguments, as the caller counts them, whose buffers are given up, as
        in `jax.jit`. Where `pstate.pure` or a recording goes on with the argument, only the buffers of
        overwritten states are.

    **Returns:** a stateful function, called like `fn`. It has `lower(*args)`, `get_arg_cache_key(*args)`
    and `get_jaxpr_by_cache(key)`, as `StatefulMapping` has.

    **Raises:** when called: `CapturedStateError` where the function reads a state that did not come in
    through its arguments; `FrozenStateError` where a state was written and nobody takes the new value;
    `StateError` for a buffer that was given up before; `TypeError` for an unhashable leaf that is no
    array. A Python number that keeps changing, and compiling, gives a `RecompilationWarning`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> @ps.jit(donate=ps.ShortTermState)
        ... def step(counter, delta):
        ...     counter["n"].value += delta
        ...     return counter["n"].value * 10
        >>> out, counter = ps.pure(step)({"n": ps.ShortTermState(1)}, jnp.asarray(2))
        >>> out.item(), counter["n"].value.item()
        (30, 3)
    """
    if fn is None:
        return lambda fn: jit(fn, donate=donate, donate_argnums=donate_argnums)
    chosen = None if donate is None else to_predicate(donate)
    return Jit(checked(fn), chosen, as_tuple(donate_argnums, int))
