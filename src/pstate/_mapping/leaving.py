"""The values that leave a lane, and along which axis.

A written state goes back by the first rule of `state_out_axes` that matches; else along the axis it
came in on, or would have if it was empty; else, if it is a `SownState`, along axis 0; else, where the
lanes agree on the value, without an axis; else as the policy says. States in the output follow
`state_out_axes`, then their kind (`NonBatchState`), then `out_axes`.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax.tree_util as jtu

from .._calls.notes import NEXT, arrays_of, refuse_tracers
from .._calls.running import Run
from .._ground.errors import BatchAxisError, BatchAxisWarning, UnmatchedFilterWarning
from .._ground.paths import Path, to_path, to_place
from .._states.keys import is_typed_key
from .._states.kinds import NonBatchState, SownState
from .._states.messages import kind_code, warn
from .._states.random_state import RandomState
from .._states.state import State, is_state
from .._trees.axis_specs import Rule
from .._trees.slots import Slot
from .._trees.unmatched import with_more
from .advice import (
    all_alike,
    broadcast_code,
    mapped_too,
    part_message,
    reducer_code,
    tree_of,
    update_code,
)
from .growth import grown
from .leaving_array import Leaving, by_out_axes, by_rule, checked
from .mapped_function import MappedFunction
from .plan import InPlan, Input
from .prefixes import spread_out_axes


#: The reason shown for a value that a call would refuse.
_REFUSED = "refused, see the note"
_SAME = "the same in all lanes"


@dataclasses.dataclass
class Written:
    """A state that goes back.

    `kept`: it goes back with the remainder of its split key, not with a lane's value. `soft`: the
    lanes only read it.
    """

    index: int
    treedef: Any
    leaves: list[Any]  # each a `Leaving`, or its counterpart for shards
    reason: str
    kept: bool = False
    soft: bool = False

    @property
    def why(self) -> str:
        """The reasons, in words."""
        return ", ".join(dict.fromkeys(leaf.reason for leaf in self.leaves)) or self.reason

    @property
    def axes(self) -> list[Any]:
        """The axis of each array, or a word."""
        of = lambda leaf: "reduced" if leaf.reducer is not None else leaf.axis
        return ["refused" if leaf.reason == _REFUSED else of(leaf) for leaf in self.leaves]


class Outputs:
    """The values that leave the lanes: the arrays of the output, and the written states."""

    def __init__(
        self,
        program: MappedFunction,
        leaves: Sequence[Any],
        plan: InPlan,
        run: Run,
        split: frozenset[int],
        lines: Mapping[int, str],
        lenient: bool = False,
    ):
        self._program = program
        self._options = program.options
        self._signature = program.signature
        self._leaves = leaves
        self._plan = plan
        self._run = run
        self._split = split
        self._lines = lines
        #: The errors that would be raised; only if `lenient` says to continue, as `explain` does.
        self.problems: list[str] = []
        self._lenient = lenient
        self._matched: set[Rule] = set()
        self._by_kind: dict[Any, bool] = {}
        try:
            self.leaving, self.out_leaves, self.out_treedef = self._output()
            self.written = [self._written(index) for index in sorted(set(run.writes) | split)]
        except BatchAxisError as error:
            raise with_more(error, self._unmatched()) from None

    def all_leaving(self) -> list[Leaving]:
        """The arrays that leave the lanes: those of the output, then those of written states."""
        return self.leaving + [leaf for state in self.written for leaf in state.leaves]

    def settle(self, which_differ: Callable[[list[Leaving]], list[bool]]) -> None:
        """Decide what depends on whether the lanes agree, and warn about likely mistakes.

        `which_differ` says for each of the given leaves whether it may differ between lanes.

        **Raises:** `BatchAxisError` if a value differs between lanes but was declared to be the
        same, or was not declared at all and the policy is `"raise"`; `ValueError` if it is an
        output.
        """
        asked = [leaf for leaf in self.all_leaving() if leaf.same_by or leaf.undeclared]
        if self._options.infers:
            differ = which_differ(asked)
        else:
            # Nothing is known about an unknown mapping function: undeclared values are refused, and
            # declared ones are left for that function to check.
            differ = [bool(leaf.undeclared) for leaf in asked]
        state_of = {id(leaf): state for state in self.written for leaf in state.leaves}
        for leaf, differs in zip(asked, differ, strict=True):
            if differs:
                state = state_of.get(id(leaf))
                with self._telling_the_line(None if state is None else state.index):
                    self._differs(leaf, [leaf] if state is None else state.leaves)
        self._warn_of_growth()
        for message in self._unmatched():
            warn(message, UnmatchedFilterWarning)

    def _refuse(self, leaf: Leaving, message: str) -> None:
        if not self._lenient:
            raise with_more(BatchAxisError(message), self._unmatched())
        leaf.axis, leaf.reason = 0, _REFUSED
        if message not in self.problems:
            self.problems.append(message)

    def _differs(self, leaf: Leaving, value: Sequence[Leaving]) -> None:
        """Refuse a leaf of a value that differs between lanes, or give the whole value lanes."""
        if leaf.same_by:
            return self._refuse(
                leaf,
                f"{leaf.same_by} says that it is the same in all lanes, but the value differs between "
                f"lanes. {leaf.fix} Or reduce it in the function, with axis_name='batch' and "
                "value = jax.lax.pmean(value, 'batch').",
            )
        assert leaf.undeclared is not None
        if self._options.policy == "raise":
            return self._refuse(leaf, leaf.undeclared())
        if leaf.axis is None:  # else another leaf of the value has differed
            for each in value:
                if each.undeclared is not None:
                    each.axis, each.reason = 0, f"policy {self._options.policy!r}"
            if self._options.policy == "warn":
                warn(leaf.undeclared(), BatchAxisWarning)
        return None

    # The output -----------------------------------------------------------------------------------

    def _output(self) -> tuple[list[Leaving], list[Any], Any]:
        out = self._run.out
        leaves, treedef = jtu.tree_flatten(out)
        axes = iter(spread_out_axes(out, self._options.out_axes))
        candidates: list[Leaving] = []
        for key_path, item in jtu.tree_flatten_with_path(out, is_leaf=is_state)[0]:
            place = f"`{to_place('out', key_path)}`"
            if isinstance(item, State):
                rule = self._match(to_path(key_path), item)
                for leaf in jtu.tree_leaves(item):
                    candidates.append(self._state_in_output(leaf, next(axes), rule, item, place))
            else:
                candidates.append(by_out_axes(item, next(axes), place))
        is_array = arrays_of(out, leaves)
        refuse_tracers(out, leaves, is_array)
        leaves = [NEXT if is_one else leaf for leaf, is_one in zip(leaves, is_array, strict=True)]
        leaving = [c for c, leaf in zip(candidates, leaves, strict=True) if leaf is NEXT]
        return leaving, leaves, treedef

    def _state_in_output(
        self, leaf: Any, axis: int | None, rule: Rule | None, state: State, place: str
    ) -> Leaving:
        place = f"{place} ({type(state).__name__})"
        if rule is not None:
            return by_rule(leaf, rule, place, kind_code(type(state)))
        if isinstance(state, NonBatchState):
            same_by, fix = f"The kind of {place}", "Give it another kind, ps.State(value)."
            return Leaving(leaf, None, "NonBatchState", same_by, fix)
        return by_out_axes(leaf, axis, place)

    # States that were written ---------------------------------------------------------------------

    def _written(self, index: int) -> Written:
        with self._telling_the_line(index):
            return self._state(index)

    @contextmanager
    def _telling_the_line(self, index: int | None) -> Iterator[None]:
        """Add to an error about a state the line in which it was written."""
        try:
            yield
        except BatchAxisError as error:
            if index is not None and index in self._lines:
                place = self._program.place(index)
                error.add_note(f"`{place}` was written here:\n{self._lines[index]}")
            raise

    def _state(self, index: int) -> Written:
        slot = self._signature.layout.slots[index]
        place = f"`{self._program.place(index)}` ({slot.kind.__name__})"
        rule = self._match(self._signature.path(index), slot.state(self._leaves))
        soft = index not in self._run.writes
        if soft or (index in self._split and (rule is None or rule.is_none)):
            # Whatever the lanes draw, the state keeps keys[0]. A key that lanes only read has still
            # been split, and must not be used again.
            return Written(index, slot.treedef, [], "keys[0] of the split", kept=True, soft=soft)
        leaves, treedef = jtu.tree_flatten(self._run.writes[index])
        came = self._plan.of(slot)
        if rule is not None:
            leaving = [by_rule(leaf, rule, place, kind_code(slot.kind)) for leaf in leaves]
            self._check_shapes(slot, treedef, leaving, place, declared=True)
            return Written(index, treedef, leaving, f"{rule}")
        empty = self._plan.empty.get(index)
        if empty is not None and empty.axis is not None:
            leaving = [checked(leaf, empty.axis, empty.reason, place) for leaf in leaves]
            return Written(index, treedef, leaving, empty.reason)
        inputs = self._inputs(slot, treedef, len(leaves))
        if any(given.axis is not None for given in inputs):
            reason, say = "as it came in", ft.partial(part_message, place, slot.kind)
            leaving = [
                checked(leaf, given.axis, reason, place)
                if given.axis is not None
                else Leaving(leaf, None, _SAME, undeclared=ft.partial(say, given.reason))
                for leaf, given in zip(leaves, inputs, strict=True)
            ]
            self._check_shapes(slot, treedef, leaving, place, declared=False)
            return Written(index, treedef, leaving, reason)
        if issubclass(slot.kind, NonBatchState):
            same_by, fix = f"The kind of {place}", "Give it another kind, ps.State(value)."
            leaving = [Leaving(leaf, None, "NonBatchState", same_by, fix) for leaf in leaves]
            return Written(index, treedef, leaving, "NonBatchState")
        if issubclass(slot.kind, SownState):
            leaving = [checked(leaf, 0, "SownState", place) for leaf in leaves]
            return Written(index, treedef, leaving, "SownState")
        message = ft.partial(self._undeclared_message, slot, came, leaves)
        leaving = [Leaving(leaf, None, _SAME, undeclared=message) for leaf in leaves]
        return Written(index, treedef, leaving, _SAME)

    def _inputs(self, slot: Slot, treedef: Any, n: int) -> Sequence[Input]:
        """How the leaves of a written value came in, as parts of the old value.

        **Raises:** `BatchAxisError` for a value of another structure, if the old one had several axes.
        """
        inputs = self._plan.leaves[slot.start : slot.stop]
        if treedef == slot.treedef or not inputs:
            return inputs
        if len({given.axis for given in inputs}) > 1:
            kind = kind_code(slot.kind)
            raise BatchAxisError(
                f"`{self._program.place(slot.index)}` ({slot.kind.__name__}) came in with parts along "
                f"different axes ({inputs[0].reason}) and was written with a value of another "
                f"structure, so its axis is not known. Declare it: state_out_axes={{0: {kind}}}."
            )
        return [inputs[0]] * n

    def _match(self, path: Path, state: State) -> Rule | None:
        for rule in self._options.rules_out:
            if rule.predicate(path, state):
                self._matched.add(rule)
                return rule
        return None

    def _undeclared_message(self, slot: Slot, came: Input | None, values: Sequence[Any]) -> str:
        kind = kind_code(slot.kind)
        how = f"without an axis ({came.reason})" if came is not None else "empty"
        n = self._plan.axis_size
        own = (
            f"Give each lane its own, with a leading axis of {n}: {self._give_lanes(slot, 0)} and "
            f"state_in_axes={{0: {kind}}}; or stack"
            if came is not None
            else "Stack"
        )
        reducer = "" if issubclass(slot.kind, RandomState) else reducer_code(values)
        reduce = f"; or reduce them: state_out_axes={{{reducer}: {kind}}}" if reducer else ""
        known = "differs" if self._options.infers else "may differ"
        return (
            f"`{self._program.place(slot.index)}` ({slot.kind.__name__}) came in {how} and was written "
            f"with a value that {known} between lanes, but no axis is declared for it. {own} the lanes' "
            f"values into it: state_out_axes={{0: {kind}}}{reduce}."
        )

    def _give_lanes(self, slot: Slot, axis: int) -> str:
        """The line that gives the lanes of the call to a state that came in without lanes."""

        def needs(other: Slot) -> bool:
            came = self._plan.of(other)
            return came is None or came.axis is None

        key = tree_of(self._signature, slot), slot.kind
        if key not in self._by_kind:  # a warning for each of many states asks for the same
            self._by_kind[key] = all_alike(self._signature, slot, needs)
        names, n = self._program.described.names, self._plan.axis_size
        return broadcast_code(self._signature, names, slot, axis, n, self._by_kind[key])

    # Shapes ---------------------------------------------------------------------------------------

    def _check_shapes(
        self, slot: Slot, treedef: Any, leaving: Sequence[Leaving], place: str, declared: bool
    ) -> None:
        """Refuse a lane's value whose shape has changed, so that it is not a lane of the old value.

        If an axis is declared for the way out, sizes may change: the buffer grows on purpose.
        """
        if treedef != slot.treedef:
            return  # another value on purpose
        inputs = self._plan.leaves[slot.start : slot.stop]
        for given, leaf, old in zip(inputs, leaving, self._leaves[slot.start : slot.stop], strict=True):
            if given.axis is None or leaf.axis is None or not hasattr(leaf.value, "shape"):
                continue
            own = list(old.shape)
            del own[given.axis]
            shape = tuple(leaf.value.shape)
            if shape != tuple(own) and not (declared and len(shape) == len(own)):
                fix = self._fix_of_shape(slot, given, old, shape)
                self._refuse(
                    leaf,
                    f"{place} came in along axis {given.axis} ({given.reason}) with shape "
                    f"{tuple(own)} in each lane, but was written with shape {shape}. {fix}",
                )

    def _fix_of_shape(self, slot: Slot, given: Input, old: Any, shape: tuple[int, ...]) -> str:
        whole = tuple(old.shape)
        names, axes = self._program.described.names, [each.axis for each in self._plan.leaves]
        kind, axis = kind_code(slot.kind), given.axis
        assert axis is not None
        n_own = len(shape) - len(whole)
        if given.ruled and n_own in (0, 1) and shape[n_own:] == whole:
            # The value that came in was for one lane, and was sliced along one of its own axes.
            n = shape[0] if n_own else self._plan.axis_size
            mapped = mapped_too(self._signature, self._leaves, axes, n) if n_own else ""
            if mapped is not None:
                code = broadcast_code(self._signature, names, slot, axis, n)
                also = f" and {mapped}" if mapped else ""
                return f"It has no axis for lanes, so one of its own was cut. Add one: {code}{also}."
        if len(shape) == len(whole) - 1:
            return (
                "Write a value of the shape that came in, or declare that the change is intended: "
                f"state_out_axes={{{axis}: {kind}}}."
            )
        if not slot.is_leaf or is_typed_key(old):
            return "Write a value of the shape that came in."
        axis %= len(whole)
        new = (*shape[:axis], self._plan.axis_size, *shape[axis:])
        code = update_code(self._signature, names, slot, new, old.dtype)
        return f"Write a value of the shape that came in, or give it the other shape first: {code}."

    # Slips ----------------------------------------------------------------------------------------

    def _warn_of_growth(self) -> None:
        if self._options.policy == "ignore":
            return
        for written in self.written:
            slot = self._signature.layout.slots[written.index]
            if issubclass(slot.kind, SownState):
                continue  # the next call does not start from what came in
            stop = slot.stop if written.treedef == slot.treedef else min(slot.start + 1, slot.stop)
            places = slice(slot.start, stop)
            found = grown(self._plan.leaves[places], self._leaves[places], written.leaves)
            if found is None:
                continue
            came, leaf = found
            assert leaf.axis is not None
            warn(
                f"`{self._program.place(written.index)}` ({slot.kind.__name__}) comes in without a "
                f"lane axis ({came.reason}) and goes out with one ({leaf.reason}), so it grows by an "
                f"axis on each call. Give it lanes, {self._give_lanes(slot, leaf.axis)}, and declare "
                f"how it comes in: state_in_axes={{{leaf.axis}: {kind_code(slot.kind)}}}.",
                BatchAxisWarning,
            )

    def _unmatched(self) -> list[str]:
        """The messages for filters that match no state."""
        made = [
            (to_path(key_path), item)
            for key_path, item in jtu.tree_flatten_with_path(self._run.out, is_leaf=is_state)[0]
            if isinstance(item, State)
        ]
        return self._program.unmatched(self._leaves, made)
