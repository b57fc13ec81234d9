"""`vmap2`: `jax.vmap` for functions with states."""

from collections.abc import Callable
from typing import Any

from .._ground.integers import Integer
from .._ground.public import public
from .._ground.typing import StateAxes
from .mapping import StatefulMapping


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
    unexpected_out_state_mapping: str = "raise",
    chunk_size: Integer | None = None,
) -> Any:
    """Map a stateful function over lanes.

    As `jax.jit(jax.vmap(fn))`, until a filter speaks. Usable as a decorator, with options and
    without; on a method in a class body, `self` is not counted and is shared by the lanes.

    Called eagerly it is compiled, and not `jax.vmap(fn)`: that a name in `fn`, or in a helper of the
    same program, is bound to something else is seen; that a dict, array or attribute which `fn` reaches
    has changed in place is not. `jax.disable_jit()` runs it uncompiled.

    A state goes in by the first filter of `state_in_axes` that matches; else a `NonBatchState` or a
    `SownState` is broadcast; else a `RandomState` with one key, or with keys that the lanes share, is
    split, a key of each per lane; else along its argument's `in_axes`. A written state comes back by the
    first filter of `state_out_axes` that matches; else along the axis it came in on; else a `SownState`
    along axis 0; else, if all lanes wrote the same value, without an axis; else
    `unexpected_out_state_mapping` decides. An unwritten state comes back as it went in.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one. The options up
        to `spmd_axis_name` may follow by position, in the order of `jax.vmap`.
    - `in_axes`: as in `jax.vmap`, or a dict by argument name. In the place of an axis a function of
        the leaf may stand, such as `eqx.if_array(0)`. Leaves that are no arrays are broadcast, and
        keyword arguments are mapped over axis 0.
    - `out_axes`: as in `jax.vmap`.
    - `axis_name`: a name for `jax.lax.pmean` and its like.
    - `axis_size`: the number of lanes; inferred from every mapped array where it is left out.
    - `spmd_axis_name`: as in `jax.vmap`.
    - `state_in_axes`: `{axis: filter}` in priority order, or a bare filter meaning `{0: filter}`.
        Filters are asked about states only, with the path within their argument.
    - `state_out_axes`: likewise. `None` in the place of an axis says that the value is the same in all
        lanes; a callable takes the lanes, stacked on a leading axis, to one value.
    - `unexpected_out_state_mapping`: `"raise"`, or give the state a new axis 0 and `"warn"`, or
        `"ignore"`.
    - `chunk_size`: map so many lanes at a time, in a compiled loop, to bound memory. Results, states and
        draws are the same. Reducers need the values of all lanes at once. Not with `axis_name`, since a
        collective would see one chunk.

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
