"""`while_loop`: a loop as long as a condition holds.

The states of what both functions are bound to are held from step to step. The condition reads them; the
body may write them.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.callables import Several, as_tree
from .._calls.flat_function import flat_function_of
from .._calls.running import Run, run_body
from .._calls.signature import ARGS, FN
from .._ground.errors import FrozenStateError
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._states.cell import Cell
from .._trees.flattening import unflatten_frozen
from .._trees.leaves import operand_mask
from .carried_states import carried_states, refuse_changed_states
from .carry import data_of, new_leaves, refuse_live
from .control_flow import ControlFlow, FlowFunction, codes_of


_CONDITION, _BODY = range(2)


@dataclasses.dataclass(eq=False)
class _While(FlowFunction):
    """A loop with a condition, for calls of one structure."""

    def flow(self, leaves: list[Any]) -> Run:
        return _Running(self, leaves).run()


class _Running:
    """A loop over the leaves of one call."""

    def __init__(self, body: _While, leaves: list[Any]):
        self.body = body
        self.leaves = leaves
        signature = body.signature
        self.slots = signature.layout.slots
        self.held = carried_states(body, lambda slot: signature.argument_of_slot[slot.index][0] == FN)
        mask = operand_mask(leaves)
        self.carried = [i for i in range(signature.n_fn, len(leaves)) if mask[i]]
        self.writes: frozenset[int] = frozenset()
        self.reads: frozenset[int] = frozenset()
        self.echoed: tuple[tuple[int, str], ...] = ()

    def run(self) -> Run:
        leaves, held = self.leaves, self.held
        init = (held.values(leaves), [leaves[i] for i in self.carried])
        operands = (*held.leaf_indices(), *self.carried)
        condition = self.body.presented(self._condition, operands, which=_CONDITION)
        step = self.body.presented(self._step, operands, which=_BODY)
        values, carry = jax.lax.while_loop(condition, step, init)
        writes = {
            slot.index: slot.treedef.unflatten(value)
            for slot, value in zip(held.slots, values, strict=True)
            if slot.index in self.writes
        }
        tree = unflatten_frozen(self.body.signature.treedef, self._with(leaves, carry))
        return Run(tree[ARGS][0], writes, self.reads, self.echoed, None)

    def _condition(self, loop: Any) -> Any:
        return self._one(_CONDITION, loop, ft.partial(_refuse_any, self.body)).out

    def _step(self, loop: Any) -> Any:
        run = self._one(_BODY, loop)
        refuse_changed_states(self.body, self.held, run, self.leaves)
        self.writes |= {self.held.representative[i] for i in run.writes}
        self.echoed = run.echoed
        newest = [jtu.tree_leaves(value) for value in self.held.newest(run, self._own(loop))]
        return newest, new_leaves(self.body, self.leaves, self.carried, run.out)

    def _own(self, loop: Any) -> list[Any]:
        values, carry = loop
        own = self._with(self.leaves, carry)
        self.held.put(own, self.slots, values)
        return own

    def _one(self, which: int, loop: Any, refuse: Callable[[Cell], None] | None = None) -> Run:
        body, own = self.body, self._own(loop)
        recording = body.recording(own, body.aliases_within(which), refuse, data_of(body))
        call = lambda fn, args, kwargs: fn.callables[which](*args)
        run = run_body(body.signature, own, recording, body.place_of, call)
        self.reads |= {self.held.representative.get(i, i) for i in run.reads}
        return run

    def _with(self, leaves: Sequence[Any], carry: Sequence[Any]) -> list[Any]:
        own = list(leaves)
        for i, value in zip(self.carried, carry, strict=True):
            own[i] = value
        return own


def _refuse_any(body: _While, cell: Cell) -> None:
    kind = body.signature.layout.slots[cell.index].kind.__name__
    raise FrozenStateError(
        f"`{body.place(cell.index)}` ({kind}) was written in the condition of {body.described.fn}, "
        "which only says whether to go on, and may be run any number of times. Write, and draw, in the "
        "body: def body(carry): state.value = ...; return carry."
    )


class _WhileLoop(ControlFlow):
    """A loop with a condition, called as a statement."""

    __slots__ = ()

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super()._take_apart(args, kwargs)
        condition, body = codes_of(self.fun)
        bound = f"ft.partial({condition}, {{tree}}), ft.partial({body}, {{tree}})"
        line = f"carry = ps.while_loop({bound}, carry)"
        refuse_live(call, self._code(), line, f"ps.while_loop({bound})")
        return call

    def _options_key(self) -> Hashable:
        return _WhileLoop

    def _program(self, call: Call) -> _While:
        return flat_function_of(call, self._code(), _While)

    def _code(self) -> str:
        return f"ps.while_loop({', '.join(codes_of(self.fun))})"

    def _shown(self, call: Call, index: int) -> str:
        return f"ps.while_loop({', '.join([*codes_of(self.fun), 'init_val'])})"


@public
@short_tracebacks
def while_loop(cond_fun: Callable[..., Any], body_fun: Callable[..., Any], init_val: Any = None) -> Any:
    """Loop as long as a condition holds.

    As `jax.lax.while_loop`, with states: those of the modules that the functions are bound to, or of
    partials, go from step to step. Both functions may be bound to one module. Called eagerly the loop is
    compiled once for each signature.

    **Arguments:**

    - `cond_fun`: `cond_fun(carry)` returns a `bool` of shape `()`. It reads states, and writes none.
    - `body_fun`: `carry = body_fun(carry)`.
    - `init_val`: the first carry, as for `scan`. With states alone it may be left out: `None`.

    **Returns:** the last carry.

    **Raises:** as `scan`; `FrozenStateError` for a write or a draw in `cond_fun`.

    !!! example

        >>> import functools as ft
        >>> import pstate as ps
        >>> def below(model, limit):
        ...     return model["n"].value < limit
        >>> def double(model, limit):
        ...     model["n"].value *= 2
        ...     return limit
        >>> def run(model):
        ...     return ps.while_loop(ft.partial(below, model), ft.partial(double, model), 100)
        >>> _, model = ps.pure(run)({"n": ps.State(3)})
        >>> model["n"].value.item()
        192
    """
    fun = Several((as_tree(cond_fun), as_tree(body_fun)))
    return _WhileLoop(fun)(init_val)
