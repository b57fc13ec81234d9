"""`pmap2`: `jax.pmap` for functions with states."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

import jax

from .._calls.typed import Bound, Module, Out, Q
from .._ground.integers import Integer, Positions
from .._ground.public import public
from .._ground.typing import Filter, Policy, StateAxes
from .mapping import StatefulMapping
from .vmap import StateOptions


class KeywordsOfPmap(StateOptions, total=False):
    """The options of `pmap2` that are passed by name."""

    in_axes: Any
    out_axes: Any
    static_broadcasted_argnums: Positions
    devices: Sequence[Any] | None
    backend: str | None
    axis_size: Integer | None
    donate_argnums: Positions
    donate: Filter


if TYPE_CHECKING:

    @overload
    def pmap2(
        fn: Bound[Q, Out, Module], /, axis_name: Any = None, **options: Unpack[KeywordsOfPmap]
    ) -> StatefulMapping[Q, Out, Module]: ...
    @overload
    def pmap2(
        fn: Callable[Q, Out], /, axis_name: Any = None, **options: Unpack[KeywordsOfPmap]
    ) -> StatefulMapping[Q, Out, object]: ...
    @overload
    def pmap2(
        *, axis_name: Any = None, **options: Unpack[KeywordsOfPmap]
    ) -> Callable[[Callable[Q, Out]], StatefulMapping[Q, Out, object]]: ...


@public
def pmap2(
    fn: Callable[..., Any] | None = None,
    /,
    axis_name: Any = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: Positions = (),
    devices: Sequence[Any] | None = None,
    backend: str | None = None,
    axis_size: Integer | None = None,
    donate_argnums: Positions = (),
    donate: Filter = None,
    state_in_axes: StateAxes = None,
    state_out_axes: StateAxes = None,
    unexpected_out_state_mapping: Policy = "raise",
) -> Any:
    """Map a stateful function over devices, one lane per device.

    The rules for states are those of `vmap2`, and so are the results, including random draws.
    Mapped states live on their devices; states that are the same for all are replicated. A value
    that is declared to be the same everywhere but differs between devices is refused. Called
    eagerly, it is compiled once for each signature.

    **Arguments:**

    - `fn`, `in_axes`, `out_axes`, `state_in_axes`, `state_out_axes`,
        `unexpected_out_state_mapping`: as for `vmap2`.
    - `axis_name`, `devices`, `backend`, `axis_size`: as for `jax.pmap`.
    - `static_broadcasted_argnums`: positional arguments, as the caller counts them, that are part of the
        program. They must be hashable.
    - `donate_argnums`: positional arguments, as the caller counts them, whose buffers are given up.
    - `donate`: a filter; the selected states give up their buffers when they are overwritten.

    **Returns:** a `StatefulMapping`, called like `fn`.

    **Raises:** `ValueError` for more lanes than devices; `CapturedStateError` if the function reads
    a state that did not come in through its arguments; `StateError` for a buffer that was already
    donated; and see `StatefulMapping`.

    !!! example

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def step(counter, delta):
        ...     counter.value += delta
        >>> n = jax.local_device_count()
        >>> _, counter = ps.pure(ps.pmap2(step))(ps.State(jnp.zeros(n)), jnp.ones(n))
        >>> bool((counter.value == 1).all())
        True
    """

    def wrap(fn: Callable[..., Any]) -> StatefulMapping:
        kwargs = {"devices": devices, "backend": backend}
        return StatefulMapping(
            fn,
            in_axes=in_axes,
            out_axes=out_axes,
            state_in_axes=state_in_axes,
            state_out_axes=state_out_axes,
            unexpected_out_state_mapping=unexpected_out_state_mapping,
            static_argnums=static_broadcasted_argnums,
            axis_size=axis_size,
            axis_name=axis_name,
            mapping_fn=jax.pmap,
            mapping_kwargs={name: value for name, value in kwargs.items() if value is not None},
            donate_argnums=donate_argnums,
            donate=donate,
        )

    return wrap if fn is None else wrap(fn)
