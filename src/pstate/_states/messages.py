"""What errors say of a state: where it stands, what happened to it, and what is right."""

import re
import sys
import warnings
from typing import Any

from .cell import Cell, Link
from .threads import local


def describe(state: Any) -> str:
    """A state in an error message: where it stands, if it knows, and what it is."""
    cell = _origin(state)
    return f"`{cell.place}` ({type(state).__name__})" if cell is not None else f"`{state!r}`"


def place_or_name(state: Any) -> str:
    """A state as code: where it stands, if it knows, and otherwise `state`."""
    cell = _origin(state)
    return cell.place if cell is not None else "state"


def _origin(state: Any) -> Cell | None:
    if state._cell is not None:
        return state._cell
    return state._tag.cell() if isinstance(state._tag, Link) else None


def frozen_message(state: Any) -> str:
    if _origin(state) is not None:
        return (
            f"{describe(state)} was written through a changed copy of its live tree (by "
            "jax.tree.map, a raw transform, or eqx.tree_at), so the write would be lost. Write to "
            "the live tree itself, or record the copy:\n"
            "    out, copied = ps.pure(f)(copied)"
        )
    original = _original_message(state)
    if original:
        return original
    return (
        f"{describe(state)} was written outside a recording, so the write would be lost. States "
        "are written in a function that `pure` runs, which gives the changed tree back:\n"
        "    out, tree = ps.pure(f)(tree, x)\n"
        "or inside a recording of the tree that holds it, through the live copy:\n"
        "    with ps.record(tree) as live:\n"
        "        live.count.value += 1\n"
        "    tree = ps.freeze(live)"
    )


def _original_message(state: Any) -> str:
    """What to say of a write to the original of a tree that is being recorded."""
    for recording in reversed(local.recordings):
        for index, frozen in enumerate(recording.frozen):
            if frozen is not state:
                continue
            if recording.data is not None:
                return recording.data(index) or ""
            place = recording.place_of(index)
            start = (
                f"`{place}` ({type(state).__name__}) was written on the original, which "
                f"{recording.title} leaves as it is, so the write would be lost. Write to the live copy"
            )
            if recording.original is None:
                return f"{start}, which is what the function received: its argument `{place}`."
            live = re.sub(r"^\w+", "live", place)
            return f"{start}:\n    with {recording.title} as live:\n        {live}.value = ..."
    return ""


def empty_message(state: Any) -> str:
    return (
        f"{describe(state)} is empty and was read. Fill it first, in init_state or by "
        f"tree = ps.update(tree, {{path: value}}). Trees masked by eqx.partition, eqx.filter, optax or "
        "gradients hold empty states too: combine them first, eqx.combine(dynamic, static)."
    )


def kind_code(kind: type) -> str:
    """A kind of state as code: `ps.HiddenState`, or `Membrane` for a user's own."""
    own = kind.__module__.partition(".")[0] == "pstate"
    return f"ps.{kind.__name__}" if own else kind.__name__


#: Packages whose frames a warning passes over, to point at the user's line.
_PASSED_OVER = ("pstate", "jax", "equinox", "jaxtyping", "beartype")


def warn(message: str, category: type[Warning]) -> None:
    """Warn, pointing at the line outside pstate and JAX that led here."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _PASSED_OVER:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
