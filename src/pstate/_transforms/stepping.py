"""The common base of `while_loop` and `fori_loop`: a loop that keeps only its last step.

The states that the functions are bound to are held from step to step, and so is the carry. The JAX
loop that runs it gets `init`, and returns the same structure after the last step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.flat_function import FlatFunction
from .._calls.running import Run, run_body
from .._calls.signature import ARGS, FN
from .._states.cell import Cell
from .._trees.flattening import unflatten_frozen
from .._trees.leaves import operand_mask
from .carried_states import carried_states, refuse_changed_states
from .carry import CARRY, data_of, new_leaves


class Stepping:
    """A loop over the leaves of one call."""

    def __init__(self, body: FlatFunction, leaves: list[Any]):
        self.body = body
        self.leaves = leaves
        signature = body.signature
        self.held = carried_states(body, lambda slot: signature.argument_of_slot[slot.index][0] == FN)
        mask = operand_mask(leaves)
        key_paths = signature.layout.key_path_of_leaf
        self.carried = [
            i
            for i in range(signature.n_fn, len(leaves))
            if mask[i] and signature.argument(key_paths[i]) == CARRY
        ]
        self.writes: frozenset[int] = frozenset()
        self.reads: frozenset[int] = frozenset()
        self.echoed: tuple[tuple[int, str], ...] = ()

    @property
    def init(self) -> tuple[list[list[Any]], list[Any]]:
        """The input of the first step."""
        return self.held.values(self.leaves), [self.leaves[i] for i in self.carried]

    @property
    def operands(self) -> tuple[int, ...]:
        """The leaves of the call that are in `init`, in order."""
        return (*self.held.leaf_indices(), *self.carried)

    def call(
        self,
        which: int,
        loop: Any,
        call: Callable[..., Any],
        refuse: Callable[[Cell], None] | None = None,
    ) -> Run:
        """Run a function on the input of a step, by `call`; `refuse` is as for a recording."""
        body, own = self.body, self._own(loop)
        recording = body.recording(own, body.aliases_within(which), refuse, data_of(body))
        run = run_body(body.signature, own, recording, body.place_of, call)
        self.reads |= {self.held.representative.get(i, i) for i in run.reads}
        return run

    def next(self, run: Run, loop: Any) -> tuple[list[list[Any]], list[Any]]:
        """The input of the next step, after this run of the body."""
        refuse_changed_states(self.body, self.held, run, self.leaves)
        self.writes |= {self.held.representative[i] for i in run.writes}
        self.echoed = run.echoed
        newest = [jtu.tree_leaves(value) for value in self.held.newest(run, self._own(loop))]
        return newest, new_leaves(self.body, self.leaves, self.carried, run.out)

    def run(self, last: Any) -> Run:
        """The results of the loop, from the input that a step after the last would get."""
        values, carry = last
        writes = {
            slot.index: slot.treedef.unflatten(value)
            for slot, value in zip(self.held.slots, values, strict=True)
            if slot.index in self.writes
        }
        tree = unflatten_frozen(self.body.signature.treedef, self._with(carry))
        return Run(tree[ARGS][0], writes, self.reads, self.echoed, None)

    def _own(self, loop: Any) -> list[Any]:
        values, carry = loop
        own = self._with(carry)
        self.held.put(own, self.body.signature.layout.slots, values)
        return own

    def _with(self, carry: Sequence[Any]) -> list[Any]:
        own = list(self.leaves)
        for i, value in zip(self.carried, carry, strict=True):
            own[i] = value
        return own
