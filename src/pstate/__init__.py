"""pstate: state for Equinox models, threaded explicitly."""

from . import filter as filter, nn as nn
from ._calls.pure import pure as pure
from ._ground.errors import (
    AliasedStateError as AliasedStateError,
    BatchAxisError as BatchAxisError,
    BatchAxisWarning as BatchAxisWarning,
    CapturedStateError as CapturedStateError,
    CapturedStateWarning as CapturedStateWarning,
    FrozenStateError as FrozenStateError,
    RecompilationWarning as RecompilationWarning,
    StaleStateWarning as StaleStateWarning,
    StateError as StateError,
    StateTypeError as StateTypeError,
    StateWarning as StateWarning,
    TraceScopeError as TraceScopeError,
    UninitializedStateError as UninitializedStateError,
    UnmatchedFilterWarning as UnmatchedFilterWarning,
    UnmatchedPathWarning as UnmatchedPathWarning,
)
from ._looking.diff import diff as diff
from ._looking.summary import summary as summary
from ._mapping.mapping import StatefulMapping as StatefulMapping
from ._mapping.new_states import (
    pmap2_new_states as pmap2_new_states,
    vmap2_new_states as vmap2_new_states,
)
from ._mapping.pmap import pmap2 as pmap2
from ._mapping.vmap import vmap2 as vmap2
from ._shard_map.shard_map import shard_map2 as shard_map2
from ._sharding.init import sharded_init as sharded_init
from ._sharding.largest import largest as largest
from ._sharding.shard import shard as shard
from ._sharding.shardings import shardings as shardings
from ._states.catching import catch_new_states as catch_new_states
from ._states.kinds import (
    BatchState as BatchState,
    HiddenState as HiddenState,
    LongTermState as LongTermState,
    NonBatchState as NonBatchState,
    ParamState as ParamState,
    ShortTermState as ShortTermState,
    SownState as SownState,
)
from ._states.random_state import RandomState as RandomState
from ._states.state import State as State
from ._transforms.branches import cond as cond, switch as switch
from ._transforms.checkpoint import checkpoint as checkpoint
from ._transforms.custom_jvp import custom_jvp as custom_jvp
from ._transforms.custom_vjp import custom_vjp as custom_vjp
from ._transforms.fori_loop import fori_loop as fori_loop
from ._transforms.grad import (
    grad as grad,
    jvp as jvp,
    value_and_grad as value_and_grad,
    vjp as vjp,
)
from ._transforms.jacobians import hessian as hessian, jacfwd as jacfwd, jacrev as jacrev
from ._transforms.jit import jit as jit
from ._transforms.loops import for_loop as for_loop, scan as scan
from ._transforms.while_loop import while_loop as while_loop
from ._trees.broadcasting import broadcast as broadcast
from ._trees.bulk import (
    axes as axes,
    select as select,
    states as states,
    trainable as trainable,
    update as update,
)
from ._trees.packed import Packed as Packed, pack as pack
from ._trees.reaping import reap as reap
from ._trees.recording import freeze as freeze, record as record, written as written
from ._trees.saving import (
    deserialise_filter_spec as deserialise_filter_spec,
    serialise_filter_spec as serialise_filter_spec,
)


__version__ = "0.1.0"
