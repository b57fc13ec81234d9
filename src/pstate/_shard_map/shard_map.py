"""`shard_map2`: `jax.shard_map` for functions with states."""

import functools as ft
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Required, TypedDict, Unpack, overload

import jax

from .._calls.call import Call
from .._calls.code import as_code
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.notes import Note
from .._calls.running import Writes
from .._calls.transform import code_of
from .._calls.typed import Bound, C, Instance, Module, Out, P, Q, R
from .._ground.integers import Positions
from .._ground.public import public
from .._ground.typing import Filter
from .._ground.versions import is_eager, jit_is_disabled
from .._mapping.explaining import Explanation, notes_of
from .._mapping.lanes import Meta
from .._mapping.mapping import idle_writes
from .._programs.compiled import aval
from .._transforms.jit import Jit, jit
from .options import ShardOptions, make_options
from .shards import ShardProgram


class ShardMapped(Jit[P, R, C]):
    """What `shard_map2` returns. Called eagerly, it is compiled once for each signature."""

    __slots__ = ("options",)

    options: ShardOptions

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: Any = None) -> "ShardMapped[P, R, C]": ...
        @overload
        def __get__(
            self: "ShardMapped[Concatenate[Any, Q], Out, Any]", instance: Instance, owner: Any = None
        ) -> "ShardMapped[Q, Out, Instance]": ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        if is_eager() and not jit_is_disabled():
            note, (out, writes) = super()._run_leaves(call, leaves, contract)
        else:
            operands = call.kinds.operands(leaves)
            arrays, note = self._program(call)(*operands)
            out, writes = note.result(arrays, operands)
        assert isinstance(note, Meta)
        idle = idle_writes(call, note, contract)
        return note, (out, {i: v for i, v in writes.items() if i not in idle} if idle else writes)

    @property
    def _is_direct(self) -> bool:
        return False  # a call has shards to look at

    def _options_key(self) -> Hashable:
        return ShardMapped, super()._options_key(), self.options

    def _program(self, call: Call) -> ShardProgram:
        donation = self.donate, self.donate_argnums, self.donate_argnames
        return flat_function_of(call, code_of(self), ShardProgram, *donation, self.options)

    def _code(self) -> str:
        given = [f"{name}={as_code(value)}" for name, value in self._options().items()]
        return f"ps.shard_map2({', '.join([code_of(self.fun), *self.options.code(), *given])})"

    def _maker(self) -> Callable[[Any], Any]:
        return ft.partial(shard_map2, **self.options.given(), **self._options())

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """The plan of a call: what the mapping decides, as a table. Nothing is computed.

        The arguments are those of a call, with `jax.ShapeDtypeStruct`s instead of arrays if you
        like.

        **Returns:** an `Explanation`, which prints as a table and shows as HTML in notebooks. A
        write that a call would refuse, because it differs between shards, is a note here.

        !!! example

            >>> import jax
            >>> import jax.numpy as jnp
            >>> import pstate as ps
            >>> from jax.sharding import PartitionSpec as P
            >>> mesh = jax.make_mesh((4,), ("data",))
            >>> double = lambda s, x: s.value * x
            >>> mapped = ps.shard_map2(double, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
            >>> print(mapped.explain(ps.ParamState(1.0), jnp.ones(8)))
            ps.shard_map2(f, mesh=mesh, in_specs=(P(), P('data')), out_specs=P('data')), 4 shards
            place  kind        per shard  in         use   out  because
            ----------------------------------------------------------------------
            s      ParamState  f32[]      P()        read  P()  in_specs=P()
            x      array       f32[2]     P('data')             in_specs=P('data')
            ----------------------------------------------------------------------
            32 bytes mapped, 4 bytes broadcast
        """
        call = self._take_apart(args, kwargs)
        program = self._program(call)
        operands = call.kinds.operands(call.leaves)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes of the table say it
            _, meta = jax.eval_shape(program.explained, *map(aval, operands))
        layout = call.signature.layout
        states = [(call.signature.path(s.index), s.state(call.leaves)) for s in layout.slots]
        rules = {"state_in_specs": self.options.rules_in, "state_out_specs": self.options.rules_out}
        notes = (*notes_of(rules, states), *meta.problems)
        return Explanation(code_of(self), meta.axis_size, tuple(meta.rows), notes, "shard")


class KeywordsOfShardMap(TypedDict, total=False):
    """The options of `shard_map2`."""

    mesh: Any
    in_specs: Required[Any]
    out_specs: Required[Any]
    state_in_specs: Mapping[Any, Any] | None
    state_out_specs: Mapping[Any, Any] | None
    axis_names: str | Iterable[str]
    donate: Filter
    donate_argnums: Positions


if TYPE_CHECKING:

    @overload
    def shard_map2(
        fn: Bound[Q, Out, Module], /, **options: Unpack[KeywordsOfShardMap]
    ) -> ShardMapped[Q, Out, Module]: ...
    @overload
    def shard_map2(
        fn: Callable[Q, Out], /, **options: Unpack[KeywordsOfShardMap]
    ) -> ShardMapped[Q, Out, object]: ...
    @overload
    def shard_map2(
        **options: Unpack[KeywordsOfShardMap],
    ) -> Callable[[Callable[Q, Out]], ShardMapped[Q, Out, object]]: ...


@public
def shard_map2(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    mesh: Any = None,
    in_specs: Any,
    out_specs: Any,
    state_in_specs: Mapping[Any, Any] | None = None,
    state_out_specs: Mapping[Any, Any] | None = None,
    axis_names: str | Iterable[str] = (),
    donate: Filter = None,
    donate_argnums: Positions = (),
) -> Any:
    """Map a stateful function over the shards of a mesh.

    It is `jax.jit(jax.shard_map(fn))` for functions with states. Each shard gets its block of the
    arrays that a spec cuts, and the whole of the rest; collectives such as
    `jax.lax.pmean(value, "data")` reduce over the mesh axes. The body is traced once, the program
    has the collectives of `fn` and no others, and gradients in `fn` are those of one shard, as
    under `jax.pmap` and `jax.vmap`.

    On the way in, the first of these rules that applies to a state decides: the first filter of
    `state_in_specs` that matches it; a `RandomState` whose key or keys all shards share is split,
    and each shard gets its own key or keys, over the mesh axes that `in_specs` name, in that order
    (or over those of its rule); a `NonBatchState` is the same in all shards; otherwise the
    `in_specs` of its argument. The draws are those of `vmap2` over the same number of lanes, bit
    for bit (but not with `"rbg"` keys, with which `jax.vmap` draws other bits); shards at the same
    place along the named axes share a key. The states of a bound module are the same in all shards
    unless a filter says otherwise. On the way back, a written state follows the first filter of
    `state_out_specs` that matches; otherwise the spec that it came in by. A state that was not
    written comes back as it went in.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `mesh`: a `jax.sharding.Mesh`; by default that of the context, `jax.set_mesh(mesh)`. Its axes
        may be explicit or automatic.
    - `in_specs`: a `PartitionSpec` for all positional arguments, or a tuple of pytree prefixes,
        one for each, or a dict by argument name; a function of the leaf may be used instead of a
        spec. Leave out a bound module. `None`, and arguments that a dict does not name, mean `P()`:
        the same in all shards. Keyword arguments are `P()` unless a dict names them.
    - `out_specs`: a `PartitionSpec`, or a pytree prefix of the output.
    - `state_in_specs`: `{spec: filter}` in priority order. Filters apply to states only, with the
        path within their argument.
    - `state_out_specs`: the same for written states. A callable instead of a spec runs in each
        shard, and reduces the value to one that all share:
        `{ft.partial(jax.lax.pmean, axis_name="data"): ps.BatchState}`.
    - `axis_names`: the mesh axes to map over, one or several; if empty, all that are not yet mapped
        over. Along the others arrays stay whole here, and XLA places them, or another mapping maps
        over them.
    - `donate`: a filter; the selected states give up their buffers when they are overwritten.
    - `donate_argnums`: positional arguments, as the caller counts them, whose buffers are given up.

    **Returns:** a stateful function, called like `fn` with whole arrays. It has `explain(*args)`,
    `lower(*args)`, `get_arg_cache_key(*args)` and `get_jaxpr_by_cache(key)`, as `StatefulMapping`
    has.

    **Raises:** when called: `ValueError` if there is no mesh, for a mesh axis that does not exist,
    and for specs that do not fit the arguments; `BatchAxisError` for an array that cannot be cut
    evenly, and for a value that leaves as the same along a mesh axis but differs between its
    shards; otherwise as `jit`.

    !!! example

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> from jax.sharding import PartitionSpec as P
        >>> def step(mean, x):
        ...     mean.value = jax.lax.pmean(x.mean(), "data")
        ...     return x - mean.value
        >>> mesh = jax.make_mesh((4,), ("data",))
        >>> mapped = ps.shard_map2(step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        >>> centred, mean = ps.pure(mapped)(ps.BatchState(0.0), jnp.arange(8.0))
        >>> mean.value.item(), centred.tolist()
        (3.5, [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    """
    options = make_options(
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        state_in_specs=state_in_specs,
        state_out_specs=state_out_specs,
        axis_names=axis_names,
    )

    def wrap(fn: Callable[..., Any]) -> ShardMapped:
        compiled = jit(fn, donate=donate, donate_argnums=donate_argnums)
        of_jit = {name: getattr(compiled, name) for name in Jit._static}
        return ShardMapped(fn, **of_jit, options=options)

    return wrap if fn is None else wrap(fn)
