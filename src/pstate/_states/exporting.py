"""Kinds of state in exported programs, which outlive the process: `jax.export`.

A serialised program names the kinds in the trees that it takes and returns. Another process finds
them by these names, so it has to import the modules that define them.
"""

import json
from collections.abc import Sequence

import jax.export


def register_for_export(cls: type) -> None:
    """Let exported programs have states of a kind in their trees.

    The name is the class's own. If another class has it already, such as an earlier definition in a
    notebook, the later one is numbered: `model.Membrane#2`.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    number = 1
    while True:
        try:
            jax.export.register_pytree_node_serialization(
                cls,
                serialized_name=name if number == 1 else f"{name}#{number}",
                serialize_auxdata=_as_bytes,
                deserialize_auxdata=_as_tags,
            )
        except ValueError:
            number += 1
        else:
            return


def _as_bytes(tags: Sequence[str]) -> bytes:
    return json.dumps(list(tags)).encode()


def _as_tags(data: bytes) -> tuple[str, ...]:
    return tuple(json.loads(bytes(data)))
