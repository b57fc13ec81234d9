"""Options as code, for messages."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from .._trees.filter_code import filter_code, is_filter
from .naming import name_of


def as_code(value: Any) -> str:
    """An option as code."""
    if isinstance(value, dict):
        inner = (f"{as_code(k)}: {as_code(v)}" for k, v in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(as_code, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if value is ...:
        return "..."
    if isinstance(value, PartitionSpec):
        return f"P({', '.join(map(repr, value))})"  # the same in all versions of JAX
    if isinstance(value, Mesh | AbstractMesh):
        return "mesh"
    if isinstance(value, type) or is_filter(value):
        return filter_code(value)
    if isinstance(value, ft.partial):
        kwargs = [f"{name}={as_code(v)}" for name, v in value.keywords.items()]
        return f"ft.partial({', '.join([as_code(value.func), *map(as_code, value.args), *kwargs])})"
    if callable(value) and hasattr(value, "__name__"):
        for module, name in ((jnp, "jnp"), (jax.lax, "jax.lax")):
            if getattr(module, value.__name__, None) is value:
                return f"{name}.{value.__name__}"
        return name_of(value)
    return repr(value)
