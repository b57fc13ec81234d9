"""The program of a mapping: a flat function of arrays that runs the body once, in lanes.

It is built from a call's structure and static leaves, and from the options of the mapping. Axes are
planned when it runs, because they depend on shapes. Called directly, it is inlined into whatever
trace is running; called through `jax.jit`, it is traced once for each set of shapes.
"""

from collections.abc import Sequence
from typing import Any

from .direct import DirectLanes
from .lanes import Meta
from .mapped_function import MappedFunction
from .replay import Replay


class Program(MappedFunction):
    """A mapping of one function, for calls of one structure: a flat function of arrays."""

    def __call__(self, *arrays: Any) -> tuple[list[Any], Meta]:
        return self._run(arrays, wants_rows=False)

    def explained(self, *arrays: Any) -> tuple[list[Any], Meta]:
        """The same, with the rows of `explain`, which an ordinary run does not need."""
        return self._run(arrays, wants_rows=True)

    def replay(self, leaves: list[Any]) -> Replay:
        """The body traced for the leaves of a call, to be run on others of the same shapes."""
        replay = Replay(self, leaves, self.plan(leaves))
        replay.prepare()
        return replay

    def _run(self, arrays: Sequence[Any], wants_rows: bool) -> tuple[list[Any], Meta]:
        leaves = self.leaves(arrays)
        plan = self.plan(leaves)
        if self.options.replays(plan.axis_size):
            return Replay(self, leaves, plan, wants_rows).run()
        return DirectLanes(self, leaves, plan, wants_rows).run()
