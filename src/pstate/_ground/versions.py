"""The one place where pstate looks at JAX's version.

Each branch says which JAX release will let it go.
"""

import threading
from typing import Any

import jax
import jax.tree_util as jtu


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


def current_trace() -> Any:
    """An opaque token of the JAX trace that is running now.

    Tokens are unhashable and compare equal exactly when they belong to the same trace; a call costs
    about 0.3 us.
    """
    return _get_opaque_trace_state(convention="flax")


def _token_of_a_fresh_thread() -> Any:
    """The token of no trace at all.

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
    """A setting of JAX's configuration, as an object. A pytree without leaves."""


jtu.register_pytree_node(_Context, lambda context: ((), context), lambda context, _: context)


@jax.jit
def trace_context() -> Any:
    """An object for JAX's settings: the same as long as JAX would not compile a function anew.

    JAX compares `enable_x64`, matmul precision, meshes and whatever else it keys its programs on; so
    this runs, and makes a new object, exactly where they differ. A call takes a few microseconds.
    """
    return _Context()


def jit_is_disabled() -> bool:
    """Whether the user asked for `jax.disable_jit()`."""
    return bool(jax.config.jax_disable_jit)  # pyright: ignore[reportAttributeAccessIssue]


def checks_key_reuse() -> bool:
    """Whether the user asked for `jax.debug_key_reuse(True)`."""
    return bool(jax.config.jax_debug_key_reuse)  # pyright: ignore[reportAttributeAccessIssue]


#: Whether a `jax.pmap` may stand in another. Since it became a `shard_map`, in JAX 0.8, it may not.
NESTED_PMAP = jax.__version_info__ < (0, 8)
