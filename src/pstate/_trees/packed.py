"""Trees kept flat between calls.

Equinox takes a module apart and puts it together in Python, at about a microsecond per module, and
a loop that calls a compiled function does so on every call. A *packed* tree has been taken apart
once: it holds its leaves and its *form*, the structure. To JAX it is one node; functions that
pstate runs get the tree itself.
"""

import itertools as it
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import jax.tree_util as jtu

from .._ground.errors import AliasedStateError
from .._ground.paths import to_place
from .._ground.public import public
from .._states.state import is_state
from .._states.threads import local
from .aliases import find_aliases
from .flattening import collect, unflatten_frozen
from .forms import Form, Statics, are_settled, form_of, statics_of
from .recording import freeze
from .slots import layout_of, root_name, states_of


T = TypeVar("T")


@public
class Packed(Generic[T]):
    """A tree that is kept flat between calls; what `pack` returns.

    When a call collects states, it stands for all states of the tree, which are frozen.
    """

    __slots__ = ("__weakref__", "_statics", "form", "leaves")

    _cell = None
    _child = ()
    _tag = ()

    form: Form
    leaves: tuple[Any, ...]
    _statics: Any

    def __init__(self, form: Form, leaves: tuple[Any, ...], statics: Statics | None = None):
        _set_form(self, form)
        _set_leaves(self, leaves)
        _set_statics(self, statics)
        if local.watch is not None:
            local.watch.born.add(self)

    @property
    def statics(self) -> Statics:
        """The non-array leaves, as a key. Packed trees made from this one share it.

        **Raises:** `TypeError` for an unhashable leaf.
        """
        statics = self._statics
        if statics is None:
            statics = statics_of(self.leaves)
            if are_settled(self.leaves):
                _set_statics(self, statics)
        return statics

    def unpack(self) -> T:
        """The tree."""
        return unflatten_frozen(self.form.treedef, self.leaves)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"A packed tree is immutable; got {name!r}. Unpack it first: tree = packed.unpack()."
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A packed tree has no attribute {name!r}, because it is taken apart. Functions that pstate "
            f"runs get the tree itself; elsewhere unpack it first: packed.unpack().{name}."
        )

    def __reduce__(self) -> Any:
        return pack, (self.unpack(),)

    def __repr__(self) -> str:
        n_states, n_leaves = len(self.form.placeholders), len(self.leaves)
        return f"Packed({self.form.name}, {n_states} states, {n_leaves} leaves)"


_set_form = Packed.__dict__["form"].__set__
_set_leaves = Packed.__dict__["leaves"].__set__
_set_statics = Packed.__dict__["_statics"].__set__


def _flatten(packed: Packed[Any]) -> tuple[tuple[Any, ...], Form]:
    if local.collected is not None:
        local.collected.append(packed)
        local.collected.has_packed = True
    return packed.leaves, packed.form


def _flatten_with_keys(packed: Packed[Any]) -> Any:
    leaves, form = _flatten(packed)
    return tuple((jtu.SequenceKey(i), leaf) for i, leaf in enumerate(leaves)), form


def _unflatten(form: Form, leaves: Iterable[Any]) -> Any:
    if local.rebuild is not None and not local.keep_packed:
        # A call is put together either for the function to run on, or to look at its structure.
        return form.treedef.unflatten(leaves)
    return Packed(form, tuple(leaves))


jtu.register_pytree_with_keys(Packed, _flatten_with_keys, _unflatten, flatten_func=_flatten)


if TYPE_CHECKING:

    @overload
    def pack(tree: Packed[T]) -> Packed[T]: ...
    @overload
    def pack(tree: T) -> Packed[T]: ...


@public
def pack(tree: Any) -> Any:
    """Take a tree apart once, for a loop of many calls.

    Pass the result instead of the tree wherever the tree is a *carrier*, an argument that is
    returned with its new states: `pstate.pure`, `jit`, mappings and JAX's own transforms take it
    and return it packed, and the functions that they run get the tree itself. Calling a compiled
    function then costs hardly more than passing its arrays. Inside a transform it is the tree:
    `jit(pure(f))` returns the tree, and `pure(jit(f))` a packed one.

    **Arguments:**

    - `tree`: any pytree with states. Live states are frozen.

    **Returns:** an immutable `Packed`, whose method `unpack()` returns the tree.

    **Raises:** `AliasedStateError` if one state object is at two places.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> @ps.pure
        ... @ps.jit
        ... def step(model, x):
        ...     model["n"].value += x
        >>> packed = ps.pack({"n": ps.State(0), "w": ps.ParamState(jnp.ones(2))})
        >>> for x in jnp.arange(4):
        ...     _, packed = step(packed, x)
        >>> packed, packed.unpack()["n"].value.item()
        (Packed(dict, 2 states, 2 leaves), 6)
    """
    if isinstance(tree, Packed):
        return tree
    if local.watch is not None:
        jtu.tree_leaves(tree)  # which is told to the body that is being compiled
    tree = freeze(tree)
    leaves, treedef, _ = collect(tree)
    aliases = find_aliases(states_of(tree))
    if aliases:
        slots, root = layout_of(tree).slots, root_name(tree)
        first, second = (to_place(root, slots[i].key_path) for i in aliases[0])
        raise AliasedStateError(
            f"`{first}` and `{second}` are one state object at two places, and a packed tree would make "
            "two of it. Give each place its own state, or share on purpose: "
            "eqx.nn.Shared(tree, where, get)."
        )
    return Packed(form_of(treedef, tree), tuple(leaves))


def find_aliases_of_packed(collected: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Aliases among states and packed trees, by the indices of states.

    A packed tree at two places is each of its states at two places.
    """
    counts = [len(x.form.placeholders) if type(x) is Packed else 1 for x in collected]
    starts = list(it.accumulate(counts, initial=0))
    pairs = find_aliases(collected)
    return tuple((starts[a] + k, starts[b] + k) for a, b in pairs for k in range(counts[a]))


def spread(collected: Iterable[Any]) -> list[Any]:
    """The states of a call, with those of packed trees one by one."""
    return [s for x in collected for s in (x.form.placeholders if type(x) is Packed else (x,))]


def owners(collected: Iterable[Any]) -> list[Any]:
    """For each state of a call the state itself, or the packed tree that it stands in."""
    return [x for x in collected for _ in range(len(x.form.placeholders) if type(x) is Packed else 1)]


def met_in(tree: Any) -> list[Any]:
    """The states and packed trees in a tree, in order. No state is read."""
    is_one = lambda x: is_state(x) or type(x) is Packed
    return [x for x in jtu.tree_leaves(tree, is_leaf=is_one) if is_one(x)]


def unpacked(tree: Any) -> Any:
    """A tree, unpacked if it was packed."""
    return tree.unpack() if isinstance(tree, Packed) else tree
