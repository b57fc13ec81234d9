"""`StatefulMapping`: the core that all mappings share.

A call is taken apart (`_call.py`), the program of its structure is found (`_cache.py`) or made
(`_program.py`), and run: through `jax.jit` where nothing is being traced, and inlined otherwise.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax

from ._axes import Described, first_argument_is_a_tree
from ._cache import Programs
from ._call import Call, Static, Writes, refuse_echo
from ._callable import anchor_of
from ._cell import Deferred
from ._compat import is_eager, jit_is_disabled
from ._context import ANCHOR, anchor_ref
from ._entry import DeviceEntry, Entry
from ._explain import Explanation, notes_of
from ._lane import run_lane
from ._lane_body import Meta
from ._leaves import operand_mask, static_key
from ._options import Options, make_options
from ._program import Program
from ._recompilation import warn_of_recompilation
from ._transform import Transform, checked, code_of
from ._typing import Filter, StateAxes


_programs = Programs()


class StatefulMapping(Transform):
    """A function mapped over lanes, states included. What `vmap2` and `pmap2` return.

    It is called like the function, with arguments that have an axis more where they are mapped. Called
    eagerly it is compiled once for each signature and cached; under a trace, or `jax.disable_jit()`,
    it is inlined.

    **Arguments:**

    - `fun`: a function, bound method, callable module, partial, or a transform of one.
    - `in_axes`, `out_axes`: `jax.vmap`'s prefixes, or (`in_axes`) a dict by argument name. A bound
        module is not counted and is broadcast. Keyword arguments are mapped over axis 0.
    - `state_in_axes`, `state_out_axes`: `{axis: filter}` in priority order, or a bare filter meaning
        `{0: filter}`. `None` says the same for all lanes. In `state_out_axes` a callable in the place of
        an axis takes the stacked lanes, with shape `(axis_size, ...)`, to one value.
    - `unexpected_out_state_mapping`: what to do with a write that no axis is declared for and that
        differs between lanes: `"raise"`, or give it a new axis 0 and `"warn"`, or `"ignore"`.
    - `static_argnums`, `static_argnames`: arguments that are part of the program; they must be hashable.
    - `axis_size`: the number of lanes; inferred from the mapped arrays where it is left out.
    - `axis_name`: a name for `jax.lax.pmean` and its like.
    - `name`: what messages and profiles call the function.
    - `mapping_fn`: any function with `jax.vmap`'s keywords.
    - `mapping_kwargs`: more keywords for it.
    - `chunk_size`: how many lanes run at a time; see `vmap2`.
    - `donate_argnums`, `donate`: whose buffers are given up; see `pmap2`.

    **Raises:** `ValueError` for an unknown policy, and, when called, for axes that do not fit the
    arguments; `BatchAxisError` for states whose axes do not hold or are missing; `FrozenStateError`
    where a state was written and nobody takes the new value; `TypeError` for an unhashable leaf that is
    no array.

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

    fun: Callable[..., Any]
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        fun: Callable[..., Any],
        in_axes: Any = 0,
        out_axes: Any = 0,
        state_in_axes: StateAxes = None,
        state_out_axes: StateAxes = None,
        unexpected_out_state_mapping: str = "raise",
        static_argnums: int | Iterable[int] = (),
        static_argnames: str | Iterable[str] = (),
        axis_size: int | None = None,
        axis_name: Any = None,
        name: str | None = None,
        mapping_fn: Callable[..., Any] = jax.vmap,
        mapping_kwargs: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        donate_argnums: int | Iterable[int] = (),
        donate: Filter = None,
    ):
        self.fun = checked(fun)
        self.options = make_options(
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
        """The number of lanes, where it was given."""
        return self.options.axis_size

    # Calling ------------------------------------------------------------------------------------

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if self.options.static_argnums or self.options.static_argnames:
            args, kwargs = self._with_statics(args, kwargs)
        return Call(self.fun, args, kwargs)

    def _with_statics(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        n = len(args)
        for number in self.options.static_argnums:
            if not -n <= number < n:
                raise ValueError(
                    f"static_argnums={self.options.static_argnums} counts the arguments that the caller "
                    f"passes, and {n} were passed to {code_of(self)}: positions {list(range(n))}. Write "
                    f"static_argnums={max(n - 1, 0)}."
                )
        positions = {number % n for number in self.options.static_argnums}
        args = tuple(_static(a, f"args[{i}]") if i in positions else a for i, a in enumerate(args))
        kwargs = {
            k: _static(v, k) if k in self.options.static_argnames else v for k, v in kwargs.items()
        }
        return args, kwargs

    def _apply(self, call: Call, threaded: bool = False) -> tuple[Any, Writes]:
        mask = operand_mask(call.leaves)
        operands = [leaf for leaf, is_one in zip(call.leaves, mask, strict=True) if is_one]
        if is_eager() and not jit_is_disabled():
            operands = [x.get() if type(x) is Deferred else x for x in operands]
            if self.options.on_devices:
                # Not left to JAX: one device would fail and the others wait for it.
                call.refuse_deleted(self._code)
            # Through the class: Equinox makes a bound method a module, in 20 us.
            arrays, meta = StatefulMapping._entry(self, call, mask).run(operands)
        else:
            arrays, meta = StatefulMapping._program(self, call, mask)(*operands)
        return _finish(call, arrays, meta, threaded, lambda: code_of(self))

    def _program(self, call: Call, mask: list[bool]) -> Program:
        anchor = anchor_of(self.fun)
        statics = tuple(
            (i, ANCHOR if leaf is anchor else leaf)
            for i, (leaf, is_operand) in enumerate(zip(call.leaves, mask, strict=True))
            if not is_operand
        )
        described = Described(
            tuple(call.names),
            code_of(self),
            not call.signature.has_carrier and first_argument_is_a_tree(call.args),
        )
        return Program(
            self.options, call.signature, statics, anchor_ref(anchor), call.aliases, described
        )

    def _entry(self, call: Call, mask: list[bool]) -> Any:
        anchor = anchor_of(self.fun)
        statics = StatefulMapping._static_keys(self, call, mask, anchor)
        key = (self.options, call.treedef, statics, call.aliases)

        def make() -> Any:
            same = [k[2] for k in _programs.keys(anchor) if k[:2] == (self.options, call.treedef)]
            warn_of_recompilation(call, statics, same, code_of(self))
            entry = DeviceEntry if self.options.on_devices else Entry
            return entry(self._program(call, mask), self.options.name or self.__name__)

        return _programs.get(anchor, key, make)

    def _static_keys(self, call: Call, mask: list[bool], anchor: Any) -> tuple[Any, ...]:
        keys: list[Any] = []
        for i, is_operand in enumerate(mask):
            if is_operand or call.leaves[i] is anchor:
                continue
            try:
                keys.append((i, static_key(call.leaves[i])))
            except TypeError:
                place = call.signature.place(call.signature.layout.key_path_of_leaf[i], call.names)
                leaf = call.leaves[i]
                raise TypeError(
                    f"`{place}` is a {type(leaf).__name__}, neither an array nor hashable, so that "
                    f"{code_of(self)} cannot tell programs apart by it; got {leaf!r}. Pass an array, "
                    "jnp.asarray(...), or something hashable."
                ) from None
        return tuple(keys)

    # Looking ------------------------------------------------------------------------------------

    def get_arg_cache_key(self, *args: Any, **kwargs: Any) -> "CacheKey":
        """The signature of a call: its structure, static leaves, and the shapes of its arrays.

        The arguments are those of a call, or `jax.ShapeDtypeStruct`s in the place of arrays.

        **Returns:** a hashable key, equal for calls that share a compiled program.
        """
        call = self._call(args, kwargs)
        mask = operand_mask(call.leaves)
        avals = tuple(_aval(leaf) for leaf, is_one in zip(call.leaves, mask, strict=True) if is_one)
        statics = self._static_keys(call, mask, anchor_of(self.fun))
        return CacheKey(call.treedef, statics, avals, self._entry(call, mask))

    def get_jaxpr_by_cache(self, key: "CacheKey") -> Any:
        """The program that belongs to a key of `get_arg_cache_key`.

        **Returns:** a `jax.core.ClosedJaxpr` whose inputs are the arrays of the call, in order, and
        whose outputs are the arrays of the output and then of the written states. A call that ran
        already is not traced again.
        """
        return key.entry.jaxpr(key.avals)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """What the mapping decides for a call, as a table: nothing is computed.

        The arguments are those of a call, or `jax.ShapeDtypeStruct`s in the place of arrays.

        **Returns:** an `Explanation`, which prints as a table and shows as HTML in notebooks. A write
        that a call would refuse for want of an axis is a note here.

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
        call = self._call(args, kwargs)
        mask = operand_mask(call.leaves)
        program = self._program(call, mask)
        operands = [leaf for leaf, is_one in zip(call.leaves, mask, strict=True) if is_one]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes of the table say it
            _, meta = jax.eval_shape(program.explained, *map(_aval, operands))
        options = self.options
        layout = call.signature.layout
        states = [(call.signature.path(s.index), s.state(call.leaves)) for s in layout.slots]
        notes = notes_of(options.rules_in, options.rules_out, states)
        notes = (*notes, *meta.problems)
        return Explanation(code_of(self), meta.axis_size, tuple(meta.rows), notes)

    def lane(self, index: int) -> "Lane":
        """One lane, run eagerly and without the others: for `print` and `pdb`.

        Calling it with the arguments of a call gives the lane's output, with the values and draws that
        lane `index` has in the mapping. States that it writes hold the lane's values and come back
        through `pstate.pure(mapped.lane(i))(...)`; they are not written back otherwise. Collectives
        over `axis_name` have no meaning in a single lane.

        **Raises:** `IndexError`, when called, for a lane that is not there.
        """
        return Lane(self, index)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """The program of a call, lowered: a `jax.stages.Lowered`.

        The arguments are those of a call, or `jax.ShapeDtypeStruct`s in the place of arrays.
        """
        key = self.get_arg_cache_key(*args, **kwargs)
        return key.entry.lower(key.avals)

    def _code(self) -> str:
        return self.options.code(code_of(self.fun))

    def __repr__(self) -> str:
        return code_of(self)


class Lane(Transform):
    """One lane of a mapping, which is `fun`; see `StatefulMapping.lane`."""

    fun: Callable[..., Any]
    index: int = eqx.field(static=True)

    @property
    def _mapping(self) -> StatefulMapping:
        assert isinstance(self.fun, StatefulMapping)
        return self.fun

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out, _ = self._apply(self._call(args, kwargs))
        return out

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self._mapping._call(args, kwargs)

    def _apply(self, call: Call, threaded: bool = False) -> tuple[Any, Writes]:
        program = self._mapping._program(call, operand_mask(call.leaves))
        run = run_lane(program, call.leaves, self.index)
        if threaded:
            refuse_echo(call, run.echoed, self._code())
        return run.out, run.writes

    def _code(self) -> str:
        return f"{self._mapping._code()}.lane({self.index})"


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """The signature of a call of a mapping."""

    treedef: Any
    statics: tuple[Any, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    entry: Any = dataclasses.field(repr=False)


def _finish(
    call: Call, arrays: list[Any], meta: Meta, threaded: bool, code: Callable[[], str]
) -> tuple[Any, Writes]:
    out, writes, soft = meta.result(arrays)
    if meta.echoed:
        live = tuple(e for e in meta.echoed if threaded or call.states[e[0]]._cell is not None)
        refuse_echo(call, live, code())
    if soft and not threaded:
        # The lanes only read these keys. Where nobody threads them there is nothing to advance.
        writes = {i: v for i, v in writes.items() if i not in soft or call.states[i]._cell is not None}
    return out, writes


def _static(value: Any, place: str) -> Static:
    try:
        return Static(value)
    except TypeError:
        raise TypeError(
            f"`{place}` is static and therefore part of the program, so it must be hashable; got "
            f"{value!r} of type {type(value).__name__}. Pass a tuple for a list, or take it out of "
            "static_argnums=(...)."
        ) from None


def _aval(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda x: x, leaf)
