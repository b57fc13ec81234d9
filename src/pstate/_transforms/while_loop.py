"""`while_loop`: a loop as long as a condition holds.

The states that both functions are bound to are held from step to step. The condition reads them;
the body may write them. With a known bound on the steps, the loop has a reverse-mode gradient.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Hashable
from typing import Any

import jax

from .._calls.call import Call
from .._calls.callables import Several, as_tree
from .._calls.flat_function import flat_function_of
from .._calls.running import Run
from .._calls.typed import Carry
from .._ground.errors import FrozenStateError
from .._ground.integers import Integer, as_count
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._states.cell import Cell
from .bounded import Bounds, bounded_while_loop
from .carry import refuse_live
from .control_flow import ControlFlow, FlowFunction, codes_of
from .stepping import Stepping


_CONDITION, _BODY = range(2)


@dataclasses.dataclass(eq=False)
class _While(FlowFunction):
    """A loop with a condition, for calls of one structure."""

    bounds: Bounds | None

    def flow(self, leaves: list[Any]) -> Run:
        stepping = Stepping(self, leaves)
        refuse = ft.partial(_refuse_any, self)

        def condition(loop: Any) -> Any:
            return stepping.call(_CONDITION, loop, ft.partial(_call, _CONDITION), refuse).out

        def step(loop: Any) -> Any:
            return stepping.next(stepping.call(_BODY, loop, ft.partial(_call, _BODY)), loop)

        condition = self.presented(condition, stepping.operands, which=_CONDITION)
        step = self.presented(step, stepping.operands, which=_BODY)
        if self.bounds is None:
            return stepping.run(jax.lax.while_loop(condition, step, stepping.init))
        return stepping.run(bounded_while_loop(condition, step, stepping.init, self.bounds))


def _call(which: int, fn: Any, args: Any, kwargs: Any) -> Any:
    return fn.callables[which](*args)


def _refuse_any(body: _While, cell: Cell) -> None:
    kind = body.signature.layout.slots[cell.index].kind.__name__
    raise FrozenStateError(
        f"`{body.place(cell.index)}` ({kind}) was written in the condition of {body.described.fn}, "
        "which only decides whether to go on, and may run any number of times. Write, and draw, in the "
        "body: def body(carry): state.value = ...; return carry."
    )


class _WhileLoop(ControlFlow):
    """A loop with a condition, called as a statement."""

    __slots__ = ("bounds",)

    bounds: Bounds | None

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super()._take_apart(args, kwargs)
        refuse_live(call, self._rewritten)
        return call

    def _rewritten(self) -> tuple[str, str, str]:
        condition, body = codes_of(self.fun)
        bound = f"ft.partial({condition}, {{tree}}), ft.partial({body}, {{tree}})"
        line = f"carry = ps.while_loop({bound}, carry)"
        return self._code(), line, f"ps.while_loop({bound})"

    def _options_key(self) -> Hashable:
        return _WhileLoop, self.bounds

    def _program(self, call: Call) -> _While:
        return flat_function_of(call, self._code(), _While, self.bounds)

    def _code(self) -> str:
        return f"ps.while_loop({', '.join(codes_of(self.fun))})"

    def _shown(self, call: Call, index: int) -> str:
        given = dataclasses.asdict(self.bounds) if self.bounds is not None else {}
        options = [f"{name}={value}" for name, value in given.items() if value is not None]
        return f"ps.while_loop({', '.join([*codes_of(self.fun), 'init_val', *options])})"


@public
@short_tracebacks
def while_loop(
    cond_fun: Callable[..., Any],
    body_fun: Callable[[Carry], Carry],
    init_val: Any = None,
    *,
    max_steps: Integer | None = None,
    checkpoints: Integer | None = None,
) -> Carry:
    """Loop as long as a condition holds.

    It is `jax.lax.while_loop` with states: those of the modules that the functions are bound to, or
    of partials, go from step to step. Both functions may be bound to the same module. Called
    eagerly, the loop is compiled once for each signature.

    With `max_steps` or `checkpoints` the loop has a reverse-mode gradient, which JAX's does not. It
    uses `equinox.internal.while_loop`. The condition itself is not differentiated.

    **Arguments:**

    - `cond_fun`: `cond_fun(carry)` returns a `bool` of shape `()`. It may read states, but not
        write them.
    - `body_fun`: `carry = body_fun(carry)`.
    - `init_val`: the first carry, as for `scan`. With states alone it may be left out: `None`.
    - `max_steps`: the loop ends after this many steps, whether or not the condition still holds.
        Alone it is for loops of few steps: it has derivatives in both modes, and memory grows with
        it.
    - `checkpoints`: how many steps keep their carry and states for the backward pass, which
        recomputes the others. For loops of many steps; there are derivatives in reverse mode only.

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
        >>> def run(model, **bounds):
        ...     both = ft.partial(below, model), ft.partial(double, model)
        ...     ps.while_loop(*both, 100, **bounds)
        ...     return model["n"].value
        >>> n, model = ps.pure(run)({"n": ps.State(3)})
        >>> n.item()
        192
        >>> gradient = ps.pure(ps.grad(run, wrt=ps.State))
        >>> slope, model = gradient({"n": ps.State(3.0)}, max_steps=10)
        >>> slope["n"].value.item()
        64.0
    """
    bounds = None
    if max_steps is not None or checkpoints is not None:
        n, k = max_steps, checkpoints
        if n is not None:
            n = as_count(n, "max_steps", "the most steps that there are", least=0, example=100)
        if k is not None:
            k = as_count(k, "checkpoints", "how many steps keep their carry", least=1, example=8)
        bounds = Bounds(n, k)
    fun = Several((as_tree(cond_fun), as_tree(body_fun)))
    return _WhileLoop(fun, bounds=bounds)(init_val)
