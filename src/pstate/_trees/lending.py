"""NumPy arrays of arguments, *lent* to a function: it gets a view that can only be read.

An edit in place, `tree["buffer"][0] = 1`, would change the tree that came in. NumPy refuses it in such a
view. A view that comes back is the very array that was lent.
"""

import weakref
from typing import Any

import numpy as np


#: What was lent, by the identity of the view. A view goes out of the table with itself.
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
