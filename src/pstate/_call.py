"""A call taken apart into leaves, slots and a static part, and put together again.

Everything that runs a stateful function, `pure` and each transform, does the same three steps: flatten
`(callable, args, kwargs)`; run something on the leaves that says which states were written; then
either give the changed arguments back (`pure`) or write into the live states that came in.

Invariants:

- What was not written comes back as the very leaf objects that came in.
- A write is returned, or written into a live state, or refused. Refusals come before any write.
"""

import dataclasses
import functools as ft
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu

from ._callable import (
    carrier_depth,
    carrier_of,
    parameters,
    restore,
)
from ._cell import Recording
from ._errors import AliasedStateError, FrozenStateError, StateError
from ._layout import Layout, find_aliases, layout_of
from ._leaves import static_key
from ._messages import describe
from ._paths import Path, to_path, to_place
from ._record import Guard, freeze, root_name
from ._state import State, collect, is_state, make_frozen, thaw, unflatten_frozen
from ._value import copy, is_leaf


class Static:
    """An argument that is part of the program. A pytree without leaves.

    **Raises:** `TypeError` where the value is unhashable.
    """

    __slots__ = ("_key", "value")

    def __init__(self, value: Any):
        self._key = static_key(value)
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


jtu.register_pytree_node(Static, lambda static: ((), static), lambda static, _: static)


def _bare(argument: Any) -> Any:
    return argument.value if type(argument) is Static else argument


_cell_of = operator.attrgetter("_cell")

#: What a run wrote: the new value of each written state, by slot index.
Writes = dict[int, Any]


_FN, _ARGS, _KWARGS = range(3)


class Signature:
    """The static side of a call: what its structure alone says about arguments and places."""

    def __init__(self, treedef: Any):
        self.treedef = treedef
        self.layout: Layout = layout_of(treedef)
        fn, args, kwargs = unflatten_frozen(treedef, range(treedef.num_leaves))
        self._carrier = carrier_of(fn)
        self._carrier_root = 1 + carrier_depth(fn)
        self.n_args = len(args)
        self.keywords = tuple(kwargs)
        self.has_carrier = self._carrier is not None
        #: For each slot, the argument that it stands in: `(group, position or name)`.
        self.argument_of_slot = tuple(self.argument(slot.key_path) for slot in self.layout.slots)

    def argument(self, key_path: Sequence[Any]) -> tuple[int, Any]:
        """Which argument a key path of the call leads into: `(group, position or name)`."""
        group = key_path[0].idx
        return (group, None) if group == _FN else (group, to_path(key_path[1:2])[0])

    def within(self, key_path: Sequence[Any]) -> tuple[Any, ...]:
        """The key path within its argument."""
        return tuple(key_path[self._carrier_root if key_path[0].idx == _FN else 2 :])

    def path(self, index: int) -> Path:
        """The path of a slot within its argument, for filters."""
        return to_path(self.within(self.layout.slots[index].key_path))

    def place(self, key_path: Sequence[Any], names: Sequence[str]) -> str:
        """A key path as code. `names` are the names of the positional parameters."""
        group, which = self.argument(key_path)
        root: Any
        if group == _FN:
            root = root_name(self._carrier) if self.has_carrier else "function"
        elif group == _KWARGS:
            root = which
        else:
            root = names[which] if which < len(names) else f"args[{which}]"
        return to_place(root, self.within(key_path))


class Call:
    """One call of a stateful function.

    `leaves`, `treedef` and `states` are those of `(fn, args, kwargs)`. Leaves may be deferred values.
    """

    __slots__ = ("_signature", "aliases", "args", "fn", "kwargs", "leaves", "states", "treedef")

    def __init__(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.leaves, self.treedef, self.states = collect((fn, args, kwargs))
        self.aliases = find_aliases(self.states)
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = signature_of(self.treedef)
        return self._signature

    @property
    def names(self) -> list[str]:
        return parameters(self.fn)

    def place(self, index: int) -> str:
        """A slot as code, `counter.layers[0].count`."""
        signature = self.signature
        return signature.place(signature.layout.slots[index].key_path, self.names)

    def guard(self, writes: Any = ...) -> Guard:
        """What recordings of this call refuse."""
        return Guard(
            self.place,
            lambda index: self.signature.path(index),
            lambda index: self.states[index],
            self.aliases,
            writes,
        )

    def code(self, fn_code: str, written: int) -> str:
        """The call through `pure` that gives back the state of a slot, as a line of code."""
        names = [*self.names, *(f"arg{i}" for i in range(len(self.names), len(self.args)))]
        passed = names[: len(self.args)]
        signature = self.signature
        group, which = signature.argument(signature.layout.slots[written].key_path)
        keywords = [name for name in self.kwargs if group != _KWARGS or name != which]
        if group == _KWARGS:  # what is given back is passed by position
            which, passed = len(passed), [*passed, which]
        shown = ", ".join([*passed, *(f"{name}={name}" for name in keywords)])
        if group == _FN:
            return f"out, {root_name(carrier_of(self.fn))} = ps.pure({fn_code})({shown})"
        default = not signature.has_carrier and which == 0
        argnums = "" if default else f", argnums={which}"
        return f"out, {passed[which]} = ps.pure({fn_code}{argnums})({shown})"

    def refuse_deleted(self, fn_code: Callable[[], str]) -> None:
        """Raise if a buffer of the call was donated before."""
        for leaf, key_path in zip(self.leaves, self.signature.layout.key_path_of_leaf, strict=True):
            if isinstance(leaf, jax.Array) and leaf.is_deleted():
                place = self.signature.place(key_path, self.names)
                raise StateError(
                    f"`{place}` was donated to an earlier call and its buffer is gone, so "
                    f"{fn_code()} cannot read it. Go on with the tree that the earlier call gave back, "
                    "or do not donate: leave donate and donate_argnums out."
                )

    # Putting together ---------------------------------------------------------------------------

    def write_back(self, writes: Writes, fn_code: Callable[[], str]) -> None:
        """Write what a run wrote into the live states that came in.

        **Raises:** `FrozenStateError` where a written state came in frozen.
        """
        if not writes:
            return
        frozen = [index for index in writes if self.states[index]._cell is None]
        if frozen:
            index = frozen[0]
            raise FrozenStateError(
                f"`{self.place(index)}` ({type(self.states[index]).__name__}) was written, and nobody "
                "takes the new value: the function was called outside `pure` and outside a "
                f"recording. Take the changed tree back:\n    {self.code(fn_code(), index)}"
            )
        cells = {index: self.states[index]._cell for index in writes}
        for index, cell in cells.items():
            assert cell is not None
            cell.check_writable(type(self.states[index]).__name__)
        for index, cell in cells.items():
            assert cell is not None
            cell.put(copy(writes[index]))

    def updated_carrier(self, writes: Writes) -> Any:
        """The carrier of the callable, with the writes in it."""
        fn = self._rebuilt((_FN,), self.fn, writes)
        return restore(carrier_of(fn))

    def updated_argument(self, position: int, writes: Writes) -> Any:
        """A positional argument, with the writes in it."""
        argument = self.args[position]
        if type(argument) is Static:
            return argument.value
        return self._rebuilt((_ARGS, position), argument, writes)

    def _rebuilt(self, where: tuple[int, ...], subtree: Any, writes: Writes) -> Any:
        argument = (where[0], where[1] if len(where) > 1 else None)
        argument_of_slot = self.signature.argument_of_slot
        mine = {i: v for i, v in writes.items() if argument_of_slot[i] == argument}
        if not mine:
            return freeze(subtree)
        if self._is_plain():
            return _outline(self.treedef, where).rebuilt(self.leaves, self.states, mine)
        treedef, start, stop = _subtree(self.treedef, where)
        slots = self.signature.layout.slots
        leaves = list(self.leaves[start:stop])
        for index, value in mine.items():
            slot = slots[index]
            if slot.is_leaf and is_leaf(value):  # nearly always, and 1.5 us cheaper than to flatten
                leaves[slot.start - start] = value
                continue
            new, new_treedef = jtu.tree_flatten(value)
            if new_treedef != slot.treedef:
                return self._rebuilt_slowly(where, subtree, mine)
            leaves[slot.start - start : slot.stop - start] = new
        return unflatten_frozen(treedef, leaves)

    def _is_plain(self) -> bool:
        """Whether no state that came in is, or ever was, live."""
        states = self.states
        if any(map(_cell_of, states)):
            return False
        return set(map(type, [state._tag for state in states])) <= {tuple}

    def _rebuilt_slowly(self, where: tuple[int, ...], subtree: Any, mine: dict[int, Any]) -> Any:
        """For values whose structure changed: an empty state that was filled, say."""
        items, treedef = jtu.tree_flatten(subtree, is_leaf=is_state)
        argument = (where[0], where[1] if len(where) > 1 else None)
        indices = iter([i for i, a in enumerate(self.signature.argument_of_slot) if a == argument])
        for i, item in enumerate(items):
            if isinstance(item, State):
                index = next(indices)
                items[i] = item.replace(mine[index]) if index in mine else freeze(item)
        return treedef.unflatten(items)


@ft.lru_cache(maxsize=4096)
def signature_of(treedef: Any) -> Signature:
    """The signature of a call's structure. Worked out once for each."""
    return Signature(treedef)


class _Outline:
    """A subtree of a call down to its states, which are leaves here.

    Rebuilding it keeps the state objects that were not written, which is cheaper than making them anew.
    """

    def __init__(self, treedef: Any, where: tuple[int, ...]):
        subtree = unflatten_frozen(treedef, range(treedef.num_leaves))
        for position in where:
            subtree = subtree[position]
        argument = (where[0], where[1] if len(where) > 1 else None)
        indices = [i for i, a in enumerate(signature_of(treedef).argument_of_slot) if a == argument]
        items, self.treedef = jtu.tree_flatten(subtree, is_leaf=is_state)
        supply = iter(indices)
        #: For each item whether it is a state, and its index among the states or the leaves of the call.
        self.items = [(True, next(supply)) if is_state(x) else (False, x) for x in items]
        self.position = {i: n for n, (is_one, i) in enumerate(self.items) if is_one}

    def rebuilt(self, leaves: Sequence[Any], states: Sequence[State], writes: Writes) -> Any:
        items = [states[i] if is_one else leaves[i] for is_one, i in self.items]
        for index, value in writes.items():
            state = states[index]
            items[self.position[index]] = make_frozen(type(state), state._tag, copy(value))
        return self.treedef.unflatten(items)


@ft.lru_cache(maxsize=4096)
def _outline(treedef: Any, where: tuple[int, ...]) -> _Outline:
    return _Outline(treedef, where)


@ft.lru_cache(maxsize=4096)
def _subtree(treedef: Any, where: tuple[int, ...]) -> tuple[Any, int, int]:
    """A subtree's structure, and the range of its leaves."""
    start = 0
    for position in where:
        children = treedef.children()
        start += sum(child.num_leaves for child in children[:position])
        treedef = children[position]
    return treedef, start, start + treedef.num_leaves


# Running the function -----------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """What one run of the body gave.

    `out` has frozen states. `writes` and `reads` are by slot index. `echoed` pairs each slot that also
    stands in the output with its place there, which is an error wherever the slot is threaded.
    """

    out: Any
    writes: Writes
    reads: frozenset[int]
    echoed: tuple[tuple[int, str], ...]
    aliased_out: tuple[str, str] | None


def run_body(treedef: Any, leaves: Sequence[Any], recording: Recording) -> Run:
    """Run the function of a call on leaves, with live states.

    The recording is closed when this returns or raises.
    """
    ok = False
    try:
        fn, args, kwargs = thaw(treedef, leaves, recording)
        out = fn(*map(_bare, args), **{name: _bare(x) for name, x in kwargs.items()})
        ok = True
    finally:
        cells = recording.cells
        recording.close(check=ok)
    writes = {cell.index: cell.value for cell in cells if cell.written}
    reads = frozenset(cell.index for cell in cells if cell.read)
    _, _, states = collect(out)
    if not states:
        return Run(out, writes, reads, (), None)
    return Run(freeze(out), writes, reads, _echoed(out, states, recording), _aliased(out, states))


def _echoed(out: Any, states: Sequence[State], recording: Recording) -> tuple[tuple[int, str], ...]:
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


def refuse_echo(call: Call, run_echoed: tuple[tuple[int, str], ...], fn_code: str) -> None:
    """Raise if a threaded state also stands in the output."""
    for index, place in run_echoed:
        raise AliasedStateError(
            f"{describe(call.states[index])} came in as `{call.place(index)}` and also stands in the "
            f"output as `{place}`: it would come back twice and be two states from then on. Let it "
            "come back once, by leaving it out of the return value, or return a copy of its own: "
            f"state.replace(state.value). The call was:\n    {call.code(fn_code, index)}"
        )
