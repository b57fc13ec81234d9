"""The names in a `PartitionSpec`, and whether it fits a mesh and an array.

An *entry* of a spec belongs to one axis of an array. It is a mesh axis, several of them in a tuple,
`None` if the axis is whole on every device, or `UNCONSTRAINED` if the compiler chooses.
"""

import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import PartitionSpec

from .._ground.errors import BatchAxisError


def names_in(spec: PartitionSpec | None) -> tuple[str, ...]:
    """The mesh axes that a spec names, in order.

    >>> names_in(PartitionSpec(("data", "model"), None, PartitionSpec.UNCONSTRAINED, "pipe"))
    ('data', 'model', 'pipe')
    """
    return tuple(name for entry in spec or () for name in _names(entry))


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def check_spec(spec: PartitionSpec | None, mesh: Any, where: str) -> None:
    """Raise if a spec names an axis that a mesh does not have, or one axis twice.

    `mesh` may also be a collection of names, if not all axes of a mesh are allowed.

    **Raises:** `ValueError`.
    """
    there = tuple(getattr(mesh, "axis_names", mesh))
    seen: set[str] = set()
    for name in names_in(spec):
        if name not in there:
            shape = dict(mesh.shape) if hasattr(mesh, "shape") else list(there)
            example = PartitionSpec(there[0]) if there else PartitionSpec()
            raise ValueError(
                f"{where} has the spec {spec_code(spec)}, which names the axis {name!r}, but the mesh "
                f"has the axes {shape}. Name one of these, {spec_code(example)}, or make the mesh with "
                "that axis."
            )
        if name in seen:
            raise ValueError(
                f"{where} has the spec {spec_code(spec)}, which names the axis {name!r} twice: an array "
                f"can be cut along a mesh axis only once. Keep one, {spec_code(PartitionSpec(name))}."
            )
        seen.add(name)


def check_divides(shape: Sequence[int], spec: PartitionSpec, mesh: Any, place: str) -> None:
    """Raise if an array of this shape cannot be cut evenly into shards of the same shape.

    **Raises:** `BatchAxisError`, a `ValueError`.
    """
    shape = tuple(shape)
    if len(spec) > len(shape):
        raise BatchAxisError(
            f"{place} has shape {shape}, of {len(shape)} axes, but the spec {spec_code(spec)} is for "
            f"{len(spec)}. Write at most as many entries as there are axes, "
            f"{spec_code(_cut(spec, shape))}; a spec may also be a function of the leaf: lambda leaf: "
            "P('data') if leaf.ndim else P()."
        )
    for axis, entry in enumerate(spec):
        n = math.prod(mesh.shape[name] for name in _names(entry))
        if shape[axis] % n:
            whole = PartitionSpec(*[None if i == axis else e for i, e in enumerate(spec)])
            fitting = -(-shape[axis] // n) * n
            raise BatchAxisError(
                f"{place} has shape {shape}, and the spec {spec_code(spec)} cuts its axis {axis}, of "
                f"size {shape[axis]}, into {n} shards, but {n} does not divide {shape[axis]}. Make the "
                f"axis a multiple of {n}, for example by padding it to {fitting}; or leave it whole: "
                f"{spec_code(whole)}."
            )


def _cut(spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    return PartitionSpec(*tuple(spec)[: len(shape)])


def spec_code(spec: PartitionSpec | None) -> str:
    """A spec as code; JAX's own `repr` depends on the version."""
    return f"P({', '.join(_entry_code(entry) for entry in spec or ())})"


def _entry_code(entry: Any) -> str:
    return "P.UNCONSTRAINED" if entry is PartitionSpec.UNCONSTRAINED else repr(entry)
