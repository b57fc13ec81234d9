"""`pure`: the boundary between stateful functions and pure ones.

`pure(f)(model, x)` runs `f` with live states and returns `(out, model)`. Around a transform it runs
the transform itself on the leaves of the call, without making any state live in between.
"""

import functools as ft
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Protocol, overload

from .._ground.errors import StaleStateWarning
from .._ground.integers import Integer, Positions, as_argnums
from .._ground.public import public
from .._ground.tracebacks import hide_own_frames
from .._ground.typing import Filter
from .._ground.versions import current_trace
from .._states.cell import Recording
from .._states.messages import warn
from .._states.threads import threading_states
from .._trees.known import known
from .._trees.packed import Packed
from .._trees.slots import root_name
from ..filter import to_predicate
from .call import Call
from .callables import carrier_of, directly_bound
from .code import as_code
from .contract import Contract, carriers_of
from .giving_back import line_giving_back, refuse_echo, updated
from .running import Writes, run_body
from .signature import FN
from .transform import Transform, code_of
from .typed import Body, Bound, C, F, FIn, Given, Instance, Module, Out, P, Q, R, Tree


class Pure(Transform[P, R, C]):
    """What `pure` returns: an ordinary function of pytrees."""

    __slots__ = ("argnums", "writes")

    argnums: int | tuple[int, ...] | None
    writes: Filter

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        try:
            inner, argnums = self.fun, self.argnums
            is_transform = isinstance(inner, Transform)
            if is_transform and self.writes is ...:
                found = self._call_flat_of(inner, args, kwargs)
                if found is not None:
                    return found
            call = inner._take_apart(args, kwargs) if is_transform else Call(inner, args, kwargs, True)
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
            result: Any = out, given if isinstance(argnums, tuple) else given[0]
            return result
        except BaseException as error:
            hide_own_frames(error)
            raise

    def _call_flat_of(self, inner: Transform, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`(out, tree)` if the transform inside has a fast path for this call; else `None`."""
        bound = directly_bound(inner.fun)
        if bound is not None:
            # A call after one that wrote may have to be warned of.
            if self.argnums is not None or _WROTE in self.__dict__:
                return None
            carrier, tree = None, bound
        elif args and self.argnums in (None, 0):
            carrier, tree = 0, args[0]
        else:
            return None
        flat = tree if type(tree) is Packed else known(tree)
        found = None if flat is None else inner._call_flat(carrier, tree, flat, args, kwargs)
        if found is not None and bound is not None and found[1] is not bound:
            self.__dict__[_WROTE] = current_trace()
        return found

    def lower(self, /, *args: Any, **kwargs: Any) -> Any:
        """The program of a call of `ps.pure(ps.jit(f))`, lowered; see `pstate.jit`.

        **Returns:** an object with the methods of a `jax.stages.Lowered`; the result of its
        `compile()` is called like this function, and returns `(out, updated)`.
        """
        inner: Any = self.fun
        if not hasattr(inner, "_lower"):
            code = code_of(inner)
            raise TypeError(
                f"{self!r} is not compiled as a whole, so it has no program to lower. Compile it: "
                f"ps.pure(ps.jit({code})).lower(...), or jax.jit({self!r}).lower(...)."
            )
        call = inner._take_apart(args, kwargs)
        carriers = carriers_of(call, self.argnums, lambda: code_of(inner))
        return inner._lower(call, Contract(call, carriers, self.writes), self)

    def _warn_of_stale(self, call: Call, writes: Writes) -> None:
        """Warn, once, if the bound module was written in an earlier call but starts from its old values.

        Only calls in one trace follow each other: JAX may run a body again, for example for other
        shapes.
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
            f"{self._code()} was called again. Each call starts from the `{root}` that it was built "
            f"from, which does not have what the last call wrote to `{call.place(bound)}`. Continue "
            f"with the `{root}` that came back; nothing is compiled again:\n"
            f"    {line_giving_back(call, code_of(self._remade), bound)}",
            StaleStateWarning,
        )

    @property
    def _remade(self) -> Any:
        """What a loop makes of the returned module in each step."""
        return self.fun

    def __repr__(self) -> str:
        argnums = [] if self.argnums is None else [f"argnums={as_code(self.argnums)}"]
        writes = [] if self.writes is ... else [f"writes={as_code(self.writes)}"]
        return f"ps.pure({', '.join([code_of(self.fun), *argnums, *writes])})"

    def _maker(self) -> Callable[[Any], Any]:
        options: dict[str, Any] = {"argnums": self.argnums, "writes": self.writes}
        return ft.partial(pure, **options)

    def _run(self, call: Call, contract: Contract | None = None) -> tuple[Any, Writes]:
        assert contract is not None  # a transform around `pure` rebuilds it in its body, and calls it
        recording = Recording(
            call.place,
            guard=lambda cell: contract.check(cell.index),
            frozen=call.states,
            title=self._code,  # looked up for a message only: it takes 6 us
            aliases=call.aliases,
        )
        try:
            # A read by closure here gives the tree from before: a value, not a part of the call.
            with threading_states(_NOTHING):
                run = run_body(call.signature, call.leaves, recording, call.place_of)
        except (RuntimeError, ValueError) as error:
            call.explain(error, self._code)
            raise
        if run.edited:
            contract.refuse_edits(run.edited, recording.title)
        refuse_echo(call, run.echoed, lambda index: line_giving_back(call, code_of(self.fun), index))
        return run.out, run.writes


#: Where a bound function records the trace in which it wrote to its module, and that it has warned.
_WROTE = "wrote"
_TOLD = object()


class _Nothing:
    """A call that threads nothing."""

    states = ()
    signature = None


_NOTHING = _Nothing()


class PureOf(Protocol[FIn]):
    """What `pure` makes of a function that is bound to no module, to a type checker.

    Whether argument 0 is a tree of states, which is given back, the call tells from the function.
    """

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self: "PureOf[Callable[Concatenate[Tree, Q], Out]]",
        tree: Tree,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> tuple[Out, Tree]: ...
    @overload
    def __call__(
        self: "PureOf[Callable[Concatenate[Tree, Q], Out]]",
        tree: Packed[Tree],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> tuple[Out, Packed[Tree]]: ...
    @overload
    def __call__(
        self: "PureOf[Callable[Concatenate[Body, Q], Any]]",
        tree: Given,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> tuple[Any, Given]: ...
    @overload
    def __call__(
        self: "PureOf[Callable[Q, Out]]", *args: Q.args, **kwargs: Q.kwargs
    ) -> tuple[Out, Any]: ...

    def lower(self, /, *args: Any, **kwargs: Any) -> Any: ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "PureOf[FIn]": ...
    @overload
    def __get__(
        self: "PureOf[Callable[Concatenate[Any, Q], Out]]", instance: Instance, owner: Any = None
    ) -> "Pure[Q, tuple[Out, Instance], Instance]": ...


if TYPE_CHECKING:

    @overload
    def pure(  # pyright: ignore[reportOverlappingOverload]
        fn: Bound[Q, Out, Module], /, *, argnums: None = None, writes: Filter = ...
    ) -> Pure[Q, tuple[Out, Module], Module]: ...
    @overload
    def pure(fn: F, /, *, argnums: Literal[0] | None = None, writes: Filter = ...) -> PureOf[F]: ...
    @overload
    def pure(
        fn: Callable[Q, Out], /, *, argnums: Integer, writes: Filter = ...
    ) -> Pure[Q, tuple[Out, Any]]: ...
    @overload
    def pure(
        fn: Callable[Q, Out], /, *, argnums: Iterable[Integer], writes: Filter = ...
    ) -> Pure[Q, tuple[Out, tuple[Any, ...]]]: ...
    @overload
    def pure(*, argnums: Literal[0] | None = None, writes: Filter = ...) -> Callable[[F], PureOf[F]]: ...
    @overload
    def pure(
        *, argnums: Positions, writes: Filter = ...
    ) -> Callable[[Callable[Q, Out]], Pure[Q, tuple[Out, Any]]]: ...


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
    wrote, with the new values. Nothing that you pass is changed, and values that were not written
    come back as the same array objects. The result is an ordinary function, which `jax.jit`,
    `jax.vmap`, `eqx.filter_jit` and `diffrax` take. Usable as a decorator, with or without options.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `argnums`: which positional arguments are returned with their new states, as the caller counts
        them. By default the module of a bound method, a callable module, or a partial that holds
        states; otherwise argument 0. A tuple returns a tuple, with the bound module (if any) first.
    - `writes`: a filter, as a contract: which states may be written.

    **Returns:** a function with the arguments of `fn` that returns `(out, updated)`.

    **Raises:** `FrozenStateError` for a write to a state in an argument outside `argnums`, in a keyword
    argument, or outside `writes`; `AliasedStateError` for a write to a state that is at two places,
    and if a state that is given back is also in the output.

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
                f"{code_of(fn)} is already pure: it returns (out, tree) and writes nothing. Call it as "
                "it is."
            )
        inner = inner.fun
    return Pure(fn, argnums=argnums, writes=writes if writes is ... else to_predicate(writes))
