"""Meshes for the tests of this folder."""

from typing import Any

import jax
from jax.sharding import AxisType


def mesh(*sizes: int, kind: str = "Auto") -> Any:
    """A mesh over the first of the four devices of the tests, with axes `data` and `model`."""
    sizes = sizes or (4,)
    names = ("data", "model")[: len(sizes)]
    n = 1
    for size in sizes:
        n *= size
    types = (AxisType[kind],) * len(sizes)
    return jax.make_mesh(sizes, names, devices=jax.devices()[:n], axis_types=types)


def in_context(mesh: Any) -> Any:
    """What puts a mesh into the context, on each version of JAX."""
    return jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh)  # pyright: ignore
