"""The arguments of a function with rules, and how the results of its rules line up with a call.

A rule is called with the arguments of the function itself, by position: those that the function is
bound to, then those that the caller passes, including defaults. So a rule of a method is a method.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.arguments import positions_of
from .._calls.call import Call
from .._calls.callables import (
    Method,
    Partial,
    Wrapper,
    anchor_of,
    is_bound_method,
    is_callable_module,
)
from .._calls.flat_function import ANCHOR, FlatFunction
from .._calls.naming import name_of
from .._calls.running import Run, run_body
from .._calls.signature import bare
from .._states.state import is_state, make_frozen
from .._trees.flattening import unflatten_frozen
from .custom_rules import CustomRule


def all_arguments(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of the innermost function of a callable, all by position.

    **Raises:** `TypeError` for keyword-only arguments.
    """
    inner = fn
    args, kwargs = tuple(map(bare, args)), {name: bare(x) for name, x in kwargs.items()}
    while True:
        match inner:
            case Wrapper():
                inner = inner.fun
            case Method():
                args, inner = (inner.instance, *args), inner.function
            case Partial():
                args, kwargs = (*inner.args, *args), {**inner.keywords, **kwargs}
                inner = inner.function
            case _ if isinstance(inner, types.MethodType) or is_bound_method(inner):
                method: Any = inner
                args, inner = (method.__self__, *args), method.__func__
            case _ if is_callable_module(inner):
                args, inner = (inner, *args), type(inner).__call__
            case _:
                break
    try:
        signature = inspect.signature(inner)
    except (TypeError, ValueError):  # for example a builtin, which does not say
        if kwargs:
            raise TypeError(f"{name_of(fn)} has rules, so it takes its arguments by position.") from None
        return args
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise TypeError(
            f"The rules of {name_of(fn)} take its arguments by position, but {[*bound.kwargs]} can only "
            "be passed by keyword. Let the function take them by position too: leave the * out."
        )
    return bound.args


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A placeholder for a leaf of the call, by its index."""

    index: int


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A placeholder for a state of the call, by its index."""

    index: int


class Lineup:
    """How the arguments and the results of rules line up with the leaves of a call."""

    def __init__(self, rule: CustomRule, call: Call, body: FlatFunction):
        self.body = body
        self._code = rule._code()
        self.signature = body.signature
        self._treedef = call.treedef
        self._n_leaves = call.treedef.num_leaves
        #: For each operand, the leaf of the call that it is.
        self.leaf_of_operand = [i for i, is_one in enumerate(call.kinds.mask) if is_one]
        self._anchors = [i for i, leaf in body.statics if leaf is ANCHOR]
        trees = self.arguments([_Leaf(i) for i in range(self._n_leaves)])
        self.nondiff = self._nondiff(rule, call, len(trees))
        self._trees = self.differentiable(trees)
        is_passed = lambda tree: all(type(leaf) is _Leaf for leaf in jtu.tree_leaves(tree))
        #: Whether each differentiated argument was passed; the others have their defaults.
        self._passed = [is_passed(tree) for tree in self._trees]
        nondiff = jtu.tree_leaves([trees[i] for i in self.nondiff])
        #: The leaves of arguments that are not differentiated.
        self.nondiff_leaves = frozenset(leaf.index for leaf in nondiff if type(leaf) is _Leaf)
        self._slots = self._trees_of_slots()

    def _nondiff(self, rule: CustomRule, call: Call, n: int) -> tuple[int, ...]:
        anchor, n_args = anchor_of(call.fn), len(call.args)
        for number in rule.nondiff_argnums:
            if not -n_args <= number < n_args:
                raise ValueError(
                    f"nondiff_argnums={rule.nondiff_argnums} of {self._code} counts the arguments that "
                    f"the caller passes by position, and {n_args} were passed: positions "
                    f"{list(range(n_args))}. Write nondiff_argnums={(max(n_args - 1, 0),)}, or name it: "
                    "nondiff_argnames=('x',)."
                )
        lead = n_bound_arguments(call.fn)
        try:
            names = [*inspect.signature(anchor).parameters]
        except (TypeError, ValueError):
            names = []
        numbers = {lead + number % n_args for number in rule.nondiff_argnums}
        return tuple(sorted(numbers | positions_of(names, n, (), rule.nondiff_argnames)))

    def arguments(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of the function, with these leaves and frozen states."""
        return all_arguments(*self._built(leaves))

    def _built(self, leaves: Sequence[Any]) -> Any:
        """The call with these leaves, frozen states, and its function, which knows its parameters."""
        leaves = list(leaves)
        for i in self._anchors:
            leaves[i] = self.body.anchor()
        return unflatten_frozen(self._treedef, leaves)

    def differentiable(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Those of the arguments that are differentiated."""
        return tuple(a for i, a in enumerate(arguments) if i not in self.nondiff)

    def nondifferentiable(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The others."""
        return tuple(arguments[i] for i in self.nondiff)

    def trees(self, of_leaf: dict[int, Any]) -> tuple[Any, ...]:
        """Trees of the differentiated arguments, with these leaves and `None` elsewhere."""
        return self._of_passed(self.arguments([of_leaf.get(i) for i in range(self._n_leaves)]))

    def trees_of_states(self, of_slot: dict[int, Any]) -> tuple[Any, ...]:
        """Trees of the differentiated arguments, with these values in states, and `None` elsewhere."""
        call = self._built([None] * self._n_leaves)
        numbers = iter(range(len(self.signature.layout.slots)))

        def filled(item: Any) -> Any:
            if not is_state(item):
                return item
            return make_frozen(type(item), item.tag, of_slot.get(next(numbers)))

        fn, args, kwargs = jtu.tree_map(filled, call, is_leaf=is_state)
        return self._of_passed(all_arguments(fn, args, kwargs))

    def _of_passed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        both = zip(self.differentiable(arguments), self._passed, strict=True)
        return tuple(tree if is_passed else None for tree, is_passed in both)

    def leaves_of(self, given: Any, what: str) -> dict[int, Any]:
        """By leaf of the call, the values that a rule returned for the differentiated arguments.

        `what` is their name in messages.
        """
        found: dict[int, Any] = {}

        def assign(value: Any, tree: Any) -> None:
            below = [leaf for leaf in jtu.tree_leaves(tree) if type(leaf) is _Leaf]
            if value is not None and len(below) == 1:
                found[below[0].index] = value
            elif value is not None and len(jtu.tree_leaves(tree)) > 1:
                raise ValueError(f"one value came for {len(below)} arrays")

        self._line_up(given, self._trees, assign, what, lambda x: x is None)
        return found

    def states_of(self, given: Any, what: str) -> dict[int, Any]:
        """By slot, the values that a rule returned for states of the differentiated arguments."""
        found: dict[int, Any] = {}

        def assign(value: Any, tree: Any) -> None:
            if type(tree) is _Slot and value is not None:
                found[tree.index] = value._received() if is_state(value) else value

        trees = self.differentiable(self._slots)
        self._line_up(given, trees, assign, what, lambda x: x is None or is_state(x))
        return found

    def _trees_of_slots(self) -> tuple[Any, ...]:
        """The arguments, with each state's slot in its place."""
        numbers = iter(range(len(self.signature.layout.slots)))
        slot = lambda item: _Slot(next(numbers)) if is_state(item) else item
        call = self._built([_Leaf(i) for i in range(self._n_leaves)])
        return all_arguments(*jtu.tree_map(slot, call, is_leaf=is_state))

    def _line_up(
        self,
        given: Any,
        trees: tuple[Any, ...],
        assign: Callable[[Any, Any], None],
        what: str,
        is_leaf: Callable[[Any], bool],
    ) -> None:
        names = self.names()
        if not isinstance(given, tuple | list) or len(given) != len(trees):
            got = f"{len(given)}" if isinstance(given, tuple | list) else type(given).__name__
            raise TypeError(
                f"{what} are a tuple with one entry for each argument, {names}, and None for "
                f"zero; got {got}. Write return ({', '.join(['None'] * len(trees))}"
                f"{',' if len(trees) == 1 else ''}) with trees like the arguments in it."
            )
        for name, one, tree in zip(names, given, trees, strict=True):
            try:
                jtu.tree_map(assign, one, tree, is_leaf=is_leaf)
            except ValueError as error:
                raise ValueError(
                    f"{what} for `{name}` have another structure than the argument: {error}. Give a "
                    "tree like the argument, with None for zero: "
                    f"jax.tree.map(jnp.zeros_like, {name})."
                ) from None

    def names(self) -> list[str]:
        """The names of the differentiated arguments."""
        anchor = self.body.anchor()
        try:
            known = [*inspect.signature(anchor).parameters]
        except (TypeError, ValueError):
            known = []
        n = len(self._trees) + len(self.nondiff)
        known = [*known, *(f"args[{i}]" for i in range(len(known), n))][:n]
        return list(self.differentiable(known))

    def describe(self, index: int) -> str:
        """A slot, with the kind of its state, for messages."""
        return f"`{self.body.place(index)}` ({self.signature.layout.slots[index].kind.__name__})"

    def refuse_nondiff(self, place: str) -> None:
        """Raise for a derivative with respect to an argument that has none."""
        raise TypeError(
            f"`{place}` is differentiated, but {self._code} says that it is not: a part of the gradient "
            "would be lost. Take it out of nondiff_argnums and nondiff_argnames, and let the rule give "
            f"its derivative; or cut it off: jax.lax.stop_gradient({place})."
        )

    def refuse_written_nondiff(self, index: int) -> None:
        """Raise if a written state is in an argument that is not differentiated."""
        if _Slot(index) in jtu.tree_leaves(self.nondifferentiable(self._slots)):
            raise TypeError(
                f"{self.describe(index)} is written by {self._code}, so later computations may "
                "depend on it, but it is in an argument that is not differentiated. Take it out of "
                "nondiff_argnums and nondiff_argnames, and let the rule give its derivative."
            )

    def place_of_leaf(self, index: int) -> str:
        """A leaf of the call as code."""
        slot = self.signature.layout.slot_of_leaf[index]
        return (
            self.body.place_of(self.signature.layout.key_path_of_leaf[index])
            if slot is None
            else self.body.place(slot.index)
        )


def n_bound_arguments(fn: Any) -> int:
    """The number of the function's arguments that come before those that the caller passes."""
    match fn:
        case Wrapper():
            return n_bound_arguments(fn.fun)
        case Method():
            return 1 + n_bound_arguments(fn.function)
        case Partial():
            return len(fn.args) + n_bound_arguments(fn.function)
        case _:
            bound = isinstance(fn, types.MethodType) or is_bound_method(fn) or is_callable_module(fn)
            return int(bound)


def run_rule(
    lineup: Lineup,
    leaves: Sequence[Any],
    call_rule: Callable[[tuple[Any, ...]], Any],
) -> Run:
    """Run a rule on the leaves of a call, with live states. `call_rule` takes all arguments."""
    body = lineup.body
    call = lambda fn, args, kwargs: call_rule(all_arguments(fn, args, kwargs))
    return run_body(body.signature, leaves, body.recording(leaves), body.place_of, call)
