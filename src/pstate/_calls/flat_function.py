"""The function for calls of one structure, independent of any arrays.

Static leaves are part of the program, so what runs the function is built from the structure of a call
and its static leaves, and then takes arrays.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .._ground.paths import to_place
from .._states.cell import Cell, Recording
from .._trees.guard import Guard
from .call import Call
from .callables import anchor_of, anchors_of
from .presenting import Source, presented
from .running import Run, run_body
from .signature import FN, Described, Signature


#: A placeholder for the anchor among the static leaves of a program, which must not keep it alive.
ANCHOR = object()


def anchor_ref(anchor: Any) -> Callable[[], Any]:
    """A weak reference, if there can be one."""
    try:
        return weakref.ref(anchor)
    except TypeError:
        return lambda: anchor


@dataclasses.dataclass(eq=False)
class FlatFunction:
    """The function for calls of one structure.

    `statics` lists the leaves that are not operands, with their indices.
    """

    signature: Signature
    statics: tuple[tuple[int, Any], ...]
    anchor: Any
    aliases: tuple[tuple[int, int], ...]
    described: Described

    def leaves(self, arrays: Sequence[Any]) -> list[Any]:
        """All leaves of the call, from its operands."""
        result = list(arrays)
        for index, leaf in self.statics:
            result.insert(index, self.anchor() if leaf is ANCHOR else leaf)
        return result

    def place(self, index: int) -> str:
        """A slot as code, `counter.layers[0].count`."""
        return self.place_of(self.signature.layout.slots[index].key_path)

    def place_of(self, key_path: Sequence[Any]) -> str:
        """A key path of the call as code."""
        return self.signature.place(key_path, self.described.names)

    def recording(
        self,
        leaves: Sequence[Any],
        aliases: tuple[tuple[int, int], ...] | None = None,
        refuse: Callable[[Cell], None] | None = None,
        data: Callable[[int], str | None] | None = None,
        lines: dict[int, str] | None = None,
    ) -> Recording:
        """A recording for one run. Filters and messages see the states as they came in.

        `refuse` raises if the caller does not allow a write for another reason; `data` and `lines`
        are those of the recording.
        """
        signature = self.signature
        aliases = self.aliases if aliases is None else aliases
        guard = Guard(
            self.place,
            signature.path,
            lambda index: signature.layout.slots[index].state(leaves),
            aliases,
        )

        def check(cell: Cell) -> None:
            if refuse is not None:
                refuse(cell)
            guard(cell)

        title = self.described.fn
        return Recording(self.place, guard=check, title=title, data=data, aliases=aliases, lines=lines)

    def aliases_within(self, which: int) -> tuple[tuple[int, int], ...]:
        """The aliases that a run of one of several callables can see."""
        arguments = self.signature.argument_of_slot
        seen = [group != FN or position == which for group, position in arguments]
        return tuple((a, b) for a, b in self.aliases if seen[a] and seen[b])

    def presented(
        self,
        function: Callable[..., Any],
        operands: Sequence[int] | None = None,
        *,
        which: int = 0,
        name: str | None = None,
        more: Sequence[str] = (),
    ) -> Callable[..., Any]:
        """`function`, as a new object that JAX's messages name like the user's function.

        `operands` are the leaves of the call that are its arguments, in order; by default all
        non-static ones. `which` is the index among several callables; `more` names arguments after
        the operands.
        """
        source = self.described.sources[which]

        def names() -> list[str]:
            chosen = self._operands() if operands is None else operands
            return [*map(self._place_of_leaf, chosen), *more]

        return presented(function, source, name or source.__name__, names)

    def _operands(self) -> list[int]:
        static = {index for index, _ in self.statics}
        return [i for i in range(len(self.signature.layout.key_path_of_leaf)) if i not in static]

    def _place_of_leaf(self, index: int) -> str:
        """A leaf as code, `counter.layers[0].count.value`."""
        layout = self.signature.layout
        slot, key_path = layout.slot_of_leaf[index], layout.key_path_of_leaf[index]
        if slot is None:
            return self.place_of(key_path)
        return to_place(f"{self.place(slot.index)}.value", key_path[len(slot.key_path) :])

    def run(self, leaves: Sequence[Any]) -> Run:
        """Run the function on all leaves of a call."""
        return run_body(self.signature, leaves, self.recording(leaves), self.place_of)


def flat_function_of(
    call: Call, fn_code: str, cls: type = FlatFunction, *more: Any, first_is_tree: bool = False
) -> Any:
    """A `FlatFunction`, or a subclass of it with `more` fields, for a call."""
    anchor = anchor_of(call.fn)
    statics = tuple(
        (i, ANCHOR if call.leaves[i] is anchor else call.leaves[i]) for i in call.kinds.statics
    )
    sources = tuple(map(Source, anchors_of(call.fn)))
    described = Described(call.names, fn_code, sources, first_is_tree)
    return cls(call.signature, statics, anchor_ref(anchor), call.aliases, described, *more)
