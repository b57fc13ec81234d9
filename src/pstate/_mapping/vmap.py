"""`vmap2`: `jax.vmap` for functions with states."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from .._calls.typed import Bound, Module, Out, Q
from .._ground.integers import Integer
from .._ground.public import public
from .._ground.typing import Policy, StateAxes
from .mapping import StatefulMapping


class StateOptions(TypedDict, total=False):
    """Options that say what lanes do with states."""

    state_in_axes: StateAxes
    state_out_axes: StateAxes
    unexpected_out_state_mapping: Policy


class KeywordsOfVmap(StateOptions, total=False):
    """The options of `vmap2` that are passed by name."""

    chunk_size: Integer | None


class OptionsOfVmap(KeywordsOfVmap, total=False):
    """All options of `vmap2`."""

    in_axes: Any
    out_axes: Any
    axis_name: Any
    axis_size: Integer | None
    spmd_axis_name: Any


if TYPE_CHECKING:

    @overload
    def vmap2(
        fn: Bound[Q, Out, Module],
        /,
        in_axes: Any = 0,
        out_axes: Any = 0,
        axis_name: Any = None,
        axis_size: Integer | None = None,
        spmd_axis_name: Any = None,
        **options: Unpack[KeywordsOfVmap],
    ) -> StatefulMapping[Q, Out, Module]: ...
    @overload
    def vmap2(
        fn: Callable[Q, Out],
        /,
        in_axes: Any = 0,
        out_axes: Any = 0,
        axis_name: Any = None,
        axis_size: Integer | None = None,
        spmd_axis_name: Any = None,
        **options: Unpack[KeywordsOfVmap],
    ) -> StatefulMapping[Q, Out, object]: ...
    @overload
    def vmap2(
        **options: Unpack[OptionsOfVmap],
    ) -> Callable[[Callable[Q, Out]], StatefulMapping[Q, Out, object]]: ...


@public
def vmap2(
    fn: Callable[..., Any] | None = None,
    /,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Any = None,
    axis_size: Integer | None = None,
    spmd_axis_name: Any = None,
    *,
    state_in_axes: StateAxes = None,
    state_out_axes: StateAxes = None,
    unexpected_out_state_mapping: Policy = "raise",
    chunk_size: Integer | None = None,
) -> Any:
    """Map a stateful function over lanes.

    It behaves like `jax.jit(jax.vmap(fn))` unless you pass a filter. Usable as a decorator, with or
    without options. A bound module is an implicit first argument, which the lanes share; leave it
    out of `in_axes`. So is `self` of a decorated method.

    Called eagerly it is compiled, unlike `jax.vmap(fn)`. If a name in `fn`, or in a helper in the
    same program, is rebound, that is noticed; if a dict, array or attribute that `fn` reaches
    changes in place, it is not. `jax.disable_jit()` runs it uncompiled.

    On the way in, the first of these rules that applies to a state decides: the first filter of
    `state_in_axes` that matches it; a `NonBatchState` or a `SownState` is broadcast; a
    `RandomState` whose key or keys all lanes share is split, and each lane gets its own key or
    keys; otherwise the axis of its argument in `in_axes`. On the way back, a written state follows
    the first filter of `state_out_axes` that matches; otherwise it keeps the axis it came in on;
    otherwise a `SownState` gets axis 0; otherwise, if all lanes wrote the same value, it gets no
    axis; otherwise `unexpected_out_state_mapping` decides. A state that was not written comes back
    as it went in.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one. The options up
        to `spmd_axis_name` may follow by position, in the order of `jax.vmap`.
    - `in_axes`: as in `jax.vmap`, or a dict by argument name. Instead of an axis you may pass a
        function of the leaf, such as `eqx.if_array(0)`. Non-array arguments are not mapped; they
        are static. Keyword arguments are mapped along axis 0.
    - `out_axes`: as in `jax.vmap`.
    - `axis_name`: a name for `jax.lax.pmean` and other collectives.
    - `axis_size`: the number of lanes; inferred from the mapped arrays if left out.
    - `spmd_axis_name`: as in `jax.vmap`.
    - `state_in_axes`: `{axis: filter}` in priority order, or a bare filter meaning `{0: filter}`.
        Filters apply to states only, with the path within their argument.
    - `state_out_axes`: the same for written states. `None` instead of an axis says that the value
        is the same in all lanes; a callable reduces the lanes, stacked along a leading axis, to one
        value.
    - `unexpected_out_state_mapping`: what to do with a write that differs between lanes and has no
        declared axis: `"raise"` an error; or give the state a new axis 0, with a warning (`"warn"`)
        or without (`"ignore"`).
    - `chunk_size`: how many lanes to map at a time, in a compiled loop, to bound memory. Results,
        states and draws are the same. Reducers need the values of all lanes at once. Not with
        `axis_name`, since a collective would see only one chunk.

    **Returns:** a `StatefulMapping`, called like `fn`.

    **Raises:** see `StatefulMapping`.

    !!! example

        >>> import equinox as eqx
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> class Counter(eqx.Module):
        ...     count: ps.ShortTermState
        ...     def __call__(self, delta):
        ...         self.count.value += delta
        ...         return self.count.value
        >>> counter = Counter(ps.ShortTermState(jnp.zeros(4)))
        >>> mapped = ps.vmap2(counter, state_in_axes={0: ps.ShortTermState})
        >>> counts, counter = ps.pure(mapped)(jnp.arange(4.0))
        >>> counter.count.value
        Array([0., 1., 2., 3.], dtype=float32)
    """

    def wrap(fn: Callable[..., Any]) -> StatefulMapping:
        return StatefulMapping(
            fn,
            in_axes=in_axes,
            out_axes=out_axes,
            state_in_axes=state_in_axes,
            state_out_axes=state_out_axes,
            unexpected_out_state_mapping=unexpected_out_state_mapping,
            axis_size=axis_size,
            axis_name=axis_name,
            mapping_kwargs={} if spmd_axis_name is None else {"spmd_axis_name": spmd_axis_name},
            chunk_size=chunk_size,
        )

    return wrap if fn is None else wrap(fn)
