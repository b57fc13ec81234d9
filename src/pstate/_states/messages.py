"""What errors say about a state: where it is, what happened to it, and what to write instead."""

import re
import sys
import warnings
from typing import Any

from .._ground.tracebacks import users_frame
from .cell import Cell, Link
from .raw_transforms import copy_message
from .threads import local


def describe(state: Any) -> str:
    """A state in an error message: its place, if known, and what it is."""
    cell = _origin(state)
    return f"`{cell.place}` ({type(state).__name__})" if cell is not None else f"`{state!r}`"


def place_or_name(state: Any) -> str:
    """A state as code: its place, if known, and otherwise `state`."""
    cell = _origin(state)
    return cell.place if cell is not None else "state"


def _origin(state: Any) -> Cell | None:
    if state._cell is not None:
        return state._cell
    return state._tag.cell() if isinstance(state._tag, Link) else None


def frozen_message(state: Any) -> str:
    origin = _origin(state)
    if origin is not None:
        return copy_message(origin.place, type(state).__name__)
    original = _original_message(state) or _foreign_message(state, "written")
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
    """The message for a write to the original of a tree that is being recorded."""
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


def draw_message(state: Any) -> str:
    """The message for a draw that is not recorded."""
    return (
        _foreign_message(state, "drawn from")
        or f"`{state!r}` was drawn from outside a recording. A draw replaces the key, so it happens in "
        "a function that `pure` runs, which gives the advanced state back:\n"
        f"    draw, rng = ps.pure(lambda rng: rng.normal())(rng)\n{WITHOUT_DRAWS}"
    )


#: The other thing that may be meant when a state is drawn from.
WITHOUT_DRAWS = (
    "If nothing should be drawn, as in dropout in evaluation: model = eqx.nn.inference_mode(model)."
)


def _foreign_message(state: Any, what: str) -> str:
    """The message for a frozen state in a running function that got live ones."""
    if not local.recordings or local.recordings[-1].original is not None:
        return ""
    return (
        f"`{state!r}` was {what} in a function of {local.recordings[-1].title}, but did not come in "
        "through its arguments: it was made in the function, or read by closure. Take a state of the "
        "tree from the argument. One that is made here is not live: make it with its value, "
        "ps.State(value), or make another, state = state.replace(value)."
    )


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


def warn(message: str, category: type[Warning]) -> None:
    """Warn, pointing at the line outside pstate and JAX that led here."""
    level, _ = users_frame(sys._getframe())
    warnings.warn(message, category, stacklevel=level)
