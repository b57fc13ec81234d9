"""`checkpoint`: recompute in the backward pass instead of keeping results."""

import functools as ft
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp

from .._calls.call import Call
from .._calls.code import as_code
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.lifting import Lifted
from .._calls.notes import Note, taken_apart
from .._calls.running import Writes
from .._calls.transform import code_of
from .._calls.typed import Bound, C, Module, Out, P, Q, R
from .._ground.public import public
from .._ground.values import as_value


_NUMBERS = (bool, int, float, complex)


def as_array(x: Any) -> Any:
    """An array that one of JAX's transforms returned, as a JAX array."""
    # An argument that comes back unchanged may be a NumPy array here, which a state does not hold;
    # a constant number may be of one of JAX's own number types.
    return jnp.asarray(x) if isinstance(x, _NUMBERS) else as_value(x)


class Checkpoint(Lifted[P, R, C]):
    """What `checkpoint` returns."""

    __slots__ = ("policy", "prevent_cse")

    prevent_cse: bool
    policy: Callable[..., Any] | None

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        body = flat_function_of(call, code_of(self))

        def flat(*arrays: Any) -> tuple[list[Any], Note]:
            return taken_apart(body.run(body.leaves(arrays)))

        shown = body.presented(flat)
        recomputed = jax.checkpoint(shown, prevent_cse=self.prevent_cse, policy=self.policy)
        arrays, note = recomputed(*call.kinds.operands(leaves))
        return note, note.result([as_array(array) for array in arrays])

    def __repr__(self) -> str:
        cse = [] if self.prevent_cse else ["prevent_cse=False"]
        policy = [] if self.policy is None else [f"policy={as_code(self.policy)}"]
        return f"ps.checkpoint({', '.join([code_of(self.fun), *cse, *policy])})"

    def _maker(self) -> Callable[[Any], Any]:
        return ft.partial(checkpoint, prevent_cse=self.prevent_cse, policy=self.policy)


class CheckpointOptions(TypedDict, total=False):
    """The options of `checkpoint`."""

    prevent_cse: bool
    policy: Callable[..., Any] | None


if TYPE_CHECKING:

    @overload
    def checkpoint(
        fn: Bound[Q, Out, Module], /, **options: Unpack[CheckpointOptions]
    ) -> Checkpoint[Q, Out, Module]: ...
    @overload
    def checkpoint(
        fn: Callable[Q, Out], /, **options: Unpack[CheckpointOptions]
    ) -> Checkpoint[Q, Out, object]: ...
    @overload
    def checkpoint(
        **options: Unpack[CheckpointOptions],
    ) -> Callable[[Callable[Q, Out]], Checkpoint[Q, Out, object]]: ...


@public
def checkpoint(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    prevent_cse: bool = True,
    policy: Callable[..., Any] | None = None,
) -> Any:
    """Recompute a stateful function in the backward pass, instead of keeping its intermediate values.

    It is `jax.checkpoint` with states: the forward pass writes them, and the recomputation does not
    write them again. Non-array leaves are static. Usable as a decorator, with or without options.

    **Arguments:**

    - `fn`: a function, bound method, callable module, partial, or a transform of one.
    - `prevent_cse`, `policy`: as in `jax.checkpoint`.

    **Returns:** a stateful function, called like `fn`.

    **Raises:** what a call of `fn` raises.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def layer(model, x):
        ...     model["calls"].value += 1
        ...     return jnp.sin(model["w"].value * x)
        >>> model = {"w": ps.ParamState(2.0), "calls": ps.State(0)}
        >>> gradient, model = ps.pure(ps.grad(ps.checkpoint(layer)))(model, 0.0)
        >>> gradient["w"].value.item(), model["calls"].value.item()
        (0.0, 1)
    """
    if fn is None:
        return lambda fn: checkpoint(fn, prevent_cse=prevent_cse, policy=policy)
    return Checkpoint(fn, prevent_cse=prevent_cse, policy=policy)
