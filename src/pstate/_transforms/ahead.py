"""Programs compiled ahead of their calls: `ps.jit(f).lower(model, x).compile()`.

A *lowered* program has been traced for one signature, and an *executable* compiled for it. An
executable is a stateful function like any other, and takes the arguments of the function. It
refuses arguments with any other signature, since nothing is traced again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .._calls.call import Call
from .._calls.callables import anchor_of
from .._calls.contract import Contract
from .._calls.giving_back import line_giving_back
from .._calls.lifting import Lifted
from .._calls.notes import Note
from .._calls.pure import Pure
from .._calls.running import Writes
from .._calls.signature import ARGS, FN, KWARGS, Signature
from .._calls.transform import code_of
from .._ground.errors import StateError
from .._ground.values import short_type
from .._programs.compiled import aval
from .._programs.donation import Argument, kept_arguments, with_buffers_of_their_own


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """The buffers that a lowered program gives up: operands, idle ones among them, and its note.

    `by_argument` are the arguments that give up all their buffers, and `kept` those that were known
    to be used afterwards, so that they do not.
    """

    donated: tuple[int, ...]
    idle: tuple[int, ...]
    note: Note
    by_argument: frozenset[Argument]
    kept: frozenset[Argument]


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """The signature of a call for which a program was lowered. It keeps no array."""

    signature: Signature
    statics: tuple[Any, ...]
    aliases: tuple[tuple[int, int], ...]
    avals: tuple[Any, ...]

    @staticmethod
    def of(call: Call, statics: tuple[Any, ...]) -> "Form":
        """The form of a call, with the keys of its static leaves."""
        avals = tuple(map(aval, call.kinds.operands(call.leaves)))
        return Form(call.signature, statics, call.aliases, avals)

    def refuse_other(self, call: Call, statics: tuple[Any, ...], code: str) -> None:
        """Raise if a call has another form, apart from shapes and dtypes.

        **Raises:** `TypeError`.
        """
        if call.signature != self.signature:
            raise TypeError(f"{code} was compiled for other arguments: {self._other(call)}. {_AGAIN}")
        for (i, one), (_, other) in zip(self.statics, statics, strict=True):
            if one != other:
                raise TypeError(
                    f"{code} was compiled for other arguments: `{_place(call, i)}` is "
                    f"{call.leaves[i]!r}, which is not an array and therefore part of the program, and "
                    f"was different then. {_AGAIN}"
                )
        if call.aliases != self.aliases:
            raise TypeError(
                f"{code} was compiled for other arguments: other places now share one state. {_AGAIN}"
            )

    def refuse_other_types(self, call: Call, operands: Sequence[Any], code: str) -> None:
        """Raise if an operand has another shape or dtype.

        **Raises:** `TypeError`.
        """
        indices = [i for i, is_one in enumerate(call.kinds.mask) if is_one]
        for i, given, expected in zip(indices, operands, self.avals, strict=True):
            got = aval(given)
            if (got.shape, got.dtype) != (expected.shape, expected.dtype):
                raise TypeError(
                    f"{code} was compiled for `{_place(call, i)}` of type {short_type(expected)}; got "
                    f"{short_type(got)}. {_AGAIN}"
                )

    def _other(self, call: Call) -> str:
        """The argument that has another structure."""
        mine, other = self.signature, call.signature
        if mine.n_args != other.n_args:
            return f"{mine.n_args} by position, but {other.n_args} were passed"
        if mine.keywords != other.keywords:
            return f"{list(mine.keywords)} by keyword, but {list(other.keywords)} were passed"
        for group in (ARGS, KWARGS, FN):
            olds, news = (x.treedef.children()[group] for x in (mine, other))
            if group == FN:
                break
            for which, (old, new) in enumerate(zip(olds.children(), news.children(), strict=True)):
                if old != new:
                    names = call.names
                    by_position = names[which] if which < len(names) else f"args[{which}]"
                    name = mine.keywords[which] if group == KWARGS else by_position
                    return f"`{name}` is now {new}, and was {old}"
        return "their structure, or that of the function, differs in its non-array parts"


#: The advice for a call of another form.
_AGAIN = "Lower and compile for these too, .lower(...).compile(), or call the ps.jit function itself."


def _place(call: Call, leaf: int) -> str:
    return call.place_of(call.signature.layout.key_path_of_leaf[leaf])


class Executable(Lifted):
    """What `lower(...).compile()` returns: a stateful function, compiled for one signature.

    It also has the methods of a `jax.stages.Compiled`: `as_text`, `cost_analysis`,
    `memory_analysis`, ...
    """

    __slots__ = ("compiled", "form", "given")

    fun: Any  # a `Jit`
    compiled: Any
    form: Form
    given: Given | None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.compiled, name)

    def within(self, boundary: Pure) -> "PureExecutable":
        """This executable behind a boundary."""
        return PureExecutable(self, argnums=boundary.argnums, writes=boundary.writes)

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self.fun._take_apart(args, kwargs)

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        code, given = code_of(self.fun), self.given
        self.form.refuse_other(call, self.fun._static_keys(call, anchor_of(call.fn)), code)
        operands = arrays = call.kinds.operands(leaves)
        if given is not None:
            self._refuse_kept(call, contract, given)
            self.fun._check(call, given.note, contract)
            arrays = with_buffers_of_their_own(operands, given.donated)
        try:
            results, note = self.compiled(*arrays)
        except (TypeError, ValueError):
            self.form.refuse_other_types(call, operands, code)
            raise
        for position in () if given is None else given.idle:
            arrays[position].delete()
        return note, note.result(results, operands)

    def _refuse_kept(self, call: Call, contract: Contract | None, given: Given) -> None:
        """Raise if an argument that gives up all its buffers is used afterwards."""
        kept = kept_arguments(call, contract) & given.by_argument
        if kept - given.kept:
            code = code_of(self.fun)
            raise StateError(
                f"{code} was lowered by itself, and so gives up every buffer of the arguments that it "
                "donates. But `pure` or a recording still needs one of them, of which only overwritten "
                f"buffers may be given up. Lower it as it is called: ps.pure({code}).lower(...)."
                "compile(), or in the recording."
            )

    def _code(self) -> str:
        return f"{self.fun._code()}.lower(...).compile()"

    def _line(self, call: Call, index: int) -> str:
        start, _, arguments = line_giving_back(call, code_of(self.fun), index).rpartition("(")
        return f"{start}.lower({arguments}.compile()({arguments}"


class PureExecutable(Pure):
    """An executable behind a boundary: a pure function, compiled for one signature."""

    __slots__ = ()

    @property
    def _remade(self) -> Any:
        # `jit` itself, which compiles again: an executable cannot be made for another module.
        executable: Any = self.fun
        return executable.fun

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.fun, name)


class Lowered:
    """A program that has been traced and lowered for one signature.

    It has the methods of a `jax.stages.Lowered`: `as_text`, `cost_analysis`, `compiler_ir`,
    `out_info`, ...
    """

    def __init__(self, lowered: Any, executable: Callable[[Any], Any]):
        self._lowered = lowered
        self._executable = executable

    def compile(self, compiler_options: Any = None) -> Any:
        """Compile it.

        - `compiler_options`: as in `jax.stages.Lowered.compile`.

        **Returns:** a function with the arguments and the results of the function that was lowered,
        for arguments with this signature only. It has the methods of a `jax.stages.Compiled`.
        """
        return self._executable(self._lowered.compile(compiler_options=compiler_options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lowered, name)

    def __repr__(self) -> str:
        return f"Lowered({self._lowered!r})"
