"""pstate: state for Equinox models, threaded explicitly."""

from . import filter as filter, nn as nn
from ._branches import cond as cond, switch as switch
from ._catch import catch_new_states as catch_new_states
from ._checkpoint import checkpoint as checkpoint
from ._diff import diff as diff
from ._errors import (
    AliasedStateError as AliasedStateError,
    BatchAxisError as BatchAxisError,
    BatchAxisWarning as BatchAxisWarning,
    CapturedStateError as CapturedStateError,
    CapturedStateWarning as CapturedStateWarning,
    FrozenStateError as FrozenStateError,
    RecompilationWarning as RecompilationWarning,
    StateError as StateError,
    StateTypeError as StateTypeError,
    StateWarning as StateWarning,
    TraceScopeError as TraceScopeError,
    UninitializedStateError as UninitializedStateError,
    UnmatchedFilterWarning as UnmatchedFilterWarning,
    UnmatchedPathWarning as UnmatchedPathWarning,
)
from ._grad import (
    grad as grad,
    hessian as hessian,
    jacfwd as jacfwd,
    jacrev as jacrev,
    jvp as jvp,
    value_and_grad as value_and_grad,
    vjp as vjp,
)
from ._jit import jit as jit
from ._loops import for_loop as for_loop, scan as scan
from ._mapping import StatefulMapping as StatefulMapping
from ._new_states import pmap2_new_states as pmap2_new_states, vmap2_new_states as vmap2_new_states
from ._packed import Packed as Packed, pack as pack
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
from ._serialise import (
    deserialise_filter_spec as deserialise_filter_spec,
    serialise_filter_spec as serialise_filter_spec,
)
from ._state import (
    BatchState as BatchState,
    HiddenState as HiddenState,
    LongTermState as LongTermState,
    NonBatchState as NonBatchState,
    ParamState as ParamState,
    ShortTermState as ShortTermState,
    State as State,
)
from ._summary import summary as summary
from ._vmap import vmap2 as vmap2
from ._while import while_loop as while_loop


__version__ = "0.1.0"
