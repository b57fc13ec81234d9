"""What a call gives back: its arguments with what was written, or writes into the states that came in.

- What was not written comes back as the same leaf objects that came in.
- A write is given back, or written into a live state, or refused. Refusals come before any write.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax.tree_util as jtu

from .._ground.errors import AliasedStateError, FrozenStateError
from .._ground.values import copy
from .._states.messages import WITHOUT_DRAWS, describe
from .._states.random_state import RandomState
from .._states.state import State, is_plain, is_state
from .._trees.flattening import unflatten_frozen
from .._trees.packed import Packed, pack
from .._trees.recording import freeze
from .._trees.slots import root_name
from .call import Call
from .callables import carrier_of, restore
from .contract import Contract
from .rebuilding import rebuilding, subtree, with_writes
from .running import Echo, Writes
from .signature import ARGS, FN, KWARGS, Static, carrier_place


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
        return restore(_rebuilt(call, carrier_place(call.fn), carrier_of(call.fn), writes))
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


def _argument_at(where: tuple[int, ...]) -> tuple[int, int | None]:
    return (FN, None) if where[0] == FN else (where[0], where[1])


def _rebuilt(call: Call, where: tuple[int, ...], tree: Any, writes: Writes) -> Any:
    argument = _argument_at(where)
    signature = call.signature
    mine = writes
    if signature.arguments_with_states != {argument}:
        argument_of_slot = signature.argument_of_slot
        mine = {i: v for i, v in writes.items() if argument_of_slot[i] == argument}
    if call.has_packed:
        return _rebuilt_around_packed(call, where, tree, mine) if mine else freeze(tree)
    changed = list(mine)
    if not call.is_plain or call.kinds.has_deferred:
        if not mine:
            return freeze(tree)
        changed = [
            slot.index
            for slot, state in zip(signature.layout.slots, call.states, strict=True)
            if signature.argument_of_slot[slot.index] == argument
            and (slot.index in mine or not is_plain(state))
        ]
    return rebuilding(signature, where, tree, changed).tree(call, argument[1], tree, mine)


def _rebuilt_around_packed(call: Call, where: tuple[int, ...], tree: Any, mine: Writes) -> Any:
    signature = call.signature
    treedef, start, stop = subtree(signature, where)
    slots = [signature.layout.slots[index] for index in mine]
    leaves = with_writes(call.leaves, start, stop, slots, mine)
    if leaves is None:
        return _rebuilt_slowly(call, where, tree, mine)
    return unflatten_frozen(treedef, leaves, keep_packed=True)


def _rebuilt_slowly(call: Call, where: tuple[int, ...], subtree: Any, mine: Writes) -> Any:
    """For values whose structure changed, such as an empty state that was filled."""
    argument = _argument_at(where)
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
