"""The plan of a call, as a table."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .._calls.running import Run
from .._calls.signature import Described, Signature
from .._ground.values import nbytes, short_dtype
from .._looking.tables import Table
from .._trees.leaves import operand_mask
from .._trees.slots import Slot
from .leaving import Outputs
from .plan import InPlan, Input


@dataclasses.dataclass(frozen=True)
class Row:
    """One state, or one array outside states."""

    place: str
    kind: str
    shape: str
    axis_in: str
    use: str
    axis_out: str
    reason: str
    mapped: bool
    nbytes: int


_HEADER = ("place", "kind", "per {}", "in", "use", "out", "because")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a mapping decided for one call. Prints as a table; notebooks show HTML.

    `rows` has one entry for each state and each array outside states; `notes` says which filters
    matched nothing or were shadowed, and which writes a call would refuse. `part` is what one run
    of the body stands for, a lane or a shard.
    """

    title: str
    axis_size: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    part: str = "lane"

    @property
    def bytes_mapped(self) -> int:
        """The bytes of mapped arrays, of all lanes together."""
        return sum(row.nbytes for row in self.rows if row.mapped)

    @property
    def bytes_broadcast(self) -> int:
        """The bytes of arrays that all lanes share."""
        return sum(row.nbytes for row in self.rows if not row.mapped)

    def _table(self) -> Table:
        rows = self.rows
        return Table(
            f"{self.title}, {self.axis_size} {self.part}s",
            tuple(cell.format(self.part) for cell in _HEADER),
            [(r.place, r.kind, r.shape, r.axis_in, r.use, r.axis_out, r.reason) for r in rows],
            closing=(f"{self.bytes_mapped:,} bytes mapped, {self.bytes_broadcast:,} bytes broadcast",),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return self._table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table().html()


def rows_of(
    signature: Signature,
    described: Described,
    leaves: Sequence[Any],
    plan: InPlan,
    run: Run,
    outputs: Outputs,
) -> list[Row]:
    """The rows of one run."""
    written = {state.index: state for state in outputs.written}
    rows: list[Row] = []
    arrays = operand_mask(leaves)
    layout = signature.layout
    for i, is_array in enumerate(arrays):
        slot = layout.slot_of_leaf[i]
        if not is_array or (slot is not None and i != slot.start):
            continue
        stop = i + 1 if slot is None else slot.stop
        key_path = layout.key_path_of_leaf[i] if slot is None else slot.key_path
        inputs = plan.leaves[i:stop]
        came = inputs[0]
        axis_out, reason, use = "", came.reason, ""
        if slot is not None:
            use = use_of(slot.index, came.split, run, written)
            state = written.get(slot.index)
            axis_out = _axes([given.axis for given in inputs] if state is None else state.axes)
            reason += "" if state is None else f"; out: {state.why}"
        rows.append(
            Row(
                place=signature.place(key_path, described.names),
                kind="array" if slot is None else slot.kind.__name__,
                shape=" ".join(
                    _per_lane(leaf, given) for leaf, given in zip(leaves[i:stop], inputs, strict=True)
                ),
                axis_in="split" if came.split else _axes([given.axis for given in inputs]),
                use=use,
                axis_out=axis_out,
                reason=reason,
                mapped=any(given.axis is not None for given in inputs),
                nbytes=sum(nbytes(leaf) for leaf in leaves[i:stop]),
            )
        )
    filled = [layout.slots[i] for i in sorted(written) if i in plan.empty]
    return rows + [_row_of_empty(signature, described, plan, run, slot, written) for slot in filled]


def _row_of_empty(
    signature: Signature,
    described: Described,
    plan: InPlan,
    run: Run,
    slot: Slot,
    written: dict[int, Any],
) -> Row:
    came, state = plan.empty[slot.index], written[slot.index]
    return Row(
        place=signature.place(slot.key_path, described.names),
        kind=slot.kind.__name__,
        shape="empty",
        axis_in="",
        use=use_of(slot.index, False, run, written),
        axis_out=_axes(state.axes),
        reason=f"{came.reason}; out: {state.why}",
        mapped=False,
        nbytes=0,
    )


def _axes(axes: Sequence[Any]) -> str:
    """The axes of the arrays of a state: one, if they are the same."""
    texts = ["shared" if axis is None else str(axis) for axis in axes] or ["shared"]
    return one_or_each(texts)


def one_or_each(texts: Sequence[str]) -> str:
    """What is said of each array of a state, in one text."""
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def use_of(index: int, is_split: bool, run: Run, written: dict[int, Any]) -> str:
    """What a function does with the state of a slot, in words."""
    uses = ["read"] * (index in run.reads)
    uses += ["split"] * (is_split and index in written)
    uses += ["written"] * (index in run.writes)
    return ", ".join(uses) or "unused"


def _per_lane(leaf: Any, given: Input) -> str:
    shape = list(leaf.shape)
    if given.axis is not None:
        del shape[given.axis]
    return f"{short_dtype(leaf.dtype)}[{','.join(map(str, shape))}]"


def notes_of(
    rules_of: Mapping[str, Sequence[Any]], states: Sequence[tuple[Any, Any]]
) -> tuple[str, ...]:
    """Which filters match nothing, and which are shadowed by an earlier one, by option."""
    notes: list[str] = []
    for name, rules in rules_of.items():
        for i, rule in enumerate(rules):
            mine = [each for each in states if rule.predicate(*each)]
            if not mine and rule.wants_a_match:
                notes.append(f"{name} {rule} matches no state")
            elif mine and all(any(r.predicate(*each) for r in rules[:i]) for each in mine):
                notes.append(f"{name} {rule} is shadowed by an earlier filter")
    return tuple(notes)
