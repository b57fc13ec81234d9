"""`StatefulMapping`: the core of all mappings.

A call is taken apart (`call.py`), the program of its structure is found (`compiled.py`) or made
(`program.py`), and run: through `jax.jit` if nothing is being traced, and inlined otherwise.
"""

import functools as ft
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, overload

import jax

from .._calls.arguments import refuse_unknown, with_statics
from .._calls.call import Call
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.giving_back import check_writes
from .._calls.running import Writes
from .._calls.transform import Transform, code_of
from .._calls.typed import C, Instance, Out, P, Q, R
from .._ground.integers import Integer, Positions
from .._ground.public import public
from .._ground.tracebacks import hide_own_frames
from .._ground.typing import Filter, Policy, StateAxes
from .._ground.versions import is_eager, jit_is_disabled
from .._programs.compiled import Compiled, aval
from .._programs.entry import Entry
from .._states.deferred import Deferred
from .._states.threads import Threaded, local
from .device_entry import DeviceEntry
from .explaining import Explanation, notes_of
from .lanes import Meta
from .options import Options, make_options
from .plan import first_argument_is_a_tree
from .program import Program
from .single_lane import run_lane


@public
class StatefulMapping(Compiled[P, R, C]):
    """A function mapped over lanes, states included. What `vmap2` and `pmap2` return.

    It is called like the function; mapped arguments have one more axis. Called eagerly, it is
    compiled once for each signature and cached; under a trace, or `jax.disable_jit()`, it is
    inlined.

    **Arguments:**

    - `fun`: a function, bound method, callable module, partial, or a transform of one.
    - `in_axes`, `out_axes`: prefixes as in `jax.vmap`; `in_axes` may also be a dict by argument
        name, with axes or functions of the leaf. A bound module is an implicit first argument: leave
        it out of `in_axes`; it is broadcast. Keyword arguments are mapped along axis 0.
    - `state_in_axes`, `state_out_axes`: `{axis: filter}` in priority order, or a bare filter meaning
        `{0: filter}`. `None` means the same in all lanes. In `state_out_axes` a callable instead of
        an axis reduces the stacked lanes, with shape `(axis_size, ...)`, to one value.
    - `unexpected_out_state_mapping`: what to do with a write that differs between lanes and has no
        declared axis: `"raise"` an error; or give it a new axis 0, with a warning (`"warn"`) or
        without (`"ignore"`).
    - `static_argnums`, `static_argnames`: arguments that are part of the program; they must be hashable.
    - `axis_size`: the number of lanes; inferred from the mapped arrays if left out.
    - `axis_name`: a name for `jax.lax.pmean` and other collectives.
    - `name`: the name of the function in messages and profiles.
    - `mapping_fn`: any function with `jax.vmap`'s keywords.
    - `mapping_kwargs`: more keywords for it.
    - `chunk_size`: how many lanes run at a time; see `vmap2`.
    - `donate_argnums`, `donate`: which buffers are given up; see `pmap2`.

    **Raises:** `ValueError` for an unknown policy, and, when called, for axes that do not fit the
    arguments; `BatchAxisError` for states whose axes do not fit or are missing; `FrozenStateError`
    if a state was written and the new value would be lost; `TypeError` for an unhashable non-array
    leaf.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def step(counter, delta):
        ...     counter["n"].value += delta
        >>> mapped = ps.StatefulMapping(step)
        >>> _, counter = ps.pure(mapped)({"n": ps.State(jnp.zeros(3))}, jnp.arange(3.0))
        >>> counter["n"].value
        Array([0., 1., 2.], dtype=float32)
    """

    __slots__ = ("options",)

    options: Options

    def __init__(
        self,
        fun: Callable[P, R],
        in_axes: Any = 0,
        out_axes: Any = 0,
        state_in_axes: StateAxes = None,
        state_out_axes: StateAxes = None,
        unexpected_out_state_mapping: Policy = "raise",
        static_argnums: Positions = (),
        static_argnames: str | Iterable[str] = (),
        axis_size: Integer | None = None,
        axis_name: Any = None,
        name: Any = None,  # a string; checked with its own message
        mapping_fn: Callable[..., Any] = jax.vmap,
        mapping_kwargs: Mapping[str, Any] | None = None,
        chunk_size: Integer | None = None,
        donate_argnums: Positions = (),
        donate: Filter = None,
    ):
        options = make_options(
            in_axes=in_axes,
            out_axes=out_axes,
            state_in_axes=state_in_axes,
            state_out_axes=state_out_axes,
            policy=unexpected_out_state_mapping,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            axis_size=axis_size,
            axis_name=axis_name,
            name=name,
            mapping_fn=mapping_fn,
            mapping_kwargs=mapping_kwargs,
            chunk_size=chunk_size,
            donate_argnums=donate_argnums,
            donate=donate,
        )
        super().__init__(fun, options=options)
        refuse_unknown(self.fun, options.static_argnames, "static_argnames")

    @property
    def origin_fun(self) -> Callable[..., Any]:
        """The callable that is mapped."""
        return self.fun

    @property
    def in_axes(self) -> Any:
        """Where the arguments' lanes are."""
        return self.options.in_axes

    @property
    def out_axes(self) -> Any:
        """Where the output's lanes go."""
        return self.options.out_axes

    @property
    def state_in_axes(self) -> dict[Any, Any]:
        """Where states' lanes are, by filter."""
        return self.options.state_in_axes

    @property
    def state_out_axes(self) -> dict[Any, Any]:
        """Where written states' lanes go, by filter."""
        return self.options.state_out_axes

    @property
    def axis_name(self) -> Any:
        """The name of the mapped axis, for collectives."""
        return self.options.axis_name

    @property
    def axis_size(self) -> int | None:
        """The number of lanes, if it was given."""
        return self.options.axis_size

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: Any = None) -> "StatefulMapping[P, R, C]": ...
        @overload
        def __get__(
            self: "StatefulMapping[Concatenate[Any, Q], Out, Any]", instance: Instance, owner: Any = None
        ) -> "StatefulMapping[Q, Out, Instance]": ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...

    # Calling ------------------------------------------------------------------------------------

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        argnums, argnames = self.options.static_argnums, self.options.static_argnames
        if argnums or argnames:
            args, kwargs = with_statics(self.fun, args, kwargs, argnums, argnames, code_of(self))
        return Call(self.fun, args, kwargs)

    def _run(self, call: Call, contract: Contract | None = None) -> tuple[Any, Writes]:
        outer, local.call = local.call, Threaded(call)  # a context manager would cost a microsecond more
        try:
            arrays, meta = self._run_lanes(call, contract)
        finally:
            local.call = outer
        out, writes = meta.result(arrays)
        self._refuse(call, meta, contract)
        idle = idle_writes(call, meta, contract)
        return out, {i: v for i, v in writes.items() if i not in idle} if idle else writes

    def _run_lanes(self, call: Call, contract: Contract | None) -> tuple[list[Any], Meta]:
        kinds = call.kinds
        operands = kinds.operands(call.leaves)
        if not is_eager() or jit_is_disabled():
            return self._program(call)(*operands)
        if kinds.has_deferred:
            operands = [x.get() if type(x) is Deferred else x for x in operands]
        if self.options.on_devices:
            # Not left to JAX: one device would fail, and the others would wait for it.
            call.refuse_deleted(self._code)
            return self._entry(call).run(operands, lambda meta: self._check(call, meta, contract))
        try:
            return self._entry(call).run(operands)
        except (RuntimeError, ValueError) as error:
            call.explain(error, self._code)
            raise

    def _check(self, call: Call, meta: Meta, contract: Contract | None) -> None:
        """Raise the errors that would be raised after the call, when buffers are gone."""
        if self.options.donates:
            self._refuse(call, meta, contract)
            idle = idle_writes(call, meta, contract)
            writes = [index for index, _, _ in meta.writes if index not in idle]
            check_writes(call, contract, writes, lambda index: self._line(call, index))

    @property
    def _is_direct(self) -> bool:
        options = self.options
        return not (options.on_devices or options.static_argnums or options.static_argnames)

    def _options_key(self) -> Options:
        return self.options

    def _program(self, call: Call) -> Program:
        signature = call.signature
        first_is_tree = not signature.has_carrier and first_argument_is_a_tree(signature, call.args)
        return flat_function_of(call, code_of(self), Program, self.options, first_is_tree=first_is_tree)

    def _make_entry(self, program: Program) -> Any:
        name = self.options.name or self.__name__
        if self.options.on_devices:
            return DeviceEntry(program, name)
        advice = "Pass the tree that holds the state as an argument and broadcast it: in_axes=(None, 0)."
        return Entry(program, name, advice)

    # Looking ------------------------------------------------------------------------------------

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """The plan of a call: what the mapping decides, as a table. Nothing is computed.

        The arguments are those of a call, with `jax.ShapeDtypeStruct`s instead of arrays if you
        like.

        **Returns:** an `Explanation`, which prints as a table and shows as HTML in notebooks. A
        write that a call would refuse because no axis is declared is a note here.

        !!! example

            >>> import jax.numpy as jnp
            >>> import pstate as ps
            >>> mapped = ps.vmap2(lambda s, x: s.value + x, in_axes=(None, 0))
            >>> print(mapped.explain(ps.ParamState(1.0), jnp.ones(3)))
            ps.vmap2(f, in_axes=(None, 0)), 3 lanes
            place  kind        per lane  in      use   out     because
            ---------------------------------------------------------------
            s      ParamState  f32[]     shared  read  shared  in_axes=None
            x      array       f32[]     0                     in_axes=0
            ---------------------------------------------------------------
            12 bytes mapped, 4 bytes broadcast
        """
        call = self._take_apart(args, kwargs)
        program = self._program(call)
        operands = call.kinds.operands(call.leaves)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes of the table say the same
            _, meta = jax.eval_shape(program.explained, *map(aval, operands))
        options = self.options
        layout = call.signature.layout
        states = [(call.signature.path(s.index), s.state(call.leaves)) for s in layout.slots]
        rules = {"state_in_axes": options.rules_in, "state_out_axes": options.rules_out}
        notes = notes_of(rules, states)
        notes = (*notes, *meta.problems)
        return Explanation(code_of(self), meta.axis_size, tuple(meta.rows), notes)

    def lane(self, index: int) -> "Lane[P, R, C]":
        """One lane, run eagerly and without the others: for `print` and `pdb`.

        Calling it with the arguments of a call returns the lane's output, with the values and draws
        that lane `index` has in the mapping. States that it writes hold the lane's values and come
        back through `pstate.pure(mapped.lane(i))(...)`; otherwise they are not written back.
        Collectives over `axis_name` have no meaning in a single lane.

        **Raises:** `IndexError`, when called, for a lane that does not exist.
        """
        return Lane(self, index=index)

    def _code(self) -> str:
        return self.options.code(code_of(self.fun))

    def _maker(self) -> Callable[[Any], Any]:
        return ft.partial(StatefulMapping, **self.options.given())


class Lane(Transform[P, R, C]):
    """One lane of a mapping, which is `fun`; see `StatefulMapping.lane`."""

    __slots__ = ("index",)

    fun: Any  # a mapping
    index: int

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        try:
            out, _ = self._run(self._take_apart(args, kwargs))
            return out
        except BaseException as error:
            hide_own_frames(error)
            raise

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self.fun._take_apart(args, kwargs)

    def _run(self, call: Call, contract: Contract | None = None) -> tuple[Any, Writes]:
        run = run_lane(self.fun._program(call), call.leaves, self.index)
        if contract is not None:
            self._refuse(call, run, contract)
        return run.out, run.writes

    def _maker(self) -> Callable[[Any], Any]:
        return operator.methodcaller("lane", self.index)

    def _code(self) -> str:
        return f"{self.fun._code()}.lane({self.index})"


def idle_writes(call: Call, meta: Meta, contract: Contract | None) -> set[int]:
    """The keys that lanes only read: if they are not threaded, there is nothing to advance."""
    if contract is not None:
        return set()
    return {i for i in meta.soft if call.states[i]._cell is None}
