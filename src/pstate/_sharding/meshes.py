"""The mesh of the context.

There may be three: that of `jax.set_mesh` (`jax.sharding.use_mesh` on JAX 0.6), that of `with mesh:`,
and under a trace the *abstract* mesh, which has names and sizes but no devices.
"""

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from .._ground.versions import SET_MESH, is_eager, mesh_of_context


def current_mesh(what: str) -> Any:
    """The mesh of the context, which `what` needs: a `Mesh`, or under a trace an `AbstractMesh`.

    **Raises:** `ValueError` if there is none.
    """
    mesh = mesh_of_context()
    if mesh is None:
        raise ValueError(
            f"{what} needs a mesh, but none was passed and there is none in the context. Make one, "
            "mesh = jax.make_mesh((jax.device_count(),), ('data',)), and pass it, mesh=mesh, or put "
            f"it in the context, `with {SET_MESH}(mesh): ...`."
        )
    return mesh


def mesh_or_current(mesh: Any, what: str) -> Any:
    """The mesh that was passed to `what`, or that of the context.

    **Raises:** `TypeError` for anything but a mesh; `ValueError` if there is none.
    """
    if mesh is None:
        return current_mesh(what)
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"mesh is a jax.sharding.Mesh; got {mesh!r} of type {type(mesh).__name__}. Write "
            "mesh=jax.make_mesh((jax.device_count(),), ('data',))."
        )
    around: Any = jax.sharding.get_abstract_mesh()
    if is_eager() or around is None or around.axis_names != mesh.axis_names:
        return mesh
    return around  # inside `jax.shard_map` only this mesh knows which axes are manual
