"""Noticing that a Python number keeps changing, so that each call compiles another program."""

from collections.abc import Sequence
from typing import Any

from .._calls.call import Call
from .._ground.errors import RecompilationWarning
from .._states.messages import warn


#: How many values a number may take before a warning says that each compiles a program.
MANY_VALUES = 5


def warn_of_recompilation(
    call: Call, statics: tuple[Any, ...], earlier: Sequence[tuple[Any, ...]], fn_code: str
) -> None:
    """Warn, once for each number, when it has taken many values.

    `statics` are the keys of the static leaves of a call that is about to be compiled, as
    `(index, key)`; `earlier` are those of the programs that the same function has for calls of this
    structure.
    """
    for position, (index, key) in enumerate(statics):
        if key[0] not in (int, float, complex):
            continue
        rest = statics[:position] + statics[position + 1 :]
        values = {
            s[position]
            for s in earlier
            if len(s) == len(statics)
            and s[position][0] == index
            and s[:position] + s[position + 1 :] == rest
        }
        if len(values) == MANY_VALUES - 1:
            place = call.signature.place(call.signature.layout.key_path_of_leaf[index], call.names)
            warn(
                f"`{place}` is a Python number and has had {MANY_VALUES} values: {fn_code} compiled a "
                "program for each, since a non-array argument is part of the program. Pass an array: "
                f"jnp.asarray({call.leaves[index]!r}).",
                RecompilationWarning,
            )
