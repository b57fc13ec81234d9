"""The leaves of a call with respect to which a derivative is taken, and their place in results."""

import dataclasses
import functools as ft
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.callables import Partial, as_users, carrier_of, restore
from .._calls.code import as_code
from .._calls.signature import ARGS, FN, bare
from .._ground.errors import AliasedStateError
from .._ground.paths import to_path
from .._ground.values import short_dtype
from .._trees.flattening import unflatten_frozen
from .._trees.leaves import operand_mask
from ..filter import to_predicate


@dataclasses.dataclass(frozen=True)
class Options:
    """The user's options; `code` is the transform as code, for messages."""

    wrt: Any
    argnums: int | tuple[int, ...] | None
    code: str


class Chosen(tuple[Any, ...]):
    """The leaves that are differentiated, or one derivative for each, as a separate pytree type.

    JAX puts the tree of the differentiated leaves into the leaves of results; its type identifies
    it there.
    """

    __slots__ = ()


jtu.register_pytree_node(Chosen, lambda chosen: (tuple(chosen), None), lambda _, xs: Chosen(xs))


@dataclasses.dataclass(frozen=True)
class Trees:
    """How derivatives are put into the trees of the arguments.

    `leaves` are the leaves of the call that are differentiated; `arguments` are their arguments:
    positions, or `None` for the carrier of the callable. `function` is the function of a carrier
    that is a partial, if it holds no arrays: a partial needs a function.
    """

    treedef: Any
    leaves: tuple[int, ...]
    arguments: tuple[int | None, ...]
    function: Any = None

    def __call__(self, chosen: Iterable[Any]) -> tuple[Any, ...]:
        """The arguments' trees, with these leaves and `None` elsewhere. All of them are pytrees."""
        leaves: list[Any] = [None] * self.treedef.num_leaves
        for i, value in zip(self.leaves, chosen, strict=True):
            leaves[i] = value
        fn, args, _ = unflatten_frozen(self.treedef, leaves, keep_packed=True)
        return tuple(self._carrier(fn) if a is None else bare(args[a]) for a in self.arguments)

    def _carrier(self, fn: Any) -> Any:
        carrier = carrier_of(fn)
        if self.function is not None:
            carrier = Partial(carrier.cls, self.function, carrier.args, carrier.keywords)
        return _as_pytree(carrier)

    def lined_up(self, trees: tuple[Any, ...]) -> dict[int, Any]:
        """By index in `leaves`, the values that trees like the arguments have there.

        **Raises:** `ValueError` for trees of another structure.
        """
        found: dict[int, Any] = {}
        jtu.tree_map(found.__setitem__, self(range(len(self.leaves))), tuple(map(_as_pytree, trees)))
        return found


def _as_pytree(carrier: Any) -> Any:
    """A carrier in the user's own type; a `functools.partial` as JAX's, which is a pytree."""
    if type(carrier) is ft.partial:
        return jtu.Partial(carrier.func, *carrier.args, **carrier.keywords)
    restored = restore(carrier)
    return _as_pytree(restored) if type(restored) is ft.partial else restored


class Wrt:
    """Which leaves of a call are differentiated: those in `arguments` that `wrt` selects."""

    def __init__(self, options: Options, call: Call, leaves: Sequence[Any]):
        self.call = call
        self.arguments = _arguments(options, call)
        signature = call.signature
        groups = {(FN, None) if a is None else (ARGS, a) for a in self.arguments}
        predicate = to_predicate(options.wrt)
        is_array = operand_mask(leaves)
        layout = signature.layout
        self.leaves: list[int] = []
        for i, key_path in enumerate(layout.key_path_of_leaf):
            if not is_array[i] or signature.argument(key_path) not in groups:
                continue
            slot = layout.slot_of_leaf[i]
            path = signature.path(slot.index) if slot else to_path(signature.within(key_path))
            if predicate(path, slot.state(leaves) if slot else leaves[i]):
                self.leaves.append(i)
        self._check(options, leaves)

    def _check(self, options: Options, leaves: Sequence[Any]) -> None:
        call = self.call
        if not self.leaves:
            there = self._there(leaves)
            raise ValueError(
                f"{options.code} differentiates nothing: wrt={to_predicate(options.wrt)!r} selects no "
                f"array in {self._named()}, which has {there}. Select other leaves, wrt=..., or "
                "another argument by argnums=0, as the caller counts them."
            )
        self._refuse_tied(options)
        for i in self.leaves:
            if not jnp.issubdtype(leaves[i].dtype, jnp.inexact):
                slot = call.signature.layout.slot_of_leaf[i]
                kind = f" ({slot.kind.__name__})" if slot else ""
                signature = call.signature
                key_path = signature.layout.key_path_of_leaf[i]
                place = signature.place(key_path, call.names)
                path = signature.path(slot.index) if slot else to_path(signature.within(key_path))
                advice = (
                    f"Leave it out: wrt={as_code(options.wrt)} & ~ps.filter.PathContains({path[-1]!r})."
                    if path
                    else "Differentiate another argument, for example argnums=1."
                )
                raise TypeError(
                    f"`{place}`{kind} was selected by wrt={to_predicate(options.wrt)!r} and holds "
                    f"{_shown(leaves[i])}, which has no derivative; floating-point arrays have "
                    f"one. {advice}"
                )

    def _refuse_tied(self, options: Options) -> None:
        """Raise if one state is differentiated at two places: an update would untie them."""
        layout = self.call.signature.layout
        chosen = {slot.index for i in self.leaves if (slot := layout.slot_of_leaf[i]) is not None}
        for pair in self.call.aliases:
            if chosen.issuperset(pair):
                first, second = map(self.call.place, pair)
                raise AliasedStateError(
                    f"`{first}` and `{second}` are one state object at two places, and {options.code} "
                    "differentiates with respect to it: each place would get its own gradient, and "
                    "an update would make two states of it. Give each place its own state, or share one "
                    "on purpose: eqx.nn.Shared(tree, where, get)."
                )

    def _there(self, leaves: Sequence[Any]) -> str:
        signature = self.call.signature
        groups = {(FN, None) if a is None else (ARGS, a) for a in self.arguments}
        found = []
        for i, key_path in enumerate(signature.layout.key_path_of_leaf):
            if signature.argument(key_path) in groups and hasattr(leaves[i], "dtype"):
                slot = signature.layout.slot_of_leaf[i]
                kind = slot.kind.__name__ if slot else "array"
                place = signature.place(key_path, self.call.names)
                found.append(f"`{place}` ({kind}, {_shown(leaves[i])})")
        shown = ", ".join(found[:5])
        return f"{shown}, ..." if len(found) > 5 else shown or "no array"

    def _named(self) -> str:
        names = self.call.names
        bound = "the partial" if isinstance(carrier_of(self.call.fn), Partial) else "the bound module"
        return " and ".join(
            bound if a is None else f"`{names[a]}`" if a < len(names) else f"argument {a}"
            for a in self.arguments
        )

    def chosen(self, leaves: Sequence[Any]) -> Chosen:
        """The values at which derivatives are taken."""
        return Chosen(leaves[i] for i in self.leaves)

    def put(self, leaves: Sequence[Any], chosen: Sequence[Any]) -> list[Any]:
        """All leaves of the call, with these instead of the differentiated ones."""
        result = list(leaves)
        for i, value in zip(self.leaves, chosen, strict=True):
            result[i] = value
        return result

    @property
    def trees(self) -> Trees:
        carrier, function = carrier_of(self.call.fn), None
        if isinstance(carrier, Partial) and not any(operand_mask(jtu.tree_leaves(carrier.function))):
            function = as_users(carrier.function)
        return Trees(self.call.treedef, tuple(self.leaves), self.arguments, function)


def _shown(array: Any) -> str:
    return f"{short_dtype(array.dtype)}[{','.join(map(str, array.shape))}]"


def _arguments(options: Options, call: Call) -> tuple[int | None, ...]:
    argnums, n = options.argnums, len(call.args)
    if argnums is None:
        if call.signature.has_carrier:
            return (None,)
        argnums = 0
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not numbers:
        raise ValueError(
            f"{options.code} has no argument to differentiate. Name one, as the caller counts them: "
            "argnums=0."
        )
    if len({number % max(n, 1) for number in numbers}) < len(numbers):
        raise ValueError(
            f"{options.code} names an argument twice. Write argnums={tuple(dict.fromkeys(numbers))}."
        )
    for number in numbers:
        if not -n <= number < n:
            raise ValueError(
                f"{options.code} differentiates argument {number}, as the caller counts them, but "
                f"{n} were passed: positions {list(range(n))}. Write argnums=0, or pass the "
                "differentiated argument by position."
            )
    return tuple(number % n for number in numbers)
