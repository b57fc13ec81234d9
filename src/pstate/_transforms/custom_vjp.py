"""`custom_vjp`: a stateful function with a custom reverse-mode derivative.

JAX runs the function itself if it is not differentiated, and otherwise `fwd` instead. Both are flat
functions of the leaves of a call, which return the arrays of the output and then those of written
states. `bwd` runs later, when the call is over: it gets and returns frozen trees.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

import jax
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.naming import name_of
from .._calls.notes import NEXT, Note, arrays_of, refuse_tracers
from .._calls.running import Writes
from .._calls.transform import code_of
from .._calls.typed import Bound, C, Module, Out, P, Q, R
from .._ground.integers import Positions, as_argnums
from .._ground.public import public
from .._ground.versions import SHARED_OUTPUTS
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
from .derivatives import Rest
from .rule_arguments import Lineup, run_rule


class CustomVjp(CustomRule[P, R, C]):
    """What `custom_vjp` returns."""

    __slots__ = ()

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Define the rules, once.

        **Arguments:**

        - `fwd`: a stateful function with the arguments of the function, that writes what the function
            writes, and returns `(out, residuals)`. Residuals are any tree, of states too.
        - `bwd`: a function of the arguments that `nondiff_argnums` names, then
            `(residuals, cotangent)`, or `(residuals, cotangent, written)`. It returns a tuple with
            a tree for each other argument.
        """
        self._tell(fwd, bwd)

    def _name(self) -> str:
        return "custom_vjp"

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        fwd, bwd = self._told("defvjp(fwd, bwd)")
        body = flat_function_of(call, code_of(self))
        traced, lineup = Traced(name_of(call.fn)), Lineup(self, call, body)

        def flat(*arrays: Any) -> list[Any]:
            return traced.taken_apart(body.run(body.leaves(arrays)), body.place)[0]

        rule = _Reverse(self, lineup, traced, fwd, bwd)
        flat.__name__ = flat.__qualname__ = body.described.sources[0].__name__
        run = jax.custom_vjp(flat)
        run.defvjp(rule.fwd, rule.bwd, symbolic_zeros=True, **SHARED_OUTPUTS)
        arrays = run(*call.kinds.operands(leaves))
        assert traced.note is not None
        return traced.note, traced.note.result([as_array(array) for array in arrays])


class _Reverse:
    """The rules of one call, on flat arrays."""

    def __init__(self, vjp: CustomVjp, lineup: Lineup, traced: Traced, fwd: Any, bwd: Any):
        self._code = code_of(vjp)
        self._lineup = lineup
        self._traced = traced
        self._rules = fwd, bwd
        self._takes_written = _takes(bwd, len(lineup.nondiff) + 3)

    def fwd(self, *primals: Any) -> tuple[list[Any], Any]:
        lineup, body = self._lineup, self._lineup.body
        self._refuse_perturbed(primals)
        operands = [without_numbers(primal.value) for primal in primals]
        residuals: list[Any] = []

        def call_rule(arguments: tuple[Any, ...]) -> Any:
            out, residual = _pair(self._code, self._rules[0](*arguments))
            residuals.append(freeze(residual))
            return out

        run = run_rule(lineup, body.leaves(operands), call_rule)
        arrays, note = self._traced.taken_apart(run, body.place, self._rules[0])
        self._refuse_untold(note, arrays)
        leaves, treedef = jtu.tree_flatten(residuals[0])
        mask = arrays_of(residuals[0], leaves)
        refuse_tracers(residuals[0], leaves, mask)
        kept = [leaf if is_one else None for leaf, is_one in zip(leaves, mask, strict=True)]
        rest = [None if is_one else leaf for leaf, is_one in zip(leaves, mask, strict=True)]
        likes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in map(as_array, operands))
        nondiff = [
            x for i, x in zip(lineup.leaf_of_operand, operands, strict=True) if self._is_nondiff(i)
        ]
        return arrays, (kept, Rest(treedef, tuple(rest)), nondiff, Rest(None, (likes, note)))

    def bwd(self, residuals: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        kept, rest, nondiff, (likes, note) = *residuals[:3], residuals[3].leaves
        lineup = self._lineup
        cotangents = [materialised(x) for x in cotangents]
        residual = rest.put(rest.treedef.unflatten(kept))
        writes = values_of_writes(note, cotangents)
        supply = iter(cotangents)
        is_array = [leaf is NEXT for leaf in note.out_leaves]
        out = note.out_treedef.unflatten([next(supply) if is_one else None for is_one in is_array])
        more = ()
        if self._takes_written:
            of_slot = {i: value_of(write, arrays) for i, (write, arrays) in writes.items()}
            more = (lineup.trees_of_states(of_slot),)
        found = self._rules[1](*self._nondiff(nondiff), residual, out, *more)
        what = f"The cotangents that the bwd of {self._code} returns"
        of_leaf = lineup.leaves_of(found, what)
        result: list[Any] = []
        for i, like in zip(lineup.leaf_of_operand, likes, strict=True):
            value = of_leaf.get(i) if is_inexact(like) else None
            place = lineup.place_of_leaf(i)
            result.append(None if value is None else fitting(value, like, place, what))
        return tuple(result)

    def _is_nondiff(self, leaf: int) -> bool:
        return leaf in self._lineup.nondiff_leaves

    def _nondiff(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments that are not differentiated, built from their arrays."""
        lineup, supply = self._lineup, iter(arrays)
        operands = [next(supply) if self._is_nondiff(i) else None for i in lineup.leaf_of_operand]
        return lineup.nondifferentiable(lineup.arguments(lineup.body.leaves(operands)))

    def _refuse_perturbed(self, primals: Sequence[Any]) -> None:
        for i, primal in zip(self._lineup.leaf_of_operand, primals, strict=True):
            if self._is_nondiff(i) and primal.perturbed and is_inexact(primal.value):
                self._lineup.refuse_nondiff(self._lineup.place_of_leaf(i))

    def _refuse_untold(self, note: Note, arrays: Sequence[Any]) -> None:
        """Raise if `bwd` does not take the cotangent of a written state that has a derivative."""
        lineup = self._lineup
        for index, (_, values) in values_of_writes(note, arrays).items():
            if not any(map(is_inexact, values)):
                continue
            lineup.refuse_written_nondiff(index)
            if not self._takes_written:
                raise TypeError(
                    f"{lineup.describe(index)} is written by {self._code}, so later computations may "
                    "depend on it, but bwd does not take the cotangents of written states: a part of "
                    "the gradient would be lost. Let bwd take them, a tree for each argument, with None "
                    "where nothing was written:\n"
                    "    def bwd(residuals, cotangent, written): ..."
                )


def _pair(code: str, result: Any) -> tuple[Any, Any]:
    if isinstance(result, tuple) and len(result) == 2:
        return result
    raise TypeError(
        f"fwd of {code} returns a pair, (out, residuals); got {type(result).__name__}. Write "
        "return out, residuals."
    )


def _takes(function: Any, n: int) -> bool:
    """Whether a function takes `n` arguments by position, none of them because it has a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # for example a builtin, which does not say
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return any(p.kind is p.VAR_POSITIONAL for p in parameters) or (
        len([p for p in positional if p.default is p.empty]) >= n
    )


if TYPE_CHECKING:

    @overload
    def custom_vjp(
        fn: Bound[Q, Out, Module], /, **options: Unpack[RuleOptions]
    ) -> CustomVjp[Q, Out, Module]: ...
    @overload
    def custom_vjp(
        fn: Callable[Q, Out], /, **options: Unpack[RuleOptions]
    ) -> CustomVjp[Q, Out, object]: ...
    @overload
    def custom_vjp(
        **options: Unpack[RuleOptions],
    ) -> Callable[[Callable[Q, Out]], CustomVjp[Q, Out, object]]: ...


@public
def custom_vjp(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    nondiff_argnums: Positions = (),
    nondiff_argnames: str | tuple[str, ...] = (),
) -> Any:
    """Give a stateful function a custom reverse-mode derivative.

    It is `jax.custom_vjp` with states. Usable as a decorator, with or without options, also on
    methods; `f.defvjp(fwd, bwd)` defines its rules:

    - `fwd(*args)` runs instead of `fn` when it is differentiated. It has the same arguments, with
        the module of a method first, writes the same states, and returns `(out, residuals)`.
        Residuals are any tree; states in it are frozen with their current values.
    - `bwd(residuals, cotangent)` gets the cotangent of the output, a tree with `None` for leaves
        that are not floating-point arrays. It returns a tuple with a tree for each argument, the
        module of a method first. A state, or an array instead of it, stands for its value, and
        `None` stands for zero, for a leaf or for a whole tree.
    - `bwd(residuals, cotangent, written)`, if states that hold floating-point arrays are written:
        `written` has the cotangents of the written states, in the same form.

    Before JAX 0.12 the gradient of a mapping, `grad(vmap2(fn))`, behaves as under `jax.custom_vjp`:
    if all lanes write the same value to a state that they share, the cotangent of that state is
    counted once per lane. Differentiate in the lanes, `vmap2(grad(fn))`, or give the state lanes.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `nondiff_argnums`, `nondiff_argnames`: arguments that are not differentiated, as the caller counts
        them, or by name. `bwd` gets them first, as they came in, and returns nothing for them.
        Non-array arguments need not be named.

    **Returns:** a stateful function, called like `fn`, with the method `defvjp`.

    **Raises:** when called: `AttributeError` without rules. When differentiated: `TypeError` if
    `bwd` does not take the cotangent of a written state that has a derivative, if a `nondiff`
    argument is differentiated, if a rule writes other states than `fn`, and for cotangents of
    another shape or dtype; `ValueError` for trees of another structure. In forward mode, JAX's
    `TypeError`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> @ps.custom_vjp
        ... def spike(count, v):  # a step, with the slope of a triangle for its derivative
        ...     spikes = jnp.where(v > 0, 1.0, 0.0)
        ...     count.value += jnp.sum(spikes).astype(int)
        ...     return spikes
        >>> def fwd(count, v):
        ...     return spike(count, v), v
        >>> def bwd(v, cotangent):
        ...     return None, cotangent * jnp.maximum(0.0, 1.0 - jnp.abs(v))
        >>> spike.defvjp(fwd, bwd)
        >>> loss = lambda count, v: jnp.sum(spike(count, v))
        >>> v = jnp.array([-0.5, 0.75, 3.0])
        >>> gradient, count = ps.pure(ps.grad(loss, argnums=1))(ps.State(0), v)
        >>> gradient, count.value.item()
        (Array([0.5 , 0.25, 0.  ], dtype=float32), 2)
    """
    numbers = as_argnums(nondiff_argnums)
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers or ())
    names = (nondiff_argnames,) if isinstance(nondiff_argnames, str) else tuple(nondiff_argnames)
    make = lambda fn: CustomVjp(fn, nondiff_argnums=numbers, nondiff_argnames=names, rules=Rules())
    return make if fn is None else make(fn)
