"""`jit`: compiled stateful functions.

The compiled call returns the output and the written states, and nothing that merely passed through:
arrays that the output shares with the arguments are put in outside it.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, TypedDict, Unpack, overload

from .._calls.arguments import refuse_unknown, with_statics
from .._calls.call import Call
from .._calls.callables import anchor_of
from .._calls.code import as_code
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.giving_back import check_writes
from .._calls.lifting import Lifted
from .._calls.notes import Note, taken_apart
from .._calls.pure import Pure
from .._calls.running import Writes
from .._calls.transform import code_of
from .._calls.typed import Bound, C, Instance, Module, Out, P, Q, R
from .._ground.exact import exact_key
from .._ground.integers import Positions, as_names, as_positions
from .._ground.public import public
from .._ground.typing import Filter
from .._ground.versions import is_eager, jit_is_disabled
from .._programs.compiled import Compiled
from .._programs.donation import Donation, kept_arguments
from .._sharding.wanted import Wanted
from ..filter import to_predicate
from .ahead import Executable, Form, Lowered
from .jit_entry import JitEntry
from .placement import Placement


@dataclasses.dataclass(eq=False)
class _Program(Donation):
    """The body as a flat function.

    `places_output` says that arrays that the output shares with the arguments are to be resharded
    too.
    """

    keeps_shardings: ClassVar[bool] = True

    places_output: bool

    def __call__(self, *arrays: Any) -> tuple[list[Any], Note]:
        return taken_apart(self.run(self.leaves(arrays)), () if self.places_output else arrays)


class Jit(Compiled[P, R, C], Lifted[P, R, C]):
    """What `jit` returns: a compiled stateful function."""

    __slots__ = (
        "compiler_options",
        "donate",
        "donate_argnames",
        "donate_argnums",
        "in_shardings",
        "out_shardings",
        "static_argnames",
        "static_argnums",
    )

    donate: Any
    donate_argnums: tuple[int, ...]
    donate_argnames: tuple[str, ...]
    static_argnums: tuple[int, ...]
    static_argnames: tuple[str, ...]
    compiler_options: tuple[tuple[str, Any], ...]
    in_shardings: Wanted | None
    out_shardings: Wanted | None

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: Any = None) -> "Jit[P, R, C]": ...
        @overload
        def __get__(
            self: "Jit[Concatenate[Any, Q], Out, Any]", instance: Instance, owner: Any = None
        ) -> "Jit[Q, Out, Instance]": ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        argnums, argnames = self.static_argnums, self.static_argnames
        if argnums or argnames:
            args, kwargs = with_statics(self.fun, args, kwargs, argnums, argnames, code_of(self))
        return Call(self.fun, args, kwargs)

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        operands = call.kinds.operands(leaves)
        if jit_is_disabled():
            arrays, note = self._program(call)(*operands)
        else:
            entry = self._entry(call)
            if entry.program.donates and is_eager():
                check = lambda note: self._check(call, note, contract)
                arrays, note = entry.run_donating(operands, kept_arguments(call, contract), check)
            else:
                arrays, note = entry.run(operands)
        return note, note.result(arrays, operands)

    def _check(self, call: Call, note: Note, contract: Contract | None) -> None:
        """Raise the errors that would be raised after the call, when buffers are gone."""
        self._refuse(call, note, contract)
        writes = [index for index, _, _ in note.writes]
        check_writes(call, contract, writes, lambda index: self._line(call, index))

    _is_inlined = False

    @property
    def _is_direct(self) -> bool:
        if self._donates() or self.static_argnums or self.static_argnames or self.compiler_options:
            return False
        return self.in_shardings is None and self.out_shardings is None

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """The program of a call, lowered: for its text, its cost, or to compile it ahead of the call.

        The arguments are those of a call, with `jax.ShapeDtypeStruct`s instead of arrays if you
        like.

        **Returns:** an object with the methods of a `jax.stages.Lowered`. Its `compile()` returns a
        stateful function, called like this one, for arguments with this signature only.
        """
        return self._lower(self._take_apart(args, kwargs), None, None)

    def _lower(self, call: Call, contract: Contract | None, boundary: Pure | None) -> Lowered:
        operands = call.kinds.operands(call.leaves)
        lowered, given = self._entry(call).lower(operands, kept_arguments(call, contract))
        form = Form.of(call, self._static_keys(call, anchor_of(self.fun)))

        def executable(compiled: Any) -> Any:
            made = Executable(self, compiled=compiled, form=form, given=given)
            return made if boundary is None else made.within(boundary)

        return Lowered(lowered, executable)

    def _code(self) -> str:
        options = [f"{name}={as_code(value)}" for name, value in self._options().items()]
        return f"ps.jit({', '.join([code_of(self.fun), *options])})"

    def _donates(self) -> bool:
        return bool(self.donate is not None or self.donate_argnums or self.donate_argnames)

    def _options(self) -> dict[str, Any]:
        """The non-default options."""
        given = {name: getattr(self, name) for name in Jit._static}
        given = {name: value for name, value in given.items() if value is not None and value != ()}
        if self.compiler_options:
            given["compiler_options"] = dict(self.compiler_options)
        return {name: x.given if isinstance(x, Wanted) else x for name, x in given.items()}

    def _maker(self) -> Callable[[Any], Any]:
        return ft.partial(jit, **self._options())

    def _options_key(self) -> Hashable:
        donation = self.donate, self.donate_argnums, self.donate_argnames
        options = self.compiler_options and exact_key(self.compiler_options)
        return Jit, *donation, options, self.in_shardings, self.out_shardings

    def _program(self, call: Call) -> Any:  # a `Donation`, to be called with arrays
        donation = self.donate, self.donate_argnums, self.donate_argnames
        places_output = self.out_shardings is not None
        return flat_function_of(call, code_of(self), _Program, *donation, places_output)

    def _make_entry(self, program: Any) -> JitEntry:
        placement = Placement(program, self.in_shardings, self.out_shardings)
        return JitEntry(program, self.__name__, dict(self.compiler_options) or None, placement)


class JitOptions(TypedDict, total=False):
    """The options of `jit`."""

    donate: Filter
    donate_argnums: Positions
    donate_argnames: str | Iterable[str]
    static_argnums: Positions
    static_argnames: str | Iterable[str]
    compiler_options: Mapping[str, Any] | None
    in_shardings: Any
    out_shardings: Any


if TYPE_CHECKING:

    @overload
    def jit(fn: Bound[Q, Out, Module], /, **options: Unpack[JitOptions]) -> Jit[Q, Out, Module]: ...
    @overload
    def jit(fn: Callable[Q, Out], /, **options: Unpack[JitOptions]) -> Jit[Q, Out, object]: ...
    @overload
    def jit(**options: Unpack[JitOptions]) -> Callable[[Callable[Q, Out]], Jit[Q, Out, object]]: ...


@public
def jit(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    donate: Filter = None,
    donate_argnums: Positions = (),
    donate_argnames: str | Iterable[str] = (),
    static_argnums: Positions = (),
    static_argnames: str | Iterable[str] = (),
    compiler_options: Mapping[str, Any] | None = None,
    in_shardings: Any = None,
    out_shardings: Any = None,
) -> Any:
    """Compile a stateful function.

    It is `jax.jit` with states. Arrays are traced; every other leaf of the arguments is static,
    part of the program by type and value, as in `eqx.filter_jit`. The function is compiled once for
    each signature, even if the wrapper is made again. States that were not written, and arrays that
    the function returns unchanged, do not pass through the compiled call: they come back as the
    same array objects. Usable as a decorator, with or without options. A bound module, or `self` of
    a decorated method, is an implicit first argument: leave it out of the argument numbers.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `donate`: a filter; the states that it selects give up their buffers if a call overwrites them
        with values of the same shape and dtype, and only then.
    - `donate_argnums`: positional arguments, as the caller counts them, whose buffers are given up,
        as in `jax.jit`. If `pstate.pure` or a recording still needs the argument, only the buffers
        of overwritten states are given up.
    - `donate_argnames`: the same by name, one or several, however the arguments are passed.
    - `static_argnums`, `static_argnames`: arguments that are part of the program as a whole, even a
        pytree with numbers in it. They must be hashable, and the function gets them as they are.
    - `compiler_options`: as in `jax.jit`; for calls that are not inside another `jit`.
    - `in_shardings`: how the arrays of positional arguments are sharded on the way in, as in
        `jax.jit`: a sharding or a `PartitionSpec` for all, or a tuple with an entry for each: one
        of these, `None`, a tree of them such as `pstate.shardings` returns, or rules
        `{PartitionSpec: filter}`. Rules given as the whole option apply to every state and array of
        the call. Arrays without a sharding are taken where they are.
    - `out_shardings`: how the arrays of the output are sharded, given in the same way. Rules given
        as the whole option apply to written states too. A written state that no rule selects keeps
        the sharding that it came with, so that it causes no recompilation; other arrays without a
        sharding are left to the compiler. A `PartitionSpec` is on the mesh of the context.

    **Returns:** a stateful function, called like `fn`. It has `lower(*args)`, `get_arg_cache_key(*args)`
    and `get_jaxpr_by_cache(key)`, as `StatefulMapping` has.

    **Raises:** `ValueError` for a name that is not a parameter; `TypeError` for anything but a
    sharding. When called: `ValueError` for a sharding that does not fit; `CapturedStateError` if
    the function reads a state that did not come in through its arguments; `FrozenStateError` if a
    state was written and the new value would be lost; `StateError` for a buffer that was already
    donated; `TypeError` for an unhashable non-array leaf. A Python number that keeps changing, so
    that each value is compiled, causes a `RecompilationWarning`.

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
    chosen = None if donate is None else to_predicate(donate)
    options = {
        "donate": chosen,
        "donate_argnums": as_positions(donate_argnums, "donate_argnums"),
        "donate_argnames": as_names(donate_argnames, "donate_argnames"),
        "static_argnums": as_positions(static_argnums, "static_argnums"),
        "static_argnames": as_names(static_argnames, "static_argnames"),
        "compiler_options": tuple((compiler_options or {}).items()),
        "in_shardings": None if in_shardings is None else Wanted(in_shardings, "in_shardings"),
        "out_shardings": None if out_shardings is None else Wanted(out_shardings, "out_shardings"),
    }

    def wrap(fn: Callable[..., Any]) -> Jit:
        made = Jit(fn, **options)
        for name in ("donate_argnames", "static_argnames"):
            refuse_unknown(made.fun, options[name], name)
        return made

    return wrap if fn is None else wrap(fn)
