"""Running the function of a call with live states, and the results."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.tree_util as jtu
import numpy as np

from .._ground.errors import CapturedStateError
from .._ground.paths import to_place
from .._states.cell import Recording
from .._states.state import State, is_state
from .._states.threads import Threaded, listening, local
from .._trees.aliases import find_aliases
from .._trees.flattening import collect, thaw
from .._trees.lending import given_back
from .._trees.recording import freeze
from .._trees.slots import states_of
from .edits import Edit, Snapshot, refuse_edit
from .signature import FN, Signature, bare


#: The writes of a run: the new value of each written state, by slot index.
Writes = dict[int, Any]

#: A slot whose state is also in the output, and its place there.
Echo = tuple[int, str]


@dataclasses.dataclass
class Run:
    """The results of one run of the body.

    `out` has frozen states. `writes` and `reads` are by slot index. `echoed` pairs each slot whose
    state is also in the output with its place there, which is an error if the slot is threaded.
    `edited` has the containers, in arguments without states, that were edited in place, which is an
    error if the argument is given back.
    """

    out: Any
    writes: Writes
    reads: frozenset[int]
    echoed: tuple[Echo, ...]
    aliased_out: tuple[str, str] | None
    edited: tuple[Edit, ...] = ()


def run_body(
    signature: Signature,
    leaves: Sequence[Any],
    recording: Recording,
    place: Callable[[Sequence[Any]], str],
    call: Callable[..., Any] | None = None,
) -> Run:
    """Run the function of a call on leaves, with live states.

    `place` returns a key path of the call as code. `call` takes `(fn, args, kwargs)` and calls the
    function in some other way. The recording is closed when this returns or raises.

    **Raises:** `FrozenStateError` for a container that was edited in place, in an argument with states.
    """
    ok = False
    try:
        arguments = thaw(signature.layout, leaves, recording)
        snapshot = signature.containers.snapshot(arguments) if signature.containers else None
        running = _threaded(signature)
        if running is not None:
            recording.sources = running.call.states
        with listening(running):
            if call is None:
                fn, args, kwargs = arguments
                out = fn(*map(bare, args), **{name: bare(x) for name, x in kwargs.items()})
            else:
                out = call(*arguments)
        edited = () if snapshot is None else _edits(snapshot, signature, recording, place)
        ok = True
    finally:
        cells = recording.cells
        recording.close(check=ok)
    writes = {cell.index: cell.value for cell in cells if cell.written}
    _refuse_stale(signature, writes, recording)
    reads = frozenset(cell.index for cell in cells if cell.read)
    found, _, states_out = collect(out)
    if any(isinstance(leaf, np.ndarray) for leaf in found):
        out = jtu.tree_map(given_back, out, is_leaf=is_state)
    if not states_out:
        return Run(out, writes, reads, (), None, edited)
    states = states_of(out)  # packed trees are frozen, and their states have no places of their own
    echoed, aliased = _echoed(out, states, recording), _aliased(out, states)
    return Run(freeze(out), writes, reads, echoed, aliased, edited)


def _threaded(signature: Signature) -> Threaded | None:
    """The call of this signature that is being run, if states are threaded through it."""
    running = local.call
    return running if running is not None and running.call.signature == signature else None


def _refuse_stale(signature: Signature, writes: Collection[int], recording: Recording) -> None:
    """Raise if a state that the call threads was read by closure, and is written."""
    running = _threaded(signature)
    index = None if running is None else running.stale(writes)
    if running is not None and index is not None:
        place = recording.place_of(index)
        root = signature.root(index, running.call.names)
        kind = signature.layout.slots[index].kind.__name__
        raise CapturedStateError(
            f"`{place}` ({kind}) is written by a function of {recording.title}, and was also read "
            f"through a closure: from the `{root}` outside, which has the value from before and goes "
            f"stale. Read it from the `{root}` that the function gets; if it gets none, bind the "
            f"function to it: ft.partial(f, {root})."
        )


def _edits(
    snapshot: Snapshot,
    signature: Signature,
    recording: Recording,
    place: Callable[[Sequence[Any]], str],
) -> tuple[Edit, ...]:
    """The containers that were edited in place, if nothing is lost by it."""
    edited = tuple(snapshot.edits(signature.argument))
    if not edited:
        return ()
    data = recording.data or (lambda index: None)
    live = {a for i, a in enumerate(signature.argument_of_slot) if data(i) is None}
    for edit in edited:
        if edit[0] in live or (edit[0][0] == FN and signature.has_carrier):
            refuse_edit(edit, place, recording.title)
    return edited


def _echoed(out: Any, states: Sequence[State], recording: Recording) -> tuple[Echo, ...]:
    mine = [
        (i, s._cell.index)
        for i, s in enumerate(states)
        if s._cell is not None and s._cell.recording is recording and s._peek() is not None
    ]
    if not mine:
        return ()
    places = _places_in_output(out)
    return tuple((index, places[i]) for i, index in mine)


def _aliased(out: Any, states: Sequence[State]) -> tuple[str, str] | None:
    pairs = find_aliases(states)
    if not pairs:
        return None
    places = _places_in_output(out)
    return places[pairs[0][0]], places[pairs[0][1]]


def _places_in_output(out: Any) -> list[str]:
    items = jtu.tree_flatten_with_path(out, is_leaf=is_state)[0]
    return [to_place("out", key_path) for key_path, item in items if isinstance(item, State)]
