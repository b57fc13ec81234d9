"""What a call gives back: its arguments with what was written, or writes into the states that came in.

- What was not written comes back as the same leaf objects that came in.
- A write is given back, or written into a live state, or refused. Refusals come before any write.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.tree_util as jtu

from .._ground.errors import AliasedStateError, FrozenStateError
from .._ground.values import copy, is_leaf
from .._states.messages import WITHOUT_DRAWS, describe
from .._states.random_state import RandomState
from .._states.state import State, is_state, make_frozen
from .._states.threads import local
from .._trees.flattening import unflatten_frozen
from .._trees.packed import Packed, pack
from .._trees.recording import freeze
from .._trees.slots import root_name
from .call import Call
from .callables import carrier_of, restore
from .contract import Contract
from .running import Echo, Writes
from .signature import ARGS, FN, KWARGS, Signature, Static


# Into live states -----------------------------------------------------------------------------------


def check_writes(
    call: Call, contract: Contract | None, writes: Collection[int], line: Callable[[int], str]
) -> None:
    """Raise if a state may not be written by this call, or its new value would be lost.

    `line(index)` is the line of code that gives the state of a slot back.
    """
    if contract is not None:
        contract.check_all(writes)
        return
    states = call.states
    frozen = [index for index in writes if states[index]._cell is None]
    if frozen:
        index = frozen[0]
        more = f"\n{WITHOUT_DRAWS}" if isinstance(states[index], RandomState) else ""
        raise FrozenStateError(
            f"`{call.place(index)}` ({type(states[index]).__name__}) was written, but the new "
            "value would be lost: the function was called outside `pure` and outside a "
            f"recording. Take the changed tree back:\n    {line(index)}{more}"
        )
    for index in writes:
        states[index]._cell.check_writable(type(states[index]).__name__)


def write_back(call: Call, writes: Writes, line: Callable[[int], str]) -> None:
    """Write what a run wrote into the live states that came in.

    **Raises:** `FrozenStateError` if a written state came in frozen.
    """
    if not writes:
        return
    check_writes(call, None, writes, line)
    for index, value in writes.items():
        call.states[index]._cell.put(copy(value))


def refuse_echo(call: Call, echoed: Collection[Echo], line: Callable[[int], str]) -> None:
    """Raise if a state that is given back is also in the output."""
    for index, place in echoed:
        raise AliasedStateError(
            f"{describe(call.state(index))} came in as `{call.place(index)}` and is also in the "
            f"output as `{place}`: it would come back twice and be two states from then on. Let it "
            "come back once, by leaving it out of the return value, or return a separate copy: "
            f"state.replace(state.value). The call was:\n    {line(index)}"
        )


def line_giving_back(call: Call, fn_code: str, written: int) -> str:
    """The call through `pure` that gives back the state of a slot, as a line of code."""
    names = [*call.names, *(f"arg{i}" for i in range(len(call.names), len(call.args)))]
    passed = names[: len(call.args)]
    signature = call.signature
    group, which = signature.argument(signature.layout.slots[written].key_path)
    keywords = [name for name in call.kwargs if group != KWARGS or name != which]
    if group == KWARGS:  # what is given back is passed by position
        which, passed = len(passed), [*passed, which]
    shown = ", ".join([*passed, *(f"{name}={name}" for name in keywords)])
    if group == FN:
        return f"out, {root_name(carrier_of(call.fn))} = ps.pure({fn_code})({shown})"
    default = not signature.has_carrier and which == 0
    argnums = "" if default else f", argnums={which}"
    return f"out, {passed[which]} = ps.pure({fn_code}{argnums})({shown})"


# As new arguments -----------------------------------------------------------------------------------


def updated(call: Call, which: int | None, writes: Writes) -> Any:
    """A positional argument, or (`None`) the carrier of the callable, with the writes in it."""
    if which is None:
        fn = _rebuilt(call, (FN,), call.fn, writes)
        return restore(carrier_of(fn))
    argument = call.args[which]
    if type(argument) is Static:
        return argument.value
    if type(argument) is Packed:
        return _repacked(call, which, argument, writes)
    return _rebuilt(call, (ARGS, which), argument, writes)


def _repacked(call: Call, position: int, packed: Packed[Any], writes: Writes) -> Any:
    signature = call.signature
    slots, argument_of_slot = signature.layout.slots, signature.argument_of_slot
    start = signature.starts[position]
    leaves = list(packed.leaves)
    for index, value in writes.items():
        if argument_of_slot[index] != (ARGS, position):
            continue
        slot = slots[index]
        new, treedef = jtu.tree_flatten(value)
        if treedef != slot.treedef:
            return pack(_rebuilt_slowly(call, (ARGS, position), packed.unpack(), writes))
        leaves[slot.start - start : slot.stop - start] = new
    return Packed(packed.form, tuple(leaves))


def _rebuilt(call: Call, where: tuple[int, ...], subtree: Any, writes: Writes) -> Any:
    argument = (where[0], where[1] if len(where) > 1 else None)
    signature = call.signature
    mine = writes
    if signature.arguments_with_states != {argument}:
        argument_of_slot = signature.argument_of_slot
        mine = {i: v for i, v in writes.items() if argument_of_slot[i] == argument}
    if not mine:
        return freeze(subtree)
    if call.is_plain:
        return _outline(signature, where).rebuilt(call.leaves, call.states, mine)
    treedef, start, stop = _subtree(signature, where)
    slots = signature.layout.slots
    leaves = list(call.leaves[start:stop])
    for index, value in mine.items():
        slot = slots[index]
        if slot.is_leaf and is_leaf(value):  # nearly always, and 1.5 us cheaper than flattening
            leaves[slot.start - start] = value
            continue
        new, new_treedef = jtu.tree_flatten(value)
        if new_treedef != slot.treedef:
            return _rebuilt_slowly(call, where, subtree, mine)
        leaves[slot.start - start : slot.stop - start] = new
    return unflatten_frozen(treedef, leaves, keep_packed=True)


def _rebuilt_slowly(call: Call, where: tuple[int, ...], subtree: Any, mine: Writes) -> Any:
    """For values whose structure changed, such as an empty state that was filled."""
    argument = (where[0], where[1] if len(where) > 1 else None)
    indices = iter([i for i, a in enumerate(call.signature.argument_of_slot) if a == argument])

    def rebuilt(tree: Any) -> Any:
        is_one = lambda x: is_state(x) or (type(x) is Packed and x is not tree)
        items, treedef = jtu.tree_flatten(tree, is_leaf=is_one)
        for i, item in enumerate(items):
            if type(item) is Packed:
                items[i] = pack(rebuilt(item.unpack()))
            elif isinstance(item, State):
                index = next(indices)
                items[i] = item.replace(mine[index]) if index in mine else freeze(item)
        return treedef.unflatten(items)

    return rebuilt(subtree)


class _Outline:
    """A subtree of a call down to its states, which are leaves here.

    Rebuilding it keeps the state objects that were not written, which is cheaper than making new
    ones.
    """

    def __init__(self, signature: Signature, where: tuple[int, ...]):
        layout = signature.layout
        self.treedef, start, stop = _descend(layout.outer, where)
        #: Each item's place among all states of the call, followed by all leaves.
        self._places = layout.items[start:stop]
        self._position = {i: n for n, i in enumerate(self._places)}

    def rebuilt(self, leaves: Sequence[Any], states: Sequence[State], writes: Writes) -> Any:
        pool = [*states, *leaves]
        items = [pool[place] for place in self._places]
        position = self._position
        for index, value in writes.items():
            state = states[index]
            items[position[index]] = new = make_frozen(type(state), state._tag, value)
            if local.watch is not None:
                local.watch.born.add(new)
        return self.treedef.unflatten(items)


def _outline(signature: Signature, where: tuple[int, ...]) -> _Outline:
    try:
        return signature.outlines[where]
    except KeyError:
        return signature.outlines.setdefault(where, _Outline(signature, where))


def _subtree(signature: Signature, where: tuple[int, ...]) -> tuple[Any, int, int]:
    """A subtree's structure, and the range of its leaves."""
    try:
        return signature.subtrees[where]
    except KeyError:
        return signature.subtrees.setdefault(where, _descend(signature.treedef, where))


def _descend(treedef: Any, where: tuple[int, ...]) -> tuple[Any, int, int]:
    start = 0
    for position in where:
        children = treedef.children()
        start += sum(child.num_leaves for child in children[:position])
        treedef = children[position]
    return treedef, start, start + treedef.num_leaves
