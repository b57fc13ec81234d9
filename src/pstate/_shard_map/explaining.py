"""The plan of a call over shards, as a table."""

from collections.abc import Sequence
from typing import Any

from .._calls.code import as_code
from .._calls.running import Run
from .._calls.signature import Described, Signature
from .._ground.values import nbytes, short_dtype
from .._mapping.explaining import Row, one_or_each, use_of
from .._trees.leaves import operand_mask
from .leaving import block_of
from .plan import ShardPlan


def rows_of(
    signature: Signature,
    described: Described,
    leaves: Sequence[Any],
    plan: ShardPlan,
    run: Run,
    outputs: Any,
) -> list[Row]:
    """The rows of one run."""
    written = {state.index: state for state in outputs.written}
    rows: list[Row] = []
    layout = signature.layout
    for i, is_array in enumerate(operand_mask(leaves)):
        slot = layout.slot_of_leaf[i]
        if not is_array or (slot is not None and i != slot.start):
            continue
        stop = i + 1 if slot is None else slot.stop
        key_path = layout.key_path_of_leaf[i] if slot is None else slot.key_path
        inputs = plan.leaves[i:stop]
        came = inputs[0]
        specs = one_or_each([as_code(given.spec) for given in inputs])
        out, reason, use = "", came.reason, ""
        if slot is not None:
            use = use_of(slot.index, came.split, run, written)
            state = written.get(slot.index)
            out = specs
            if state is not None:
                out = one_or_each([leaf.axis for leaf in state.leaves] or ["P()"])
                reason += f"; out: {state.why}"
        rows.append(
            Row(
                place=signature.place(key_path, described.names),
                kind="array" if slot is None else slot.kind.__name__,
                shape=" ".join(
                    f"{short_dtype(x.dtype)}[{','.join(map(str, block_of(x.shape, given.spec, plan)))}]"
                    for x, given in zip(leaves[i:stop], inputs, strict=True)
                ),
                axis_in=f"split over {', '.join(came.over)}" if came.over else specs,
                use=use,
                axis_out=out,
                reason=reason,
                mapped=any(given.spec for given in inputs),
                nbytes=sum(nbytes(leaf) for leaf in leaves[i:stop]),
            )
        )
    return rows
