"""`pure`: the boundary between stateful functions and pure ones.

`pure(f)(model, x)` runs `f` with live states and returns `(out, model)`. Around a transform it runs
the transform itself on the leaves of the call, without making anything live in between.
"""

import functools as ft
from collections.abc import Callable
from typing import Any

from .._ground.errors import StaleStateWarning
from .._ground.integers import Positions, as_argnums
from .._ground.public import public
from .._ground.tracebacks import hide_own_frames
from .._ground.typing import Filter
from .._ground.versions import current_trace
from .._states.cell import Recording
from .._states.messages import warn
from .._states.threads import threading_states
from .._trees.packed import Packed
from .._trees.slots import root_name
from ..filter import to_predicate
from .call import Call
from .callables import carrier_of
from .code import as_code
from .contract import Contract, carriers_of
from .giving_back import line_giving_back, refuse_echo, updated
from .running import Writes, run_body
from .signature import FN
from .transform import Transform, code_of


class Pure(Transform):
    """What `pure` returns: an ordinary function of pytrees."""

    __slots__ = ("argnums", "writes")

    argnums: int | tuple[int, ...] | None
    writes: Filter

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            inner, argnums = self.fun, self.argnums
            is_transform = isinstance(inner, Transform)
            if is_transform and args and type(args[0]) is Packed:
                usual = self.writes is ... and argnums in (None, 0)
                found = inner._call_packed(args, kwargs) if usual else None
                if found is not None:
                    return found
            call = inner._take_apart(args, kwargs) if is_transform else Call(inner, args, kwargs)
            carriers = carriers_of(call, argnums, lambda: code_of(inner))
            contract = Contract(call, carriers, self.writes)
            if is_transform:
                out, writes = inner._run(call, contract)
                contract.check_all(writes)
            else:
                out, writes = self._run(call, contract)
            if writes and None in carriers:
                self._warn_of_stale(call, writes)
            given = tuple([updated(call, carrier, writes) for carrier in carriers])
            return out, given if isinstance(argnums, tuple) else given[0]
        except BaseException as error:
            hide_own_frames(error)
            raise

    def lower(self, /, *args: Any, **kwargs: Any) -> Any:
        """The program of a call of `ps.pure(ps.jit(f))`, lowered; see `pstate.jit`.

        **Returns:** what has the methods of a `jax.stages.Lowered`; what its `compile()` gives is called
        like this function, and returns `(out, updated)`.
        """
        inner: Any = self.fun
        if not hasattr(inner, "_lower"):
            code = code_of(inner)
            raise TypeError(
                f"{self!r} is not compiled as a whole, so there is no program to lower. Compile it: "
                f"ps.pure(ps.jit({code})).lower(...), or jax.jit({self!r}).lower(...)."
            )
        call = inner._take_apart(args, kwargs)
        carriers = carriers_of(call, self.argnums, lambda: code_of(inner))
        return inner._lower(call, Contract(call, carriers, self.writes), self)

    def _warn_of_stale(self, call: Call, writes: Writes) -> None:
        """Warn, once, where the bound module was written before, and is as it was at first.

        Only calls in one trace follow each other: JAX runs a body anew for other shapes, say.
        """
        own = self.__dict__
        wrote, argument_of_slot = own.get(_WROTE), call.signature.argument_of_slot
        bound = next((i for i in writes if argument_of_slot[i] == (FN, None)), None)
        if wrote is _TOLD or bound is None or call.is_live:
            return
        trace = current_trace()
        if wrote != trace:
            own[_WROTE] = trace
            return
        own[_WROTE] = _TOLD
        root = root_name(carrier_of(self.fun))
        warn(
            f"{self._code()} was called again. Each call starts from the `{root}` that it was made of, "
            f"and what the last one wrote to `{call.place(bound)}` is not in it. Go on from the "
            f"`{root}` that came back; nothing is compiled anew:\n"
            f"    {line_giving_back(call, code_of(self._remade), bound)}",
            StaleStateWarning,
        )

    @property
    def _remade(self) -> Any:
        """What a loop makes anew of the module that came back."""
        return self.fun

    def __repr__(self) -> str:
        argnums = [] if self.argnums is None else [f"argnums={as_code(self.argnums)}"]
        writes = [] if self.writes is ... else [f"writes={as_code(self.writes)}"]
        return f"ps.pure({', '.join([code_of(self.fun), *argnums, *writes])})"

    def _maker(self) -> Callable[[Any], Any]:
        return ft.partial(pure, argnums=self.argnums, writes=self.writes)

    def _run(self, call: Call, contract: Contract | None = None) -> tuple[Any, Writes]:
        assert contract is not None  # a transform around `pure` rebuilds it in its body, and calls it
        recording = Recording(
            call.place,
            guard=lambda cell: contract.check(cell.index),
            frozen=call.states,
            title=self._code(),
            aliases=call.aliases,
        )
        try:
            # What is read by closure here is the tree from before: a value, and no part of the call.
            with threading_states(_NOTHING):
                run = run_body(call.signature, call.leaves, recording, call.place_of)
        except (RuntimeError, ValueError) as error:
            call.explain(error, self._code)
            raise
        contract.refuse_edits(run.edited, recording.title)
        refuse_echo(call, run.echoed, lambda index: line_giving_back(call, code_of(self.fun), index))
        return run.out, run.writes


#: Where a bound function notes the trace in which it wrote to its module, and that it has warned.
_WROTE = "wrote"
_TOLD = object()


class _Nothing:
    """A call that threads nothing."""

    states = ()
    signature = None


_NOTHING = _Nothing()


@public
def pure(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    argnums: Positions | None = None,
    writes: Filter = ...,
) -> Any:
    """A pure function of pytrees from a function that writes states.

    `pure(f)(model, x)` returns `(out, model)`: what `f` returns, and the argument whose states it
    wrote, with the new values. Nothing that was passed is changed, and what was not written comes
    back as the very same arrays. The result is an ordinary function, which `jax.jit`, `jax.vmap`,
    `eqx.filter_jit` and `diffrax` take. Usable as a decorator, with options and without.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `argnums`: which positional arguments are given back, as the caller counts them. By default the
        module of a bound method, a callable module, a partial that holds states; else argument 0. A
        tuple gives a tuple, the bound module (if any) first.
    - `writes`: a filter, as a contract: which states may be written.

    **Returns:** a function with the arguments of `fn` that returns `(out, updated)`.

    **Raises:** `FrozenStateError` for a write to a state in an argument outside `argnums`, in a keyword
    argument, or outside `writes`; `AliasedStateError` for a write to a state that stands at two
    places, and where a state that is given back also stands in the output.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def step(counter, delta):
        ...     counter["n"].value += delta
        ...     return counter["n"].value * 10
        >>> counter = {"n": ps.State(1)}
        >>> out, counter = ps.pure(step)(counter, 2)
        >>> out.item(), counter["n"].value.item()
        (30, 3)
    """
    argnums = as_argnums(argnums)
    to_predicate(writes)
    if fn is None:
        return lambda fn: pure(fn, argnums=argnums, writes=writes)
    inner = fn
    while isinstance(inner, Transform):
        if isinstance(inner, Pure):
            raise TypeError(
                f"{code_of(fn)} is pure already: it returns (out, tree) and writes nothing. Call it as "
                "it is."
            )
        inner = inner.fun
    return Pure(fn, argnums=argnums, writes=writes if writes is ... else to_predicate(writes))
