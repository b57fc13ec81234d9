"""The fast path through a compiled call: the tree that it gives back is flat already.

That tree is argument 0, or the module that the function is bound to. It is packed, or pstate gave it
back and remembers how it is taken apart. Only the other arguments are taken apart, and one lookup picks
the new leaves from those that came in and those that the compiled call returned.
"""

import dataclasses
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.core
import jax.tree_util as jtu
import numpy as np

from .._calls.call import Call
from .._calls.contract import Carrier
from .._calls.notes import NEXT, Note
from .._calls.rebuilding import rebuilding, subtree
from .._calls.signature import ARGS, FN, Signature, carrier_place
from .._ground.versions import is_eager, jit_is_disabled
from .._states.state import make_frozen
from .._states.threads import local
from .._trees.forms import Form, Statics
from .._trees.known import Known, remember
from .._trees.leaves import LeafKinds, kinds_of
from .._trees.packed import Packed
from .._trees.slots import LEAF
from .._trees.structures import PerStructure
from .bindings import bound_by
from .own import own_of


class _Structure:
    """The structure of the other arguments of a call."""

    __slots__ = ("__weakref__",)

    def __init__(self, treedef: Any, exact: Any, tree: Any): ...


_structure_of = PerStructure(_Structure)

#: Types of arrays that are no tracers: they are leaves, and operands.
_plain_arrays: set[type] = {np.ndarray}

#: What identifies the program of a call beside its function, whose bindings come first.
_Key = tuple[type, Form, Statics, Any]


class FlatCalls:
    """The flat calls of one transform. It remembers the program that ran last.

    `fit` says whether there are any; `inlined` whether there are none under a trace.
    """

    __slots__ = ("_last", "fit", "inlined")

    def __init__(self, fit: bool, inlined: bool):
        self.fit = fit
        self.inlined = inlined
        # One object, since threads share it. It does not keep the function alive.
        self._last: tuple[Any, _Key, FlatProgram] | None = None

    def find(
        self, function: Any, flat: Any, others: Sequence[Any], kwargs: dict[str, Any]
    ) -> "tuple[FlatProgram | None, Sequence[Any], _Key] | None":
        """The program of a call if it is the one that ran last; the leaves of other arguments; its key.

        `others` are the positional arguments without the tree. `None` for a call that takes the usual
        path.
        """
        if local.threaded or local.watch is not None or jit_is_disabled():
            return None
        structure: Any = len(others)
        concrete = not kwargs and _plain_arrays.issuperset(map(type, others))
        if not concrete:
            others, treedef = jtu.tree_flatten((others, kwargs))
            if kinds_of(others).statics:
                return None  # numbers are distinguished, and warned about, on the usual path
            structure = _structure_of(treedef, others)
            _plain_arrays.update([type(x) for x in others if _is_concrete(x)])
        try:
            statics = flat._statics or flat.statics
        except TypeError:
            return None  # an unhashable leaf is named there too
        # Arrays that are no tracers need no look at the trace, which takes a microsecond.
        if (self.inlined or not concrete or statics[0].has_tracers) and not is_eager():
            return None
        if self._last is not None:
            bound, key, program = self._last
            if (
                key[0] is type(flat)
                and key[1] is flat.form
                and (key[2] is statics or key[2] == statics)
                and key[3] == structure
                and bound.hold(function)
            ):
                return program, others, key
        return None, others, (type(flat), flat.form, statics, structure)

    def remember(self, function: Any, key: _Key, program: "FlatProgram") -> None:
        """Remember the program that runs now."""
        self._last = bound_by(function), key, program


def flat_calls_of(function: Any, key: Hashable, inlined: bool) -> FlatCalls:
    """The flat calls of transforms that are bound to a module, and so made again for each module."""
    known = own_of(function).flat_calls
    found = known.get(key)
    if found is None:
        if len(known) >= _MAX_BOUND:
            known.clear()
        found = known.setdefault(key, FlatCalls(True, inlined))
    return found


#: How many ways to transform one function are remembered.
_MAX_BOUND = 64


def _is_concrete(x: Any) -> bool:
    """Whether this is an array and no tracer."""
    return type(x) in _plain_arrays or (isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer))


class FlatProgram:
    """A compiled function of a flat tree, which holds all states of the call, and other arguments.

    `run` takes the operands of the compiled function. It is `None` if the call does not fit, and takes
    the usual path, as does the first call, which is traced.
    """

    __slots__ = ("_fits", "_kinds", "_plans", "_where", "entry", "run", "signature")

    def __init__(self, call: Call, carrier: Carrier, kinds: LeafKinds, entry: Any):
        signature = call.signature
        bound = carrier is None
        mine = {(FN, None) if bound else (ARGS, 0)}
        fits = signature.arguments_with_states <= mine and signature.has_carrier == bound
        self._fits = fits and not call.aliases
        self._where = carrier_place(call.fn) if bound else (ARGS, 0)
        self.run: Callable[..., Any] | None = None
        self.signature = signature
        self.entry = entry
        self._kinds = kinds if kinds.statics else None
        self._plans: dict[int, Any] = {}

    def compiled(self) -> None:
        """From now on there is something to run."""
        if self._fits:
            self.run = self.entry.call

    def operands(self, leaves: tuple[Any, ...], rest: Sequence[Any]) -> list[Any]:
        """The operands of the compiled call."""
        kinds = self._kinds
        return [*leaves, *rest] if kinds is None else [*kinds.operands(leaves), *rest]

    def plan(self, note: Note, n: int) -> "_Plan | None":
        """How the results of the compiled call are put together; `None` if not in this way.

        `n` is the number of leaves of the flat tree.
        """
        plan = self._plans.get(id(note), ...)
        if plan is ...:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[id(note)] = _plan(note, self.signature, self._where, n, self._kinds)
            self.run = self.entry.call  # what it is after its first run
        return plan


#: How many plans are kept, one for each set of shapes.
_MAX_PLANS = 256


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How the new leaves are picked from the old ones and the arrays. Keeps its note alive.

    `values` has, for each written state, its slot and where its arrays are, after `n_out` arrays of
    the output. `same_statics` says that no array takes the place of a static leaf.
    """

    note: Note
    signature: Signature
    where: tuple[int, ...]
    single: bool
    pick: Callable[[Sequence[Any]], tuple[Any, ...]] | None
    values: "tuple[_Value, ...]"
    same_statics: bool

    def result(
        self, tree: Any, flat: Any, arrays: Sequence[Any], operands: Sequence[Any]
    ) -> tuple[Any, Any]:
        """The output, and the tree with what was written."""
        out = arrays[0] if self.single else self.note.result(arrays, operands)[0]
        if self.pick is None:
            return out, tree
        leaves = self.pick((*flat.leaves, *arrays))
        # Under a trace the new arrays may be tracers.
        concrete = not arrays or _is_concrete(arrays[-1])
        statics = flat._statics if concrete and self.same_statics else None
        if type(flat) is Packed:
            return out, Packed(flat.form, leaves, statics)
        built, outline, items, made, inside = self._tree(tree, flat, arrays)
        if concrete:
            remember(built, flat.form, leaves, outline, items, made, inside, statics)
        return out, built

    def _tree(self, tree: Any, known: Known, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The known tree with what was written; and its outline, and what is remembered with that."""
        how = rebuilding(self.signature, self.where, tree, [value.index for value in self.values])
        outline = how.outline
        if known.outline is outline:
            items, inside = list(known.items), known.inside
        else:
            items = outline.items(tree)
            inside = outline.inside(items)
        for value, (slot, place) in zip(self.values, how.changed, strict=True):
            new = arrays[value.start] if value.treedef is None else value.of(arrays)
            items[place] = make_frozen(slot.kind, slot.tag, new)
        built, made = outline.build(items)
        return built, outline, items, made, inside


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    """A written state, by its index; and the structure of its value, `None` if it is one array."""

    index: int
    treedef: Any
    start: int
    stop: int

    def of(self, arrays: Sequence[Any]) -> Any:
        return self.treedef.unflatten(arrays[self.start : self.stop])


def _plan(
    note: Note, signature: Signature, where: tuple[int, ...], n: int, kinds: LeafKinds | None
) -> _Plan | None:
    if note.echoed or note.edited or not n:
        return None
    n_out = note.out_leaves.count(NEXT)
    places = list(range(n))
    _, first_leaf, _ = subtree(signature, where)
    values: list[_Value] = []
    first = n_out
    for index, treedef, count in note.writes:
        slot = signature.layout.slots[index]
        same = slot.is_leaf if treedef is None else treedef == slot.treedef
        if not same:
            return None
        start = slot.start - first_leaf
        places[start : start + count] = range(n + first, n + first + count)
        values.append(_Value(index, treedef, first, first + count))
        first += count
    single = n_out == 1 and note.out_leaves == [NEXT] and note.out_treedef == LEAF
    same_statics = kinds is None or all(places[i] == i for i in kinds.statics)
    pick = _picking(places) if values else None
    return _Plan(note, signature, where, single, pick, tuple(values), same_statics)


def _picking(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(places) > 1:
        return operator.itemgetter(*places)
    (place,) = places
    return lambda pool: (pool[place],)
