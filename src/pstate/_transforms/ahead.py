"""Programs compiled ahead of their calls: `ps.jit(f).lower(model, x).compile()`.

A *lowered* program has been traced for one signature, and an *executable* compiled for it. An executable
is a stateful function like any other, and takes the arguments of the function. It refuses those of any
other signature, since nothing is traced again.
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
    """What a program that was lowered gives up: operands, those of them that are idle, and its note.

    `by_argument` are the arguments that give up all their buffers, and `kept` those of which somebody
    was known to go on with, so that they do not.
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
        """Raise where a call has another form, but for shapes and dtypes.

        **Raises:** `TypeError`.
        """
        if call.signature != self.signature:
            raise TypeError(f"{code} was compiled for other arguments: {self._other(call)}. {_AGAIN}")
        for (i, one), (_, other) in zip(self.statics, statics, strict=True):
            if one != other:
                raise TypeError(
                    f"{code} was compiled for other arguments: `{_place(call, i)}` is "
                    f"{call.leaves[i]!r}, which is no array and therefore part of the program, and was "
                    f"another then. {_AGAIN}"
                )
        if call.aliases != self.aliases:
            raise TypeError(
                f"{code} was compiled for other arguments: which places are one state has changed. "
                f"{_AGAIN}"
            )

    def refuse_other_types(self, call: Call, operands: Sequence[Any], code: str) -> None:
        """Raise where an operand has another shape or dtype.

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
        """Which argument has another structure."""
        mine, other = self.signature, call.signature
        if mine.n_args != other.n_args:
            return f"{mine.n_args} by position, and {other.n_args} were passed"
        if mine.keywords != other.keywords:
            return f"{list(mine.keywords)} by keyword, and {list(other.keywords)} were passed"
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
        return "their structure, or that of the function, differs in what is no array"


#: What to do about another form.
_AGAIN = "Lower and compile for these too, .lower(...).compile(), or call the function of ps.jit itself."


def _place(call: Call, leaf: int) -> str:
    return call.place_of(call.signature.layout.key_path_of_leaf[leaf])


class Executable(Lifted):
    """What `lower(...).compile()` returns: a stateful function, compiled for one signature.

    It has besides what a `jax.stages.Compiled` has: `as_text`, `cost_analysis`, `memory_analysis`, ...
    """

    __slots__ = ("compiled", "form", "given")

    fun: Any  # what `jit` returns
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
        """Raise where somebody goes on with an argument that gives up all its buffers."""
        kept = kept_arguments(call, contract) & given.by_argument
        if kept - given.kept:
            code = code_of(self.fun)
            raise StateError(
                f"{code} was lowered by itself, and so gives up every buffer of the arguments that it "
                "donates. Now `pure` or a recording goes on with one of them, of which only what is "
                f"overwritten may be given up. Lower it as it is called: ps.pure({code}).lower(...)."
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
        # `jit` itself, which compiles once more: an executable cannot be made of another module.
        executable: Any = self.fun
        return executable.fun

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.fun, name)


class Lowered:
    """A program that has been traced and lowered for one signature.

    It has what a `jax.stages.Lowered` has: `as_text`, `cost_analysis`, `compiler_ir`, `out_info`, ...
    """

    def __init__(self, lowered: Any, executable: Callable[[Any], Any]):
        self._lowered = lowered
        self._executable = executable

    def compile(self, compiler_options: Any = None) -> Any:
        """Compile it.

        - `compiler_options`: as in `jax.stages.Lowered.compile`.

        **Returns:** what is called with the arguments of the function that was lowered, and gives what
        that gives; for arguments of this signature alone. It has what a `jax.stages.Compiled` has.
        """
        return self._executable(self._lowered.compile(compiler_options=compiler_options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lowered, name)

    def __repr__(self) -> str:
        return f"Lowered({self._lowered!r})"
