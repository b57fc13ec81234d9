"""A call taken apart into leaves, slots and a static part, and put together again.

Everything that runs a stateful function, `pure` and each transform, does the same three steps: flatten
`(callable, args, kwargs)`; run something on the leaves that says which states were written; then
either give the changed arguments back (`pure`) or write into the live states that came in.

Invariants:

- What was not written comes back as the very leaf objects that came in.
- A write is returned, or written into a live state, or refused. Refusals come before any write.
"""

import functools as ft
import itertools as it
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.core
import jax.tree_util as jtu

from .._ground.errors import AliasedStateError, FrozenStateError, StateError
from .._ground.values import copy, is_leaf
from .._states.messages import describe
from .._states.state import State, is_state, make_frozen
from .._states.threads import local
from .._trees.aliases import find_aliases, is_live
from .._trees.flattening import collect, unflatten_frozen
from .._trees.guard import Guard
from .._trees.leaves import LeafKinds, kinds_of
from .._trees.packed import Packed, n_states, pack, spread
from .._trees.recording import freeze
from .._trees.slots import root_name
from .callables import carrier_of, restore
from .naming import Names, names_of
from .running import Writes
from .signature import ARGS, FN, KWARGS, Signature, Static, signature_of


_tag_of = operator.attrgetter("_tag")


class Call:
    """One call of a stateful function.

    `leaves`, `treedef` and `states` are those of `(fn, args, kwargs)`. Leaves may be deferred values.
    """

    __slots__ = (
        "_aliases",
        "_collected",
        "_signature",
        "_states",
        "args",
        "contract",
        "fn",
        "kwargs",
        "leaves",
        "treedef",
    )

    def __init__(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.leaves, self.treedef, self._collected = collect((fn, args, kwargs))
        self._aliases = find_aliases(self._collected)
        self._signature: Signature | None = None
        self._states: list[Any] | None = None
        #: Who gives the written states back, and raises for writes that nobody would; see `_pure.py`.
        self.contract: Any = None

    @property
    def states(self) -> list[Any]:
        """The states that came in. Those of packed trees are without values."""
        if self._states is None:
            self._states = spread(self._collected) if self.has_packed else self._collected
        return self._states

    def state(self, index: int) -> Any:
        """The state of a slot with its value, packed or not."""
        if self.has_packed and self.states[index]._cell is None:
            return self.signature.layout.slots[index].state(self.leaves)
        return self.states[index]

    @property
    def has_packed(self) -> bool:
        """Whether any tree that came in is packed."""
        return self._collected.has_packed

    @property
    def is_live(self) -> bool:
        """Whether any state that came in is live."""
        return is_live(self._collected)

    @property
    def aliases(self) -> tuple[tuple[int, int], ...]:
        """Pairs of slots at which one state stands twice."""
        if not self._aliases or not self.has_packed:
            return self._aliases
        # A packed tree at two places is each of its states at two places.
        counts = [n_states(x) for x in self._collected]
        starts = list(it.accumulate(counts, initial=0))
        return tuple((starts[a] + k, starts[b] + k) for a, b in self._aliases for k in range(counts[a]))

    @property
    def signature(self) -> Signature:
        # Looked up once for a call: to compare two structures of 100 modules costs 70 us.
        if self._signature is None:
            self._signature = signature_of(self.treedef)
        return self._signature

    @property
    def kinds(self) -> LeafKinds:
        """Which leaves are operands."""
        return kinds_of(self.leaves)

    @property
    def names(self) -> Names:
        return names_of(self.fn)

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
        keywords = [name for name in self.kwargs if group != KWARGS or name != which]
        if group == KWARGS:  # what is given back is passed by position
            which, passed = len(passed), [*passed, which]
        shown = ", ".join([*passed, *(f"{name}={name}" for name in keywords)])
        if group == FN:
            return f"out, {root_name(carrier_of(self.fn))} = ps.pure({fn_code})({shown})"
        default = not signature.has_carrier and which == 0
        argnums = "" if default else f", argnums={which}"
        return f"out, {passed[which]} = ps.pure({fn_code}{argnums})({shown})"

    def refuse_deleted(self, fn_code: Callable[[], str]) -> None:
        """Raise if a buffer of the call was donated before."""
        for leaf, key_path in zip(self.leaves, self.signature.layout.key_path_of_leaf, strict=True):
            is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
            if is_array and leaf.is_deleted():
                place = self.signature.place(key_path, self.names)
                raise StateError(
                    f"`{place}` was donated to an earlier call and its buffer is gone, so "
                    f"{fn_code()} cannot read it. Go on with the tree that the earlier call gave back, "
                    "or do not donate: leave donate and donate_argnums out."
                )

    # Putting together ---------------------------------------------------------------------------

    def check_writes(self, writes: Collection[int], line: Callable[[int], str]) -> None:
        """Raise where a state may not be written by this call, or nobody takes its new value."""
        if self.contract is not None:
            self.contract.check_all(writes)
            return
        frozen = [index for index in writes if self.states[index]._cell is None]
        if frozen:
            index = frozen[0]
            raise FrozenStateError(
                f"`{self.place(index)}` ({type(self.states[index]).__name__}) was written, and nobody "
                "takes the new value: the function was called outside `pure` and outside a "
                f"recording. Take the changed tree back:\n    {line(index)}"
            )
        for index in writes:
            self.states[index]._cell.check_writable(type(self.states[index]).__name__)

    def write_back(self, writes: Writes, line: Callable[[int], str]) -> None:
        """Write what a run wrote into the live states that came in.

        `line(index)` is the line of code that gives the state of a slot back.

        **Raises:** `FrozenStateError` where a written state came in frozen.
        """
        if not writes:
            return
        self.check_writes(writes, line)
        for index, value in writes.items():
            self.states[index]._cell.put(copy(value))

    def updated_carrier(self, writes: Writes) -> Any:
        """The carrier of the callable, with the writes in it."""
        fn = self._rebuilt((FN,), self.fn, writes)
        return restore(carrier_of(fn))

    def updated_argument(self, position: int, writes: Writes) -> Any:
        """A positional argument, with the writes in it."""
        argument = self.args[position]
        if type(argument) is Static:
            return argument.value
        if type(argument) is Packed:
            return self._repacked(position, argument, writes)
        return self._rebuilt((ARGS, position), argument, writes)

    def _repacked(self, position: int, packed: Packed[Any], writes: Writes) -> Any:
        """A packed argument with the writes in it."""
        signature = self.signature
        slots, argument_of_slot = signature.layout.slots, signature.argument_of_slot
        start = signature.starts[position]
        leaves = list(packed.leaves)
        for index, value in writes.items():
            if argument_of_slot[index] != (ARGS, position):
                continue
            slot = slots[index]
            new, treedef = jtu.tree_flatten(value)
            if treedef != slot.treedef:
                return pack(self._rebuilt_slowly((ARGS, position), packed.unpack(), writes))
            leaves[slot.start - start : slot.stop - start] = new
        return Packed(packed.form, tuple(leaves))

    def _rebuilt(self, where: tuple[int, ...], subtree: Any, writes: Writes) -> Any:
        argument = (where[0], where[1] if len(where) > 1 else None)
        signature = self.signature
        mine = writes
        if signature.arguments_with_states != {argument}:
            argument_of_slot = signature.argument_of_slot
            mine = {i: v for i, v in writes.items() if argument_of_slot[i] == argument}
        if not mine:
            return freeze(subtree)
        if self._is_plain():
            return _outline(self.signature, where).rebuilt(self.leaves, self.states, mine)
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
        return unflatten_frozen(treedef, leaves, keep_packed=True)

    def _is_plain(self) -> bool:
        """Whether no state that came in is packed, or is or ever was live."""
        states = self._collected
        plain = not is_live(states) and set(map(type, map(_tag_of, states))) <= {tuple}
        return plain and not self.has_packed

    def _rebuilt_slowly(self, where: tuple[int, ...], subtree: Any, mine: dict[int, Any]) -> Any:
        """For values whose structure changed: an empty state that was filled, say."""
        argument = (where[0], where[1] if len(where) > 1 else None)
        indices = iter([i for i, a in enumerate(self.signature.argument_of_slot) if a == argument])

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

    Rebuilding it keeps the state objects that were not written, which is cheaper than making them anew.
    """

    def __init__(self, signature: Signature, where: tuple[int, ...]):
        subtree = unflatten_frozen(signature.treedef, range(signature.treedef.num_leaves))
        for position in where:
            subtree = subtree[position]
        argument = (where[0], where[1] if len(where) > 1 else None)
        indices = [i for i, a in enumerate(signature.argument_of_slot) if a == argument]
        items, self.treedef = jtu.tree_flatten(subtree, is_leaf=is_state)
        supply = iter(indices)
        n = len(signature.argument_of_slot)
        # Each item's place among all states of the call, followed by all leaves.
        self._places = [next(supply) if is_state(x) else n + x for x in items]
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


@ft.lru_cache(maxsize=4096)
def _outline(signature: Signature, where: tuple[int, ...]) -> _Outline:
    return _Outline(signature, where)


@ft.lru_cache(maxsize=4096)
def _subtree(treedef: Any, where: tuple[int, ...]) -> tuple[Any, int, int]:
    """A subtree's structure, and the range of its leaves."""
    start = 0
    for position in where:
        children = treedef.children()
        start += sum(child.num_leaves for child in children[:position])
        treedef = children[position]
    return treedef, start, start + treedef.num_leaves


def refuse_echo(call: Call, echoed: Sequence[tuple[int, str]], line: Callable[[int], str]) -> None:
    """Raise if a threaded state also stands in the output."""
    for index, place in echoed:
        raise AliasedStateError(
            f"{describe(call.state(index))} came in as `{call.place(index)}` and also stands in the "
            f"output as `{place}`: it would come back twice and be two states from then on. Let it "
            "come back once, by leaving it out of the return value, or return a copy of its own: "
            f"state.replace(state.value). The call was:\n    {line(index)}"
        )
