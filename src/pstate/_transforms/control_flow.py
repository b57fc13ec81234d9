"""The common base of loops and branches.

They are statements, `scan(f, init, xs)`. Called eagerly, they are compiled once for each signature
and cached, like a mapping; under a trace they are inlined.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .._calls.call import Call
from .._calls.callables import Several, carrier_of
from .._calls.contract import Contract
from .._calls.flat_function import FlatFunction
from .._calls.lifting import Lifted
from .._calls.notes import Note, arrays_of, taken_apart
from .._calls.pure import Pure
from .._calls.running import Run, Writes
from .._calls.transform import code_of
from .._ground.versions import is_eager, jit_is_disabled
from .._programs.compiled import Compiled
from .._programs.entry import Entry
from .._trees.leaves import Number
from .._trees.packed import unpacked
from .._trees.slots import root_name
from .statements import Statement, callable_code


_CONVERTED = (bool, int, float, complex, np.ndarray, np.generic)

_NUMBERS = {bool, int, float}


class FlowFunction(FlatFunction):
    """A loop or a choice, as a flat function of arrays."""

    def __call__(self, *arrays: Any) -> tuple[list[Any], Note]:
        if not _NUMBERS.isdisjoint(map(type, arrays)):  # it runs uncompiled
            arrays = tuple([jnp.asarray(x) if type(x) in _NUMBERS else x for x in arrays])
        return taken_apart(self.flow(self.leaves(arrays)))

    def flow(self, leaves: list[Any]) -> Run:
        """Run it on all leaves of a call."""
        raise NotImplementedError


class ControlFlow(Statement, Compiled, Lifted):
    """A loop or a choice."""

    __slots__ = ()

    fun: Any  # a callable, or several
    #: Whether the function is called repeatedly.
    _repeats: ClassVar[bool] = True

    def __init__(self, fun: Any, **options: Any):
        super().__init__(fun, **options)
        for one in self.fun.callables if isinstance(self.fun, Several) else (self.fun,):
            if self._repeats and isinstance(one, Pure) and carrier_of(one) is not None:
                raise TypeError(_boundary_message(one, self._code().partition("(")[0]))

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        # A carry is taken apart and put together in the loop, so it must be a tree from the start.
        args = tuple(map(unpacked, args))
        kwargs = {name: unpacked(value) for name, value in kwargs.items()}
        call = Call(self.fun, args, kwargs)
        n = call.treedef.children()[0].num_leaves
        if any(isinstance(leaf, _CONVERTED) for leaf in call.leaves[n:]):
            # As in JAX, numbers are arrays. Those inside modules are configuration, here as elsewhere.
            is_array = arrays_of((args, kwargs), call.leaves[n:])
            call.leaves[n:] = [
                _converted(x) if is_one and isinstance(x, _CONVERTED) else x
                for x, is_one in zip(call.leaves[n:], is_array, strict=True)
            ]
        return call

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        operands = call.kinds.operands(leaves)
        if is_eager() and not jit_is_disabled():
            arrays, note = self._entry(call).run(operands)
        else:
            arrays, note = self._program(call)(*operands)
        return note, note.result(arrays)

    def _make_entry(self, program: Any) -> Entry:
        name = self._code().removeprefix("ps.").partition("(")[0]
        return Entry(program, name, "Bind the function to the tree that holds it: ft.partial(f, tree).")


#: Numbers below this fit into any array. `jnp.asarray` may refuse others, or warn of them.
_SMALL = 2**31


def _boundary_message(fn: Pure, statement: str) -> str:
    inner, root = code_of(fn.fun), root_name(carrier_of(fn))
    return (
        f"{statement} got {code_of(fn)}, which starts from the `{root}` that it was built from, each "
        "time that it is called: nothing would go from one call to the next. Use the function itself, "
        "and put ps.pure around the statement:\n"
        f"    out, {root} = ps.pure(lambda {root}: {statement}({inner}, ...))({root})"
    )


def _converted(leaf: Any) -> Any:
    if type(leaf) in _NUMBERS and abs(leaf) < _SMALL:
        # A compiled call takes it as it is, to the same effect, and is 30 us faster than `asarray`.
        return Number(leaf)
    if isinstance(leaf, np.ndarray | np.generic):
        # Still a NumPy array, since under a trace JAX would copy it in a separate equation.
        return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
    return jnp.asarray(leaf)


def codes_of(fn: Any) -> Sequence[str]:
    """The callables of a loop or a choice as code."""
    return [callable_code(one) for one in (fn.callables if isinstance(fn, Several) else (fn,))]
