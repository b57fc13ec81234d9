"""`custom_jvp`: a stateful function with a custom forward-mode derivative.

JAX runs the function itself if it is not differentiated, and otherwise the rule instead. Both are
flat functions of the leaves of a call; the rule also gets their tangents.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._calls.call import Call
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.naming import name_of
from .._calls.notes import NEXT, Note
from .._calls.running import Writes
from .._calls.transform import code_of
from .._calls.typed import Bound, C, Module, Out, P, Q, R
from .._ground.integers import Positions, as_argnums
from .._ground.public import public
from .._trees.recording import freeze
from .checkpoint import as_array
from .custom_rules import (
    CustomRule,
    RuleOptions,
    Rules,
    Traced,
    fitting,
    is_inexact,
    materialised,
    value_of,
    values_of_writes,
    without_numbers,
)
from .rule_arguments import Lineup, run_rule


class CustomJvp(CustomRule[P, R, C]):
    """What `custom_jvp` returns."""

    __slots__ = ()

    def defjvp(self, jvp: Callable[..., Any]) -> Callable[..., Any]:
        """Define the rule, once. Usable as a decorator.

        **Arguments:**

        - `jvp`: a stateful function of the arguments that `nondiff_argnums` names, then
            `(primals, tangents)`, that writes what the function writes. It returns
            `(out, tangent)`, or `(out, tangent, written)`.

        **Returns:** `jvp`.
        """
        self._tell(jvp)
        return jvp

    def _name(self) -> str:
        return "custom_jvp"

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        (jvp,) = self._told("defjvp(jvp)")
        body = flat_function_of(call, code_of(self))
        traced, lineup = Traced(name_of(call.fn)), Lineup(self, call, body)

        def flat(*arrays: Any) -> list[Any]:
            return traced.taken_apart(body.run(body.leaves(arrays)), body.place)[0]

        rule = _Forward(code_of(self), lineup, traced, jvp)
        flat.__name__ = flat.__qualname__ = body.described.sources[0].__name__
        run = jax.custom_jvp(flat)
        run.defjvp(rule.jvp, symbolic_zeros=True)
        arrays = run(*call.kinds.operands(leaves))
        assert traced.note is not None
        return traced.note, traced.note.result([as_array(array) for array in arrays])


class _Forward:
    """The rule of one call, on flat arrays."""

    def __init__(self, code: str, lineup: Lineup, traced: Traced, rule: Any):
        self._code = code
        self._lineup = lineup
        self._traced = traced
        self._rule = rule

    def jvp(self, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        lineup, body = self._lineup, self._lineup.body
        primals = [without_numbers(x) for x in primals]
        given = [materialised(x) for x in tangents]
        self._refuse_perturbed(tangents)
        of_leaf = dict(zip(lineup.leaf_of_operand, given, strict=True))
        found: list[Any] = []

        def call_rule(arguments: tuple[Any, ...]) -> Any:
            nondiff = lineup.nondifferentiable(arguments)
            result = self._rule(*nondiff, lineup.differentiable(arguments), lineup.trees(of_leaf))
            if not isinstance(result, tuple) or len(result) not in (2, 3):
                raise TypeError(
                    f"jvp of {self._code} returns (out, tangent), or (out, tangent, written); got "
                    f"{type(result).__name__}. Write return out, tangent."
                )
            found.extend(freeze(each) for each in result[1:])
            return result[0]

        run = run_rule(lineup, body.leaves(primals), call_rule)
        arrays, note = self._traced.taken_apart(run, body.place, self._rule)
        out = self._of_output(note, arrays, found[0])
        return arrays, out + self._of_writes(note, arrays, found[1:])

    def _refuse_perturbed(self, tangents: Sequence[Any]) -> None:
        for i, tangent in zip(self._lineup.leaf_of_operand, tangents, strict=True):
            is_zero = isinstance(tangent, jax.custom_derivatives.SymbolicZero)
            if i in self._lineup.nondiff_leaves and not is_zero and materialised(tangent) is not None:
                self._lineup.refuse_nondiff(self._lineup.place_of_leaf(i))

    def _of_output(self, note: Note, arrays: Sequence[Any], tangent: Any) -> list[Any]:
        """The tangents of the arrays of the output."""
        places = note.out_treedef.unflatten(range(note.out_treedef.num_leaves))
        what = f"The tangents that the jvp of {self._code} returns"
        given = _by_number(tangent, places, what, "the output")
        indices = [i for i, leaf in enumerate(note.out_leaves) if leaf is NEXT]
        both = zip(indices, arrays[: len(indices)], strict=True)
        return [_tangent(given.get(i), array, "out", what) for i, array in both]

    def _of_writes(self, note: Note, arrays: Sequence[Any], written: Sequence[Any]) -> list[Any]:
        """The tangents of the arrays of written states."""
        lineup = self._lineup
        writes = values_of_writes(note, arrays)
        what = f"The tangents of written states that the jvp of {self._code} returns"
        found = lineup.states_of(written[0], what) if written else {}
        result: list[Any] = []
        for index, (write, values) in writes.items():
            place, told = lineup.body.place(index), bool(written)
            if any(map(is_inexact, values)):
                lineup.refuse_written_nondiff(index)
                if not told:
                    raise TypeError(
                        f"{lineup.describe(index)} is written by {self._code}, so later computations "
                        "may depend on it, but jvp returns no tangents of written states: a part of the "
                        "derivative would be lost. Let it return these too, a tree for each argument, "
                        "with None for zero:\n"
                        "    return out, tangent, written"
                    )
            places = value_of(write, range(len(values)))
            given = _by_number(found.get(index), places, what, f"the value of `{place}`")
            result += [_tangent(given.get(i), x, place, what) for i, x in enumerate(values)]
        return result


def _by_number(tangent: Any, places: Any, what: str, like: str) -> dict[int, Any]:
    """The parts of a tangent by the numbers that stand at their places in a tree.

    `what` and `like` are the names of the tangent and of that tree in messages.
    """
    given: dict[int, Any] = {}

    def assign(value: Any, tree: Any) -> None:
        numbers = jtu.tree_leaves(tree)
        if value is not None and len(numbers) != 1:
            raise ValueError(f"one value came for {len(numbers)} arrays")
        given.update(dict.fromkeys(numbers, value))

    try:
        jtu.tree_map(assign, tangent, places, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise ValueError(
            f"{what} have another structure than {like}: {error}. Give a tree like {like}, with None "
            "for leaves without a tangent."
        ) from None
    return given


def _tangent(value: Any, array: Any, place: str, what: str) -> Any:
    like = as_array(array)
    if not is_inexact(like):
        return np.zeros(like.shape, jax.dtypes.float0)
    return jnp.zeros(like.shape, like.dtype) if value is None else fitting(value, like, place, what)


if TYPE_CHECKING:

    @overload
    def custom_jvp(
        fn: Bound[Q, Out, Module], /, **options: Unpack[RuleOptions]
    ) -> CustomJvp[Q, Out, Module]: ...
    @overload
    def custom_jvp(
        fn: Callable[Q, Out], /, **options: Unpack[RuleOptions]
    ) -> CustomJvp[Q, Out, object]: ...
    @overload
    def custom_jvp(
        **options: Unpack[RuleOptions],
    ) -> Callable[[Callable[Q, Out]], CustomJvp[Q, Out, object]]: ...


@public
def custom_jvp(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    nondiff_argnums: Positions = (),
    nondiff_argnames: str | tuple[str, ...] = (),
) -> Any:
    """Give a stateful function a custom forward-mode derivative, which JAX transposes for reverse mode.

    It is `jax.custom_jvp` with states. Usable as a decorator, with or without options, also on
    methods; `f.defjvp(jvp)` defines its rule:

    - `jvp(primals, tangents)` runs instead of `fn` when it is differentiated. `primals` are the
        arguments, with the module of a method first; it writes their states as `fn` does.
        `tangents` are trees like them, with frozen states, and `None` where there is no derivative.
        It returns `(out, tangent)`, where `None` stands for zero.
    - If states that hold floating-point arrays are written, it returns `(out, tangent, written)`,
        where `written` has the tangents of the written states, a tree for each argument. A state,
        or an array instead of it, stands for its value, and `None` stands for zero, for a leaf or
        for a whole tree.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `nondiff_argnums`, `nondiff_argnames`: arguments that are not differentiated, as the caller counts
        them, or by name. `jvp` gets them first, not among `primals`. Non-array arguments need not
        be named.

    **Returns:** a stateful function, called like `fn`, with the method `defjvp`.

    **Raises:** when called: `AttributeError` without a rule. When differentiated: `TypeError` if
    `jvp` returns no tangent for a written state that has a derivative, if a `nondiff` argument is
    differentiated, if the rule writes other states than `fn`, and for tangents of another shape or
    dtype; `ValueError` for trees of another structure.

    !!! example

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> @ps.custom_jvp
        ... def log1pexp(calls, x):
        ...     calls.value += 1
        ...     return jnp.log1p(jnp.exp(x))
        >>> @log1pexp.defjvp
        ... def jvp(primals, tangents):
        ...     calls, x = primals
        ...     return log1pexp(calls, x), jax.nn.sigmoid(x) * tangents[1]
        >>> gradient, calls = ps.pure(ps.grad(log1pexp, argnums=1))(ps.State(0), 100.0)
        >>> gradient.item(), calls.value.item()
        (1.0, 1)
    """
    numbers = as_argnums(nondiff_argnums)
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers or ())
    names = (nondiff_argnames,) if isinstance(nondiff_argnames, str) else tuple(nondiff_argnames)
    make = lambda fn: CustomJvp(fn, nondiff_argnums=numbers, nondiff_argnames=names, rules=Rules())
    return make if fn is None else make(fn)
