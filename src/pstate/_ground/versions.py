"""The one place where pstate looks at JAX's version.

Each branch says which JAX release will make it unnecessary.
"""

import inspect
import threading
from typing import Any

import jax
import jax.tree_util as jtu
from jax.sharding import PartitionSpec


try:  # JAX 0.10 moved it; drop the fallback once the oldest supported JAX is 0.10.
    from jax.extend.core import (  # pyright: ignore[reportAttributeAccessIssue]
        get_opaque_trace_state as _get_opaque_trace_state,
    )
except ImportError:  # pragma: no cover
    from jax.core import (  # pyright: ignore[reportAttributeAccessIssue]
        get_opaque_trace_state as _get_opaque_trace_state,
    )


try:  # Public since JAX 0.7; drop the fallback once that is the oldest supported JAX.
    from jax import reshard as reshard  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # pragma: no cover
    from jax.experimental.shard import (  # pyright: ignore[reportMissingImports]
        reshard as reshard,
    )


try:  # Public since JAX 0.9, as the successor of `pvary`; drop the fallback with JAX 0.8.
    from jax.lax import pcast as _pcast  # pyright: ignore[reportAttributeAccessIssue]

    PCAST = "jax.lax.pcast(state.value, {axes}, to='varying')"
except ImportError:  # pragma: no cover
    from jax.lax import pvary as _pvary  # pyright: ignore[reportAttributeAccessIssue]

    PCAST = "jax.lax.pvary(state.value, {axes})"

    def _pcast(x: Any, axis_name: Any, *, to: str) -> Any:
        return _pvary(x, axis_name)


def varies_over(x: Any) -> frozenset[Any]:
    """The mesh axes over which a value in a `jax.shard_map` varies, by its type."""
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # JAX 0.10; before, `vma`
    found = getattr(aval, "vma", None) if manual is None else manual.varying
    return found or frozenset()


def manual_type(x: Any, ndim: int) -> dict[str, Any]:
    """Keywords with which a `jax.ShapeDtypeStruct` of `ndim` axes varies over a mesh as `x` does."""
    if not STRUCTS_VARY or not varies_over(x):
        return {}
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual: Any = aval
    spec = jax.sharding.PartitionSpec(*[None] * ndim)
    sharding = jax.sharding.NamedSharding(manual.sharding.mesh, spec)
    return {"manual_axis_type": manual.manual_axis_type, "sharding": sharding}


def as_varying(x: Any, axes: frozenset[Any]) -> Any:
    """`x` as a value that varies over these mesh axes too."""
    missing = tuple(sorted(axes - varies_over(x)))
    return _pcast(x, missing, to="varying") if missing else x


#: Whether a body can be traced for values that vary over a mesh. Drop this with JAX 0.9.
STRUCTS_VARY = "manual_axis_type" in inspect.signature(jax.ShapeDtypeStruct.__init__).parameters


def current_trace() -> Any:
    """An opaque token of the JAX trace that is running now.

    Tokens are unhashable and compare equal exactly when they belong to the same trace; a call costs
    about 0.3 us.
    """
    return _get_opaque_trace_state(convention="flax")


def _token_of_a_fresh_thread() -> Any:
    """The token that means no trace at all.

    A new thread runs under no trace, even where this module is first imported inside one.
    """
    tokens: list[Any] = []
    thread = threading.Thread(target=lambda: tokens.append(current_trace()))
    thread.start()
    thread.join()
    return tokens[0]


_EAGER = _token_of_a_fresh_thread()


def is_eager() -> bool:
    """Whether no JAX trace is running: operations execute at once."""
    return current_trace() == _EAGER


class _Context:
    """A state of JAX's configuration, as an object. A pytree without leaves."""


jtu.register_pytree_node(_Context, lambda context: ((), context), lambda context, _: context)


@jax.jit
def trace_context() -> Any:
    """An object for JAX's settings: the same one as long as JAX would not recompile a function.

    JAX compares `enable_x64`, matmul precision, meshes and everything else that it keys its
    programs on; so this runs, and makes a new object, exactly when they differ. A call takes a few
    microseconds.
    """
    return _Context()


def jit_is_disabled() -> bool:
    """Whether the user asked for `jax.disable_jit()`."""
    return bool(jax.config.jax_disable_jit)  # pyright: ignore[reportAttributeAccessIssue]


def checks_key_reuse() -> bool:
    """Whether the user asked for `jax.debug_key_reuse(True)`."""
    return bool(jax.config.jax_debug_key_reuse)  # pyright: ignore[reportAttributeAccessIssue]


#: Whether a `jax.pmap` may run in another. Since it became a `shard_map`, in JAX 0.8, it may not.
NESTED_PMAP = jax.__version_info__ < (0, 8)


#: What puts a mesh into the context, as code. Drop the latter with JAX 0.6.
SET_MESH = "jax.set_mesh" if hasattr(jax, "set_mesh") else "jax.sharding.use_mesh"


def mesh_of_context() -> Any:
    """The mesh of the context, `None` where there is none.

    Under a trace it is the abstract mesh where `jax.set_mesh` put it there. JAX tells no more than that
    by name: the mesh of `with mesh:`, and on 0.6 the devices of any, are read off what JAX makes of a
    spec. Drop the second of these with JAX 0.6.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh is not None and mesh.axis_names:
        if not is_eager():
            return mesh
        if hasattr(jax.sharding, "get_mesh"):
            return jax.sharding.get_mesh()
        placed: Any = jax.device_put(0, PartitionSpec())
        return placed.sharding.mesh
    constrain = lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec())
    try:
        jaxpr = jax.make_jaxpr(constrain)(jax.ShapeDtypeStruct((), bool))
    except (RuntimeError, ValueError):  # there is none
        return None
    return jaxpr.eqns[0].params["sharding"].mesh


#: How lanes that share an output of a `jax.custom_vjp` are asked for its cotangent: once, and not once
#: for each. Before JAX 0.12 there is no such choice. Drop this with JAX 0.11.
SHARED_OUTPUTS: dict[str, Any] = (
    {"generic_batching": True}
    if "generic_batching" in inspect.signature(jax.custom_vjp.defvjp).parameters
    else {}
)
