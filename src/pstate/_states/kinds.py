"""The kinds of states, by which filters select. Users add their own by subclassing."""

from .._ground.public import public
from .state import State, V


@public
class ShortTermState(State[V]):
    """A state that a sequence starts afresh: membrane potentials, hidden vectors, counters."""

    __slots__ = ()


@public
class LongTermState(State[V]):
    """A state that outlives sequences: weights, running statistics."""

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
    """A state that mappings never batch: the same for all lanes."""

    __slots__ = ()
