"""pstate: state for Equinox models, threaded explicitly."""

from . import filter as filter, nn as nn
from ._errors import (
    AliasedStateError as AliasedStateError,
    BatchAxisError as BatchAxisError,
    BatchAxisWarning as BatchAxisWarning,
    CapturedStateError as CapturedStateError,
    CapturedStateWarning as CapturedStateWarning,
    FrozenStateError as FrozenStateError,
    RecompilationWarning as RecompilationWarning,
    StateError as StateError,
    StateWarning as StateWarning,
    TraceScopeError as TraceScopeError,
    UninitializedStateError as UninitializedStateError,
    UnmatchedFilterWarning as UnmatchedFilterWarning,
    UnmatchedPathWarning as UnmatchedPathWarning,
)
from ._mapping import StatefulMapping as StatefulMapping
from ._new_states import pmap2_new_states as pmap2_new_states, vmap2_new_states as vmap2_new_states
from ._pmap import pmap2 as pmap2
from ._pure import pure as pure
from ._random import RandomState as RandomState
from ._record import freeze as freeze, record as record, written as written
from ._select import (
    axes as axes,
    select as select,
    states as states,
    update as update,
)
from ._state import (
    BatchState as BatchState,
    HiddenState as HiddenState,
    LongTermState as LongTermState,
    NonBatchState as NonBatchState,
    ParamState as ParamState,
    ShortTermState as ShortTermState,
    State as State,
    catch_new_states as catch_new_states,
)
from ._vmap import vmap2 as vmap2


__version__ = "0.1.0"
