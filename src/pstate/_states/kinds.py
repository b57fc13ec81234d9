"""The kinds of states, by which filters select. Users add their own by subclassing."""

from .._ground.public import public
from .state import State, V


@public
class ShortTermState(State[V]):
    """A state that is reset for each sequence: membrane potentials, hidden vectors, counters."""

    __slots__ = ()


@public
class LongTermState(State[V]):
    """A state that outlives a sequence: weights, running statistics."""

    __slots__ = ()


@public
class HiddenState(ShortTermState[V]):
    """The hidden state of a recurrent or spiking network."""

    __slots__ = ()


@public
class ParamState(LongTermState[V]):
    """A trainable parameter; what `pstate.filter.Trainable` selects."""

    __slots__ = ()


@public
class BatchState(LongTermState[V]):
    """A statistic of a batch, such as the running mean of a normalisation."""

    __slots__ = ()


@public
class NonBatchState(State[V]):
    """A state that all lanes of a mapping share, unless a filter says otherwise."""

    __slots__ = ()


@public
class SownState(State[V]):
    """What a call records for others to look at: activations, attention weights, norms.

    Each lane of a mapping and each step of `scan` and `for_loop` writes a value of its own, and they are
    stacked along axis 0, if no rule of `state_out_axes` gives another axis: so a state that one step of
    one lane writes with shape `(3,)` comes out with shape `(lanes, steps, 3)`. What came in with the
    call is not mapped, sliced or carried. In `while_loop` and `fori_loop` the last value stays.
    `ps.reap` takes the values out. `ps.shard_map2` treats it as any other state, by `state_out_specs`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def layer(seen, x):
        ...     seen.value = jnp.tanh(x)
        ...     return jnp.sum(seen.value)
        >>> _, seen = ps.pure(ps.vmap2(layer, in_axes=(None, 0)))(ps.SownState(), jnp.zeros((4, 3)))
        >>> seen
        SownState(f32[4,3])
    """

    __slots__ = ()
