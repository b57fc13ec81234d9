"""`fori_loop`: a loop over a range of integers.

The states that the function is bound to are held from step to step. Known bounds are part of the
program, as in JAX, where they give the loop a reverse-mode gradient; traced bounds are operands.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.core
import numpy as np

from .._calls.call import Call
from .._calls.callables import Several, as_tree
from .._calls.flat_function import flat_function_of
from .._calls.running import Run
from .._calls.typed import Carry
from .._ground.integers import Integer, as_count
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .carry import refuse_live
from .control_flow import ControlFlow, FlowFunction, codes_of
from .stepping import Stepping


@dataclasses.dataclass(frozen=True)
class _Range:
    """The bounds of a loop and their dtypes, `None` for a Python integer; `None` if they are
    traced.

    `unroll_type` distinguishes 1 and True, which are equal.
    """

    bounds: tuple[tuple[int, str | None], ...] | None
    unroll: int | bool | None
    unroll_type: type

    def known(self) -> list[Any] | None:
        """The bounds as the user gave them, if they are known."""
        if self.bounds is None:
            return None
        return [n if dtype is None else np.asarray(n, dtype) for n, dtype in self.bounds]


@dataclasses.dataclass(eq=False)
class _Fori(FlowFunction):
    """A loop over a range, for calls of one structure."""

    range: _Range

    def flow(self, leaves: list[Any]) -> Run:
        stepping = Stepping(self, leaves)

        def step(i: Any, loop: Any) -> Any:
            call = lambda fn, args, kwargs: fn.callables[0](i, args[0])
            return stepping.next(stepping.call(0, loop, call), loop)

        lower, upper = self.range.known() or leaves[-2:]
        step = self.presented(step, stepping.operands, more=("i",))
        last = jax.lax.fori_loop(lower, upper, step, stepping.init, unroll=self.range.unroll)
        return stepping.run(last)


class _ForiLoop(ControlFlow):
    """A loop over a range, called as a statement."""

    __slots__ = ("range",)

    range: _Range

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super()._take_apart(args, kwargs)
        refuse_live(call, self._rewritten)
        return call

    def _rewritten(self) -> tuple[str, str, str]:
        (fn,) = codes_of(self.fun)
        bound = f"ps.fori_loop(lower, upper, ft.partial({fn}, {{tree}})"
        return self._code(), f"carry = {bound}, carry)", f"{bound})"

    def _options_key(self) -> Hashable:
        return _ForiLoop, self.range

    def _program(self, call: Call) -> _Fori:
        return flat_function_of(call, self._code(), _Fori, self.range)

    def _code(self) -> str:
        return f"ps.fori_loop({codes_of(self.fun)[0]})"

    def _shown(self, call: Call, index: int) -> str:
        return f"ps.fori_loop(lower, upper, {codes_of(self.fun)[0]}, init_val)"


@public
@short_tracebacks
def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, Carry], Carry],
    init_val: Any = None,
    *,
    unroll: Integer | None = None,
) -> Carry:
    """Loop over the integers from `lower` to `upper`, exclusive.

    It is `jax.lax.fori_loop` with states: those of the module that `body_fun` is bound to, or of a
    partial, go from step to step. With known bounds `ps.grad` can differentiate the loop, and the
    bounds are part of the program: called eagerly, the loop is compiled once for each pair. With
    traced bounds there is no reverse-mode gradient, as in JAX; use `ps.while_loop(max_steps=...)`
    for one.

    **Arguments:**

    - `lower`, `upper`: integers of shape `()`, which may be traced.
    - `body_fun`: a function, bound method, callable module or partial: `carry = body_fun(i, carry)`.
    - `init_val`: the first carry, as for `scan`. With states alone it may be left out: `None`.
    - `unroll`: as in `jax.lax.fori_loop`, for known bounds.

    **Returns:** the last carry.

    **Raises:** as `scan`; `TypeError` for bounds that are not integers of shape `()`.

    !!! example

        >>> import functools as ft
        >>> import pstate as ps
        >>> def step(model, i, total):
        ...     model["steps"].value += 1
        ...     return total + i
        >>> def run(model, n):
        ...     return ps.fori_loop(1, n, ft.partial(step, model), 0)
        >>> total, model = ps.pure(run)({"steps": ps.State(0)}, 5)
        >>> total.item(), model["steps"].value.item()
        (10, 4)
    """
    for name, bound in (("lower", lower), ("upper", upper)):
        _refuse_no_integer(name, bound)
    if unroll is not None and not isinstance(unroll, bool):
        unroll = as_count(unroll, "unroll", "how many steps run in one iteration", least=0, example=1)
    traced = any(isinstance(bound, jax.core.Tracer) for bound in (lower, upper))
    bounds = None if traced else tuple(map(_known, (lower, upper)))
    fun = Several((as_tree(body_fun),), ("init_val", "lower", "upper"))
    loop = _ForiLoop(fun, range=_Range(bounds, unroll, type(unroll)))
    return loop(init_val, lower, upper) if traced else loop(init_val)


def _refuse_no_integer(name: str, bound: Any) -> None:
    is_array = isinstance(bound, jax.Array | np.ndarray | np.generic)
    if isinstance(bound, int) and not isinstance(bound, bool):
        return
    if is_array and bound.shape == () and np.issubdtype(bound.dtype, np.integer):
        return
    raise TypeError(
        f"`{name}` of ps.fori_loop is an integer of shape (), which may be traced; got {bound!r}. Write "
        f"ps.fori_loop(0, 10, f, init_val); to loop over arrays use ps.for_loop."
    )


def _known(bound: Any) -> tuple[int, str | None]:
    return int(bound), None if isinstance(bound, int) else str(bound.dtype)
