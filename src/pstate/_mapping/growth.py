"""States that grow by an axis on each call: they come in shared, and leave with declared lanes."""

from collections.abc import Sequence
from typing import Any

from .leaving_array import Leaving
from .plan import Input


def grown(
    inputs: Sequence[Input], old: Sequence[Any], leaving: Sequence[Leaving]
) -> tuple[Input, Leaving] | None:
    """The first array of a state that does, and how it came in.

    The arrays are those that came in, `old`, and those that leave in their place.
    """
    parts = zip(inputs, old, leaving, strict=False)
    return next(((came, leaf) for came, before, leaf in parts if _grows(came, before, leaf)), None)


def _grows(came: Input, old: Any, leaf: Leaving) -> bool:
    if came.axis is not None or came.split or leaf.axis is None or leaf.reducer or leaf.undeclared:
        return False
    # Otherwise it is replaced each time by a value of the same size.
    return len(getattr(leaf.value, "shape", ())) + 1 > len(getattr(old, "shape", ()))
