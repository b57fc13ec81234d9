"""`cond` and `switch`: one of several functions.

The states that the branches are bound to, and those of the operands, are held: each branch gives
back all of them, so branches may write different ones.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.callables import Several, as_tree
from .._calls.flat_function import flat_function_of
from .._calls.notes import NEXT, arrays_of
from .._calls.running import Run, run_body
from .._calls.signature import ARGS
from .._calls.typed import Out
from .._ground.errors import StateTypeError
from .._ground.exact import exact_key
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._trees.leaves import operand_mask
from .._trees.slots import LEAF
from .carried_states import carried_states, refuse_varying, same_type, shown_type, varying
from .control_flow import ControlFlow, FlowFunction, codes_of
from .statements import shown_arguments


@dataclasses.dataclass
class _Found:
    """The results of running a branch: structures and types. No values: they are tracers."""

    fn: str
    out_treedef: Any
    out_leaves: list[Any]
    out_types: list[Any]
    state_types: list[Any]
    varying: list[frozenset[Any]]
    reads: frozenset[int]
    writes: frozenset[int]
    echoed: tuple[tuple[int, str], ...]


@dataclasses.dataclass(eq=False)
class _Choice(FlowFunction):
    """A choice among branches, for calls of one structure.

    `codes` are the callables as code; `order` has the index of each branch among them.
    """

    choose: Callable[..., Any]
    codes: Sequence[str]
    order: tuple[int, ...]

    def flow(self, leaves: list[Any]) -> Run:
        return _Choosing(self, leaves).run()


class _Choosing:
    """A choice among branches, for the leaves of one call."""

    def __init__(self, body: _Choice, leaves: list[Any]):
        self.body = body
        self.leaves = leaves
        self.held = carried_states(body, lambda slot: True)
        mask = operand_mask(leaves)
        in_state = body.signature.layout.slot_of_leaf
        operands = range(body.signature.n_fn + 1, len(leaves))
        self.passed = [i for i in operands if mask[i] and in_state[i] is None]
        self.found: list[_Found] = []

    def run(self) -> Run:
        body, leaves = self.body, self.leaves
        indices = [*self.held.leaf_indices(), *self.passed]
        each = [
            body.presented(ft.partial(self._branch, k), indices, which=k) for k in range(len(body.codes))
        ]
        branches = [each[k] for k in body.order]  # JAX traces one function once
        operands = (self.held.values(leaves), [leaves[i] for i in self.passed])
        index = leaves[body.signature.n_fn]
        arrays, values = (
            jax.lax.cond(index, *branches, operands)
            if body.choose is jax.lax.cond
            else jax.lax.switch(index, branches, operands)
        )
        supply = iter(arrays)
        one = self.found[0]
        out = one.out_treedef.unflatten([next(supply) if x is NEXT else x for x in one.out_leaves])
        written = frozenset[int]().union(*(found.writes for found in self.found))
        reads = frozenset[int]().union(*(found.reads for found in self.found))
        echoed = tuple(pair for found in self.found for pair in found.echoed)
        writes = {
            slot.index: jtu.tree_structure(shown).unflatten(value)
            for slot, value, shown in zip(self.held.slots, values, one.state_types, strict=True)
            if slot.index in written
        }
        return Run(out, writes, reads, echoed, None)

    def _branch(self, which: int, operands: Any) -> Any:
        values, passed = operands
        body = self.body
        own = list(self.leaves)
        for i, value in zip(self.passed, passed, strict=True):
            own[i] = value
        self.held.put(own, body.signature.layout.slots, values)
        recording = body.recording(own, body.aliases_within(which))
        call = lambda fn, args, kwargs: fn.callables[which](*args[1:], **kwargs)
        run = run_body(body.signature, own, recording, body.place_of, call)
        leaves, treedef = jtu.tree_flatten(run.out)
        is_array = arrays_of(run.out, leaves)
        newest = self.held.newest(run, own)
        representative = self.held.representative
        found = _Found(
            body.codes[which],
            treedef,
            [NEXT if is_one else leaf for leaf, is_one in zip(leaves, is_array, strict=True)],
            [_type(leaf) if is_one else leaf for leaf, is_one in zip(leaves, is_array, strict=True)],
            [jtu.tree_map(_type, value) for value in newest],
            [varying(value) for value in newest],
            frozenset(representative[i] for i in run.reads),
            frozenset(representative[i] for i in run.writes),
            run.echoed,
        )
        for other in self.found:
            self._refuse_difference(other, found)
        self.found.append(found)
        arrays = [leaf for leaf, is_one in zip(leaves, is_array, strict=True) if is_one]
        return arrays, [jtu.tree_leaves(value) for value in newest]

    def _refuse_difference(self, one: _Found, other: _Found) -> None:
        for slot, first, second in zip(self.held.slots, one.state_types, other.state_types, strict=True):
            if not (same_type(first, second) or same_type(second, first)):
                raise StateTypeError(
                    f"`{self.body.place(slot.index)}` ({slot.kind.__name__}) leaves {one.fn} as "
                    f"{shown_type(first)} and {other.fn} as {shown_type(second)}. The branches of "
                    f"{self.body.described.fn} give back the same types: write a value of the "
                    "same shape and dtype in both, state.value = jnp.asarray(new, state.value.dtype), "
                    "or fill or reshape the state before."
                )
        for slot, a, b in zip(self.held.slots, one.varying, other.varying, strict=True):
            for first, second in ((a, b), (b, a)):
                what = "when it leaves one branch, but does when it leaves another"
                refuse_varying(self.body, slot, first, second, what)
        self._refuse_other_output(one, other)

    def _refuse_other_output(self, one: _Found, other: _Found) -> None:
        start = f"The branches of {self.body.described.fn} return the same tree with the same types: "
        first, second = (found.out_treedef.unflatten(found.out_types) for found in (one, other))
        if one.out_treedef != other.out_treedef:
            raise TypeError(
                f"{start}{one.fn} returns {shown_type(first)} and {other.fn} {shown_type(second)}."
            )
        for a, b in zip(one.out_types, other.out_types, strict=True):
            if not _same_output(a, b):
                raise TypeError(
                    f"{start}{one.fn} returns {shown_type(first)} and {other.fn} {shown_type(second)}. "
                    "Convert: jnp.asarray(out, dtype)."
                )


def _type(leaf: Any) -> jax.ShapeDtypeStruct:
    aval = jax.eval_shape(lambda: leaf) if not hasattr(leaf, "dtype") else leaf
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _same_output(a: Any, b: Any) -> bool:
    if isinstance(a, jax.ShapeDtypeStruct) and isinstance(b, jax.ShapeDtypeStruct):
        return same_type(a, b) or same_type(b, a)
    return exact_key(a) == exact_key(b)


class _Chooser(ControlFlow):
    """A choice, called as a statement. `choose` is JAX's; `order` says which callable each branch is."""

    __slots__ = ("choose", "order")

    _repeats = False

    choose: Callable[..., Any]
    order: tuple[int, ...]

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super()._take_apart(args, kwargs)
        n = call.signature.n_fn
        if call.treedef.children()[ARGS].children()[0] != LEAF or not call.kinds.mask[n]:
            (name, *_) = call.names
            raise TypeError(
                f"`{name}` of {self._code()} is an array of shape () or a number; got {args[0]!r}. "
                "To choose for each lane by itself use ps.vmap2."
            )
        return call

    def _options_key(self) -> Hashable:
        return _Chooser, self.choose, self.order

    def _program(self, call: Call) -> _Choice:
        more = self.choose, codes_of(self.fun), self.order
        return flat_function_of(call, self._code(), _Choice, *more)

    def _codes(self) -> str:
        codes = codes_of(self.fun)
        return ", ".join(codes[k] for k in self.order)

    def _code(self) -> str:
        codes = self._codes()
        return f"ps.cond({codes})" if self.choose is jax.lax.cond else f"ps.switch([{codes}])"

    def _shown(self, call: Call, index: int) -> str:
        codes = self._codes()
        chosen = f"pred, {codes}" if self.choose is jax.lax.cond else f"index, [{codes}]"
        name = "cond" if self.choose is jax.lax.cond else "switch"
        keywords = [f"{name}={name}" for name in call.kwargs]
        return f"ps.{name}({', '.join([chosen, *shown_arguments(call)[1:], *keywords])})"


def _chooser(choose: Callable[..., Any], branches: Sequence[Callable[..., Any]], lead: str) -> _Chooser:
    """A choice among branches; one that is listed twice is one callable."""
    distinct = list({id(branch): branch for branch in branches}.values())
    order = tuple(next(k for k, one in enumerate(distinct) if one is b) for b in branches)
    return _Chooser(Several(tuple(map(as_tree, distinct)), (lead,)), choose=choose, order=order)


@public
@short_tracebacks
def cond(
    pred: Any,
    true_fun: Callable[..., Out],
    false_fun: Callable[..., Out],
    *operands: Any,
    **keywords: Any,
) -> Out:
    """Call one of two functions.

    It is `jax.lax.cond` with states: those of the modules that the functions are bound to, of
    partials, and of the operands. The branches may write different states. Called eagerly, it is
    compiled once for each signature.

    **Arguments:**

    - `pred`: a `bool` of shape `()`.
    - `true_fun`, `false_fun`: functions, bound methods, callable modules or partials:
        `f(*operands, **keywords)`. Both return the same tree, with the same shapes and dtypes.
    - `operands`, `keywords`: any pytrees. Numbers become arrays; other non-array leaves are static.

    **Returns:** what the chosen function returns.

    **Raises:** `StateTypeError` for a state that leaves the branches with different shapes or dtypes;
    `TypeError` for outputs that differ; `FrozenStateError` for a write that would be lost.

    !!! example

        >>> import pstate as ps
        >>> def up(counter, by):
        ...     counter.value += by
        >>> def stay(counter, by):
        ...     pass
        >>> def step(counter, on):
        ...     ps.cond(on, up, stay, counter, 2)
        >>> _, counter = ps.pure(step)(ps.State(5), True)
        >>> counter.value.item()
        7
    """
    return _chooser(jax.lax.cond, (true_fun, false_fun), "pred")(pred, *operands, **keywords)


if TYPE_CHECKING:

    @overload
    def switch(
        index: Any, branches: Sequence[Callable[..., Out]], *operands: Any, **keywords: Any
    ) -> Out: ...
    @overload  # for mypy, to which a list of a module and a function is one of objects
    def switch(
        index: Any, branches: Sequence[Callable[..., Any]], *operands: Any, **keywords: Any
    ) -> Any: ...


@public
@short_tracebacks
def switch(index: Any, branches: Sequence[Callable[..., Out]], *operands: Any, **keywords: Any) -> Out:
    """Call one of several functions.

    It is `jax.lax.switch` with states; see `cond`.

    **Arguments:**

    - `index`: an integer of shape `()`, clamped to the number of branches.
    - `branches`: functions, bound methods, callable modules or partials:
        `f(*operands, **keywords)`. One that is listed twice is traced once.
    - `operands`, `keywords`: any pytrees.

    **Returns:** what the chosen function returns.

    **Raises:** as `cond`; `ValueError` without branches.

    !!! example

        >>> import functools as ft
        >>> import pstate as ps
        >>> def add(counter, by):
        ...     counter.value += by
        >>> def step(counter, index):
        ...     ps.switch(index, [ft.partial(add, by=by) for by in (1, 10, 100)], counter)
        >>> _, counter = ps.pure(step)(ps.State(0), 1)
        >>> counter.value.item()
        10
    """
    if not branches:
        raise ValueError("ps.switch has no branch to choose. Write ps.switch(index, [f, g], *operands).")
    return _chooser(jax.lax.switch, branches, "index")(index, *operands, **keywords)
