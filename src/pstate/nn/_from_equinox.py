"""`from_equinox`: Equinox's own stateful layers as ordinary layers.

An Equinox layer with state is called as `out, state = layer(x, state)`, with an `eqx.nn.State`: a
table from *markers*, strings that say where in the layer a value belongs, to pytrees of arrays.
Here that table is held by a `BatchState`, as a dict, and a call reads and writes it.

Invariants:

- Equinox invalidates a state that was replaced. So each call makes a new one from the dict, and
  nothing else ever holds it.
- A call that returns the same array objects has only read, and writes nothing.
- Markers are paths, so two layers that are built in the same way have equal structures.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._ground.public import public_in
from .._ground.values import same
from .._states.kinds import BatchState


class EquinoxLayer(eqx.Module):
    """An Equinox layer together with its state. Made by `pstate.nn.from_equinox`."""

    layer: Callable[..., Any]
    state: BatchState[dict[str, Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer as Equinox would, except for the state: return its output, write its state."""
        old = self.state.value
        out, state = _checked(_call(self.layer, _to_equinox(old), args, kwargs), self.layer)
        new = _from_state(state)
        if not same(new, old):
            self.state.value = new
        return out


@public_in("pstate.nn")
def from_equinox(make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> EquinoxLayer:
    """A stateful Equinox layer as an ordinary layer, which holds its own state.

    Instead of Equinox's `y, state = norm(x, state)`, write `y = norm(x)`. Everything else stays the
    same: `norm(x, key=key, inference=True)` passes on further arguments, and
    `eqx.nn.inference_mode` works. Calls that update the state need a recording (`pstate.pure`);
    inference needs none.

    **Arguments:**

    - `make`: the class of a layer, such as `eqx.nn.BatchNorm` or `eqx.nn.SpectralNorm`, or any function
        that makes a layer or model with `eqx.nn.StateIndex` in it.
    - `args`, `kwargs`: passed to `make`.

    **Returns:** a module with the fields `layer`, the layer as `eqx.nn.make_with_state` makes it,
    and `state`, a `BatchState` with a dict of all of its Equinox state. It is called like the
    layer, without the parameter `state`.

    **Raises:** `ValueError` for a layer without state; `TypeError` for a layer that is already
    built or, when it is called, one that does not return `(out, state)`.

    !!! example

        >>> import equinox as eqx
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> norm = ps.nn.from_equinox(eqx.nn.BatchNorm, 2, axis_name="batch", mode="batch")
        >>> xs = jnp.array([[0.0, 0.0], [2.0, 4.0]])
        >>> ys, norm = ps.pure(ps.vmap2(norm, axis_name="batch"))(xs)
        >>> mean, variance = norm.state.value["BatchNorm.batch_state_index"]
        >>> mean.round(3)
        Array([0.01, 0.02], dtype=float32)
    """
    _refuse_built(make)
    layer, state = eqx.nn.make_with_state(make)(*args, **kwargs)
    values = _from_state(state)
    if not values:
        name = _name(make)
        raise ValueError(
            f"{name} made a {type(layer).__name__} without state: there is no eqx.nn.StateIndex in it. "
            f"Use it as it is: layer = {name}(...)."
        )
    return EquinoxLayer(layer, BatchState(values))


def _from_state(state: eqx.nn.State) -> dict[str, Any]:
    values, markers = state.tree_flatten()
    table: dict[Any, Any] = dict(zip(markers, values, strict=True))
    return table


def _to_equinox(values: dict[str, Any]) -> eqx.nn.State:
    return eqx.nn.State.tree_unflatten(tuple(values), tuple(values.values()))


def _call(layer: Any, state: eqx.nn.State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a layer with the state where its signature wants it."""
    # `eqx.nn.Sequential` relies on the name `state`; a layer with another name follows the documented
    # order, `(x, state)`.
    parameters = inspect.signature(layer).parameters
    place = 1
    if "state" in parameters:
        place = list(parameters).index("state")
        if len(args) < place or parameters["state"].kind is inspect.Parameter.KEYWORD_ONLY:
            return layer(*args, state=state, **kwargs)
    return layer(*args[:place], state, *args[place:], **kwargs)


def _checked(result: Any, layer: Any) -> tuple[Any, eqx.nn.State]:
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], eqx.nn.State):
        return result
    raise TypeError(
        f"{type(layer).__name__} returned a {type(result).__name__}, but a stateful Equinox layer "
        "returns (out, state), where `state` is the newest eqx.nn.State. End its __call__ with:\n"
        "    return out, state"
    )


def _refuse_built(make: Any) -> None:
    nodes = jtu.tree_leaves(make, is_leaf=lambda x: isinstance(x, eqx.nn.StateIndex))
    if any(isinstance(x, eqx.nn.StateIndex) for x in nodes):
        name = type(make).__name__
        raise TypeError(
            f"from_equinox takes a class, or a function that makes a layer; got a {name} that is "
            f"already built. Write ps.nn.from_equinox({name}, ...), or "
            "ps.nn.from_equinox(lambda: layer)."
        )


def _name(make: Any) -> str:
    return getattr(make, "__name__", type(make).__name__)
