"""NumPy arrays in arguments, *lent* to a function: it gets a read-only view.

An edit in place, `tree["buffer"][0] = 1`, would change the tree that came in. NumPy refuses it in
such a view. If a view is returned, it is replaced by the array that was lent.
"""

import weakref
from typing import Any

import numpy as np


#: The arrays that were lent, by the identity of the view. An entry goes when its view does.
_lent: dict[int, tuple[Any, np.ndarray]] = {}


def lend(leaf: Any) -> Any:
    """A NumPy array as a function gets it; any other leaf as it is."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    view = leaf.view()
    view.flags.writeable = False
    identity = id(view)
    _lent[identity] = weakref.ref(view, lambda _: _lent.pop(identity, None)), leaf
    return view


def given_back(leaf: Any) -> Any:
    """The array that was lent; any other leaf as it is."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    found = _lent.get(id(leaf))
    return leaf if found is None or found[0]() is not leaf else found[1]
