"""Transforms that are compiled: a call finds its program, or makes it.

A *program* is a flat function of the operands of a call, which returns arrays and a `Note` of what they
mean. Called eagerly it runs through an *entry*, which compiles it once for each set of shapes.
"""

import dataclasses
import types
from collections.abc import Hashable
from typing import Any, ClassVar

import jax

from .._calls.call import Call
from .._calls.callables import anchor_of, anchors_of
from .._calls.contract import Carrier, Contract
from .._calls.giving_back import updated
from .._calls.transform import Transform, code_of
from .._calls.typed import C, P, R
from .._ground.exact import exact_key
from .._states.threads import local
from .cache import Programs
from .capturing import Untraced
from .flat_calls import FlatCalls, FlatProgram, flat_calls_of
from .recompilation import warn_of_recompilation


#: The programs of all compiled transforms.
programs = Programs()


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """The signature of a call of a compiled transform."""

    treedef: Any
    statics: tuple[Any, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    entry: Any = dataclasses.field(repr=False)


class Compiled(Transform[P, R, C]):
    """A transform that is compiled once for each signature of its calls."""

    __slots__ = ()

    def _options_key(self) -> Hashable:
        """The key that distinguishes transforms of one function."""
        raise NotImplementedError

    def _program(self, call: Call) -> Any:
        """The program for calls of this structure."""
        raise NotImplementedError

    def _make_entry(self, program: Any) -> Any:
        """The object that compiles and runs a program."""
        raise NotImplementedError

    @property
    def _is_direct(self) -> bool:
        """Whether calls need nothing but to run their program on their operands."""
        return False

    #: Whether a call under a trace is inlined, and not a call of a compiled function in the trace.
    _is_inlined: ClassVar[bool] = True

    def _flat_calls(self, carrier: Carrier) -> FlatCalls:
        """The flat calls of this transform, shared by all that are bound to a module in the same way."""
        function, how = anchor_of(self.fun), type(self.fun)
        fits = type(function) is types.FunctionType and self._is_direct
        if not fits or (carrier is not None and how is not types.FunctionType):
            return FlatCalls(False, self._is_inlined)
        if carrier is not None:
            return FlatCalls(True, self._is_inlined)
        return flat_calls_of(function, (how, self._options_key()), self._is_inlined)

    def _call_flat(
        self, carrier: Carrier, tree: Any, flat: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        calls = self._memo
        if calls is None:
            calls = self._flat_calls(carrier)
            object.__setattr__(self, "_memo", calls)
        if not calls.fit:
            return None
        function = self.fun if carrier is not None else anchor_of(self.fun)
        found = calls.find(function, flat, args if carrier is None else args[1:], kwargs)
        if found is None:
            return None
        program, others, key = found
        if program is None:

            def make() -> FlatProgram:
                call = self._take_apart(args, kwargs)
                return FlatProgram(call, carrier, flat.statics[0], self._entry(call))

            how = FlatProgram, type(self.fun), self._options_key()
            program = programs.get(function, (*how, *key), make)
            calls.remember(function, key, program)
        if program.run is None or program.entry.uncompiled:
            program.compiled()
            return None
        operands = program.operands(flat.leaves, others)
        local.flat = program.entry.program
        try:
            arrays, note = program.run(*operands)
        except Untraced:
            return None  # the usual path knows what the call threads, and what a body may not read
        except (RuntimeError, ValueError) as error:
            self._take_apart(args, kwargs).explain(error, self._code)
            raise
        finally:
            local.flat = None
        plan = program.plan(note, len(flat.leaves))
        if plan is not None:
            return plan.result(tree, flat, arrays, operands)
        call = self._take_apart(args, kwargs)
        self._refuse(call, note, Contract(call, (carrier,), ...))
        out, writes = note.result(arrays, operands)
        return out, updated(call, carrier, writes)

    def _entry(self, call: Call) -> Any:
        """The entry for calls of this structure, made if there is none."""
        anchor = anchor_of(self.fun)
        statics = self._static_keys(call, anchor)
        options = self._options_key()
        key = (options, call.signature, statics, call.aliases)

        def make() -> Any:
            same = [k[2] for k in programs.keys(anchor) if k[:2] == (options, call.signature)]
            warn_of_recompilation(call, statics, same, code_of(self))
            return self._make_entry(self._program(call))

        others = tuple(a for a in anchors_of(self.fun) if a is not anchor)
        return programs.get(anchor, key, make, others)

    def _static_keys(self, call: Call, anchor: Any) -> tuple[Any, ...]:
        keys: list[Any] = []
        for i in call.kinds.statics:
            leaf = call.leaves[i]
            if leaf is anchor:
                continue
            try:
                keys.append((i, exact_key(leaf)))
            except TypeError:
                place = call.signature.place(call.signature.layout.key_path_of_leaf[i], call.names)
                raise TypeError(
                    f"`{place}` is a {type(leaf).__name__}, neither an array nor hashable, so "
                    f"{code_of(self)} cannot find a program by it; got {leaf!r}. Pass an array, "
                    "jnp.asarray(...), or something hashable."
                ) from None
        return tuple(keys)

    # Looking ------------------------------------------------------------------------------------

    def get_arg_cache_key(self, *args: Any, **kwargs: Any) -> CacheKey:
        """The signature of a call: its structure, static leaves, and the shapes of its arrays.

        The arguments are those of a call, with `jax.ShapeDtypeStruct`s instead of arrays if you like.

        **Returns:** a hashable key, equal for calls that share a compiled program.
        """
        call = self._take_apart(args, kwargs)
        avals = tuple(aval(leaf) for leaf in call.kinds.operands(call.leaves))
        statics = self._static_keys(call, anchor_of(self.fun))
        return CacheKey(call.treedef, statics, avals, self._entry(call))

    def get_jaxpr_by_cache(self, key: CacheKey) -> Any:
        """The program that belongs to a key of `get_arg_cache_key`.

        **Returns:** a `jax.core.ClosedJaxpr` whose inputs are the arrays of the call, in order, and
        whose outputs are the arrays of the output and then of the written states. A call that has
        already run is not traced again.
        """
        return key.entry.jaxpr(key.avals)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """The program of a call, lowered: a `jax.stages.Lowered`.

        The arguments are those of a call, with `jax.ShapeDtypeStruct`s instead of arrays if you
        like. To compile and call the program, lower `pstate.jit` of the function.
        """
        key = self.get_arg_cache_key(*args, **kwargs)
        return key.entry.lower(key.avals)


def aval(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an operand, weak types included."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda x: x, leaf)
    # Not by `jax.eval_shape`, which takes 0.2 ms each time.
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)
