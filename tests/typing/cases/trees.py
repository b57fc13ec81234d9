"""Functions of trees give back what they are given."""

from typing import reveal_type

import jax
import jax.random as jr
from jax.sharding import PartitionSpec
from models import m, make

import pstate as ps


reveal_type(ps.update(m, {("calls",): 3}))  # is: Norm
reveal_type(ps.update(m, ps.states(m, ps.ParamState)))  # is: Norm
reveal_type(ps.update(ps.pack(m), {"calls": 3}))  # is: Packed[Norm]
reveal_type(ps.states(m, ps.ParamState))  # is: dict[tuple[Any, ...], ParamState[Array]]  # mypy: dict[tuple[Any, ...], ParamState[Any]]
reveal_type(ps.states(m, (ps.ParamState, "tag")))  # is: dict[tuple[Any, ...], State[Any]]
reveal_type(ps.states({"a": m}))  # is: dict[tuple[Any, ...], State[Any]]
reveal_type(ps.broadcast(m, {0: ps.ShortTermState}, 4))  # is: Norm
reveal_type(ps.trainable(m))  # is: Norm
reveal_type(ps.trainable(m, wrt=ps.ParamState))  # is: Norm
reveal_type(ps.select(m))  # is: Norm
reveal_type(ps.select(ps.pack(m), ps.ParamState))  # is: Norm
reveal_type(ps.reap({"seen": ps.SownState(0)}))  # is: tuple[dict[tuple[Any, ...], Any], dict[str, SownState[Array]]]
reveal_type(ps.freeze(m))  # is: Norm
reveal_type(ps.freeze({"a": ps.State(0)}))  # is: dict[str, State[Array]]
mesh = jax.make_mesh((1,), ("data",))
whole = PartitionSpec()  # error: ; no-untyped-call
reveal_type(ps.shard(m, whole, mesh))  # is: Norm
reveal_type(ps.sharded_init(make, {whole: ...}, mesh)(jr.key(0)))  # is: Norm


class Counter(ps.nn.Module):
    """A module whose states are made later."""

    total: ps.ShortTermState = ps.ShortTermState()

    def init_state(self, start: float = 0.0) -> None:
        self.total.value = start


reveal_type(ps.nn.init_all_states(Counter()))  # is: Counter
reveal_type(ps.vmap2_new_states(Counter(), {}, axis_size=2)[0])  # is: Counter
