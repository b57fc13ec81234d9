"""`pure`: the border between stateful functions and pure ones.

`pure(f)(model, x)` runs `f` with live states and returns `(out, model)`. Around a transform it runs
the transform itself on the leaves of the call, without making anything live in between.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx

from .._ground.typing import Filter
from .._states.cell import Recording
from .._trees.packed import Packed
from ..filter import to_predicate
from .call import Call, refuse_echo
from .contract import Contract
from .running import Writes, run_body
from .transform import Transform, checked, code_of


class Pure(Transform):
    """What `pure` returns: an ordinary function of pytrees."""

    fun: Callable[..., Any]
    argnums: int | tuple[int, ...] | None = eqx.field(static=True)
    writes: Filter = eqx.field(static=True)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        # Methods are called through their classes: Equinox makes a bound method a module, in 20 us.
        if args and type(args[0]) is Packed:
            found = Pure._call_of_packed(self, args, kwargs)
            if found is not None:
                return found
        inner, argnums = self.fun, self.argnums
        if isinstance(inner, Transform):
            call = type(inner)._call(inner, args, kwargs)
        else:
            call = Call(inner, args, kwargs)
        carriers = Pure._carriers(self, call)
        call.contract = guard = Contract(call, carriers, self.writes)
        if isinstance(inner, Transform):
            out, writes = type(inner)._apply(inner, call, threaded=True)
            guard.check_all(writes)
        else:
            out, writes = Pure._run(self, call, guard)
        updated = tuple(
            call.updated_carrier(writes) if c is None else call.updated_argument(c, writes)
            for c in carriers
        )
        return out, updated if isinstance(argnums, tuple) else updated[0]

    def _call_of_packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call with a packed tree first, in a shorter way, where there is one; else `None`."""
        fields = vars(self)  # each access to a field of a module takes a microsecond or two
        inner, argnums = fields["fun"], fields["argnums"]
        if fields["writes"] is not ... or not (argnums is None or argnums == 0):
            return None
        shorter = getattr(type(inner), "_call_packed", None)
        return None if shorter is None else shorter(inner, args, kwargs)

    def _apply(self, call: Call, threaded: bool = False) -> tuple[Any, Writes]:
        # A transform around `pure` rebuilds it in its body and calls it there.
        raise AssertionError("`pure` calls what it wraps; nothing applies it")

    def _run(self, call: Call, guard: "Contract") -> tuple[Any, Writes]:
        recording = Recording(
            call.place,
            guard=lambda cell: guard.check(cell.index),
            frozen=call.states,
            title=self._code(),
        )
        try:
            run = run_body(call.treedef, call.leaves, recording)
        except (RuntimeError, ValueError):
            call.refuse_deleted(lambda: Pure._code(self))
            raise
        refuse_echo(call, run.echoed, lambda index: call.code(code_of(self.fun), index))
        return run.out, run.writes

    def _carriers(self, call: Call) -> tuple[int | None, ...]:
        """What is given back: positions of arguments, and `None` for the carrier of the callable."""
        bound = (None,) if call.signature.has_carrier else ()
        if self.argnums is None:
            if not bound and not call.args:
                raise TypeError(
                    f"pure({code_of(self.fun)}) threads the states of argument 0, and no positional "
                    f"argument was passed. Pass the tree with the states first: "
                    f"out, tree = ps.pure({code_of(self.fun)})(tree)."
                )
            return bound or (0,)
        single = isinstance(self.argnums, int)
        positions = (self.argnums,) if isinstance(self.argnums, int) else self.argnums
        n = len(call.args)
        for position in positions:
            if not -n <= position < n:
                raise ValueError(
                    f"argnums={self.argnums} of pure({code_of(self.fun)}) counts the arguments that "
                    f"the caller passes, and {n} were passed: positions {list(range(n))}. Write "
                    f"argnums={tuple(range(n))[:1] or 'None'}."
                )
        positions = tuple(position % n for position in positions)
        if len(set(positions)) < len(positions):
            raise ValueError(
                f"argnums={self.argnums} of pure({code_of(self.fun)}) names an argument twice. Write "
                f"argnums={tuple(dict.fromkeys(positions))}."
            )
        return positions if single else (*bound, *positions)

    def _code(self) -> str:
        return f"ps.pure({code_of(self.fun)})"


def pure(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    argnums: int | tuple[int, ...] | None = None,
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
    if isinstance(argnums, list):
        argnums = tuple(argnums)
    to_predicate(writes)
    if fn is None:
        return lambda fn: pure(fn, argnums=argnums, writes=writes)
    if isinstance(fn, Pure):
        raise TypeError(
            f"{code_of(fn)} is pure already: it returns (out, tree) and writes nothing. Call it as "
            "it is."
        )
    return Pure(checked(fn), argnums, _hashable(writes))


def _hashable(writes: Filter) -> Any:
    return writes if writes is ... else to_predicate(writes)
