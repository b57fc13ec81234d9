"""`reap`: what a call recorded, taken out of a tree."""

from typing import Any, TypeVar

from .._ground.errors import FrozenStateError
from .._ground.paths import Path
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import Filter
from .._states.kinds import SownState
from .._states.state import State, make_frozen
from ..filter import to_predicate
from .bulk import leaves_of
from .packed import Packed, pack


T = TypeVar("T")


@public
@short_tracebacks
def reap(tree: T, filter: Filter = SownState) -> tuple[dict[Path, Any], T]:  # noqa: A002
    """Take the values out of the states that record: `seen, model = ps.reap(model)`.

    **Arguments:**

    - `tree`: a tree with frozen states, such as `pure` returns.
    - `filter`: which states; by default each `SownState`.

    **Returns:** `(values, tree)`: the values by path, `{path: value}`, in the order of the tree, and the
    tree with these states empty. States that are empty already are left out, and a tree without any
    value comes back as it is. A step that is compiled sees the same structure in each call if its model
    is reaped between calls.

    **Raises:** `FrozenStateError` where such a state is live: inside a call its value is read by
    `.value`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> import functools as ft
        >>> def step(net, x):
        ...     net["h"].value = 0.5 * net["h"].value + x
        ...     net["seen"].value = net["h"].value
        >>> def run(net, xs):
        ...     ps.for_loop(ft.partial(step, net), xs)
        >>> net = {"h": ps.HiddenState(0.0), "seen": ps.SownState()}
        >>> _, net = ps.pure(run)(net, jnp.ones(3))
        >>> seen, net = ps.reap(net)
        >>> seen
        {('seen',): Array([1.  , 1.5 , 1.75], dtype=float32)}
        >>> net["seen"]
        SownState()
    """
    predicate = to_predicate(filter)
    leaves, treedef = leaves_of(tree)
    values: dict[Path, Any] = {}
    emptied: list[Any] = []
    for path, place, leaf in leaves:
        if isinstance(leaf, State) and predicate(path, leaf) and leaf._peek() is not None:
            if leaf._cell is not None:
                raise FrozenStateError(
                    f"`{place}` ({type(leaf).__name__}) is live, and ps.reap takes values out of frozen "
                    "trees. Reap what the call gives back: out, tree = ps.pure(f)(tree, x), and then "
                    "values, tree = ps.reap(tree); inside of the call read it, state.value."
                )
            values[path] = leaf.value
            leaf = make_frozen(type(leaf), leaf.tag, None)
        emptied.append(leaf)
    if not values:
        return values, tree
    rest: Any = treedef.unflatten(emptied)
    if isinstance(tree, Packed):
        rest = pack(rest)
    return values, rest
