"""The static side of a call: what the structure of `(callable, args, kwargs)` alone says.

A call has three *groups* of leaves: those of the callable, of the positional arguments, and of the
keyword arguments. A key path of the call leads through the group and the argument to a state or an
array.
"""

import dataclasses
import itertools as it
from collections.abc import Iterator, Sequence
from typing import Any

import jax.tree_util as jtu

from .._ground.exact import exact_key
from .._ground.paths import Path, to_path, to_place
from .._states.state import is_state
from .._trees.flattening import collect
from .._trees.packed import Packed
from .._trees.slots import Layout, layout_of, root_name
from .._trees.structures import PerStructure
from .callables import Partial, Several, carrier_depth, carrier_of
from .edits import Containers
from .naming import Names
from .presenting import Source


#: The groups of a call.
FN, ARGS, KWARGS = range(3)


@dataclasses.dataclass(frozen=True)
class Described:
    """A call as messages describe it.

    The names of parameters; the code of the transform and call; and its innermost functions.
    """

    names: Names
    fn: str
    sources: tuple[Source, ...]
    first_is_tree: bool = False


class Static:
    """A static argument, part of the program. A pytree without leaves.

    **Raises:** `TypeError` if the value is unhashable.
    """

    __slots__ = ("_key", "value")

    is_exact = True

    def __init__(self, value: Any):
        hash(value)
        self._key = exact_key(value)
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


jtu.register_pytree_node(Static, lambda static: ((), static), lambda static, _: static)


def bare(argument: Any) -> Any:
    """An argument as the function takes it."""
    return argument.value if type(argument) is Static else argument


def carrier_place(fn: Any) -> tuple[int, ...]:
    """Where in a call the carrier of its callable is.

    What a callable is around is its first child.
    """
    return FN, *[0] * carrier_depth(fn)


class _Carrier:
    """What is known about a callable's carrier; `root` is `None` if it has none.

    `depth` is how far down a key path of the call the carrier is.
    """

    __slots__ = ("depth", "is_partial", "root")

    def __init__(self, fn: Any, depth: int):
        carrier = carrier_of(fn)
        self.depth = depth + carrier_depth(fn)
        self.is_partial = isinstance(carrier, Partial)
        self.root = None if carrier is None else root_name(carrier)


def _starts(group: Any, first: int) -> Iterator[int]:
    """The first leaf of each argument of a group, and the one after the last."""
    return it.accumulate((child.num_leaves for child in group.children()), initial=first)


class Signature:
    """The static side of a call: what its structure alone says about arguments and places.

    Two are equal if their structures are, exactly: `exact` distinguishes those whose static parts
    only compare as equal. Two that are not the same object are rarely compared.
    """

    def __init__(self, treedef: Any, exact: Any, call: Any):
        self.treedef = treedef
        self.exact = exact
        self._hash = hash((treedef, exact))
        self.layout: Layout = layout_of(call)
        fn, args, kwargs = call
        several = isinstance(fn, Several)
        self._carriers = [_Carrier(one, 2) for one in fn.callables] if several else [_Carrier(fn, 1)]
        self._several = several
        self.n_args = len(args)
        self.keywords = tuple(sorted(kwargs))
        self.has_carrier = not several and self._carriers[0].root is not None
        groups = treedef.children()
        #: How many leaves the callable has; they come first.
        self.n_fn = groups[FN].num_leaves
        #: For each positional argument, its first leaf; and for each keyword.
        self.starts = tuple(_starts(groups[ARGS], self.n_fn))
        self.keyword_starts = tuple(_starts(groups[KWARGS], self.starts[-1]))
        #: For each slot, the argument that it is in: `(group, position or name)`.
        self.argument_of_slot = tuple(self.argument(slot.key_path) for slot in self.layout.slots)
        self.arguments_with_states = frozenset(self.argument_of_slot)
        #: Results of `rebuilding.py` for its arguments, by their place.
        self.rebuilding: dict[Any, Any] = {}
        self.subtrees: dict[tuple[int, ...], Any] = {}
        #: The mutable containers, which the function could edit in place.
        self.containers = Containers(call)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Signature) and other.exact == self.exact and other.treedef == self.treedef
        )

    def argument(self, key_path: Sequence[Any]) -> tuple[int, Any]:
        """Which argument a key path of the call leads into: `(group, position or name)`.

        Several callables count as arguments of their group.
        """
        group = key_path[0].idx
        single = group == FN and not self._several
        return (group, None) if single else (group, to_path(key_path[1:2])[0])

    def within(self, key_path: Sequence[Any]) -> tuple[Any, ...]:
        """The key path within its argument."""
        return tuple(key_path[self._carrier(key_path).depth if key_path[0].idx == FN else 2 :])

    def path(self, index: int) -> Path:
        """The path of a slot within its argument, for filters."""
        return to_path(self.within(self.layout.slots[index].key_path))

    def place(self, key_path: Sequence[Any], names: Names) -> str:
        """A key path as code. `names` are the names of the positional parameters."""
        group, which = self.argument(key_path)
        within = self.within(key_path)
        root: Any
        if group == FN:
            carrier = self._carrier(key_path)
            filled = names.filled[which or 0]
            if carrier.is_partial:
                return _place_in_partial(filled, within)
            inside = key_path[2 if self._several else 1 :]
            if filled and _is_argument_of_partial(inside):  # of a partial that is not a carrier
                return _place_in_partial(filled, inside)
            root = carrier.root or "function"
        elif group == KWARGS:
            root = which
        else:
            root = names[which] if which < len(names) else f"args[{which}]"
        return to_place(root, within)

    def root(self, index: int, names: Names) -> str:
        """The name that code would give to the tree that a slot is in."""
        return self.place(self.layout.slots[index].key_path, names).partition(".")[0].partition("[")[0]

    def _carrier(self, key_path: Sequence[Any]) -> _Carrier:
        return self._carriers[key_path[1].idx if self._several else 0]


def _is_argument_of_partial(within: Sequence[Any]) -> bool:
    return len(within) > 1 and getattr(within[0], "name", None) in ("args", "keywords")


def _place_in_partial(filled: Sequence[str], within: Sequence[Any]) -> str:
    """The place of a value in a partial, which is named after the parameter that it fills."""
    group, which = to_path(within[:2])
    if group == "keywords":
        return to_place(which, within[2:])
    if group == "args" and isinstance(which, int) and which < len(filled):
        return to_place(filled[which], within[2:])
    return to_place("partial", within)


#: The signature of a call `(callable, args, kwargs)`, by its structure and itself.
signature_of = PerStructure(lambda treedef, exact, call: Signature(treedef, exact, _unpacked(call)))

#: The same for a call with known trees among its arguments: the structure has `Lent` in their place.
signature_of_known = PerStructure(lambda treedef, exact, call: signature_of(collect(call)[1], call))


def _unpacked(call: Any) -> Any:
    # States are leaves here: taking one apart would compute deferred values.
    is_one = lambda x: type(x) is Packed or is_state(x)
    return jtu.tree_map(lambda x: x.unpack() if type(x) is Packed else x, call, is_leaf=is_one)
