"""`scan` and `for_loop`: loops over arrays.

The states that the function is bound to are held from step to step. States in `xs` are sliced, and
the values written into the slices are stacked; axis specs may share or carry some of them.
Everything else is the same in all steps.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.flat_function import flat_function_of
from .._calls.notes import NEXT, arrays_of
from .._calls.running import Run, run_body
from .._calls.signature import ARGS
from .._calls.typed import Body, Carry, Out
from .._ground.integers import Integer
from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.typing import StateAxes
from .._trees.flattening import unflatten_frozen
from .carried_states import carried_states, refuse_changed_states
from .carry import data_of, new_leaves, refuse_live
from .control_flow import ControlFlow, FlowFunction, codes_of
from .loop_options import LoopOptions, loop_options
from .loop_roles import Roles, sliced_first, stacked_at
from .progress import Bar, Progress, counter
from .segments import scan_in_segments
from .statements import shown_arguments


@dataclasses.dataclass(eq=False)
class _Loop(FlowFunction):
    """A loop over arrays, for calls of one structure."""

    options: LoopOptions

    def flow(self, leaves: list[Any]) -> Run:
        return _Running(self, leaves).run()


@dataclasses.dataclass
class _Found:
    """The results of tracing the body. No values: they are tracers, whose trace ends with the loop."""

    y_treedef: Any
    y_leaves: list[Any]
    y_axes: list[int]
    written: frozenset[int]
    stacked: list[tuple[int, Any]]
    reads: frozenset[int]
    echoed: tuple[tuple[int, str], ...]


class _Running:
    """A loop over the leaves of one call."""

    def __init__(self, body: _Loop, leaves: list[Any]):
        self.body = body
        self.options = body.options
        self.leaves = leaves
        self.slots = body.signature.layout.slots
        self.roles = Roles(body, body.options, leaves)
        self.held = carried_states(body, self.roles.is_held)
        self.carried, self.sliced = self.roles.carried, list(self.roles.axes)
        self.length = _length(self)
        self.bar = None
        if self.options.progress is not None and self.length:
            ordered = type(self.options.unroll) is int and self.options.unroll == 1
            self.bar = Bar(self.length, self.options.progress, ordered)
        self.found: _Found | None = None

    def run(self) -> Run:
        leaves, options = self.leaves, self.options
        init = (self.held.values(leaves), [leaves[i] for i in self.carried])
        sliced = [sliced_first(leaves[i], axis) for i, axis in self.roles.axes.items()]
        xs = (sliced, counter(self.length) if self.bar else None)
        operands = (*self.held.leaf_indices(), *self.carried, *self.sliced)
        step = self.body.presented(self._step, operands, more=("step",) if self.bar else ())
        more = (self.length, options.reverse, options.unroll)
        (values, carry), (ys, stacked) = (
            jax.lax.scan(step, init, xs, *more)
            if options.checkpoints is None or not self.length
            else scan_in_segments(step, init, xs, *more, options.checkpoints)
        )
        found = self.found
        assert found is not None
        writes = {
            slot.index: slot.treedef.unflatten(value)
            for slot, value in zip(self.held.slots, values, strict=True)
            if slot.index in found.written
        }
        for (index, treedef), value in zip(found.stacked, stacked, strict=True):
            axis, place = self.roles.out_axis(index, leaves), self.body.place(index)
            kind = self.body.signature.layout.slots[index].kind
            writes[index] = treedef.unflatten([stacked_at(x, axis, place, kind) for x in value])
        supply = (stacked_at(x, axis, "out") for x, axis in zip(ys, found.y_axes, strict=True))
        y = found.y_treedef.unflatten([next(supply) if x is NEXT else x for x in found.y_leaves])
        out = (self._carry_tree(carry), y) if options.has_carry else y
        return Run(out, writes, found.reads, found.echoed, None)

    def _step(self, loop: Any, xs: Any) -> Any:
        values, carry = loop
        slices, count = xs
        own = list(self.leaves)
        self.held.put(own, self.slots, values)
        for i, value in zip((*self.carried, *self.sliced), (*carry, *slices), strict=True):
            own[i] = value
        if self.bar is not None:
            n = self.length - 1
            self.bar.step(n - count if self.options.reverse else count)
        data = data_of(self.body) if self.options.has_carry else None
        recording = self.body.recording(own, refuse=self.roles.refuse_shared, data=data)
        run = run_body(self.body.signature, own, recording, self.body.place_of)
        refuse_changed_states(self.body, self.held, run, self.leaves)
        carry, y = self._carry_and_y(run.out)
        y_leaves, y_treedef = jtu.tree_flatten(y)
        is_array = arrays_of(y, y_leaves)
        stacked = {
            i: value for i, value in sorted(run.writes.items()) if i not in self.held.representative
        }
        self.found = _Found(
            y_treedef,
            [NEXT if is_one else leaf for leaf, is_one in zip(y_leaves, is_array, strict=True)],
            self.roles.out_axes(y, y_leaves, is_array),
            frozenset(run.writes),
            [(i, jtu.tree_structure(value)) for i, value in stacked.items()],
            run.reads,
            run.echoed,
        )
        newest = [jtu.tree_leaves(value) for value in self.held.newest(run, own)]
        arrays = [leaf for leaf, is_one in zip(y_leaves, is_array, strict=True) if is_one]
        return (newest, carry), (arrays, [jtu.tree_leaves(value) for value in stacked.values()])

    def _carry_and_y(self, out: Any) -> tuple[list[Any], Any]:
        if not self.options.has_carry:
            return [], out
        if not (isinstance(out, tuple | list) and len(out) == 2):
            fn = self.body.described.fn
            raise TypeError(
                f"The function of {fn} returns a pair, (carry, y); got {type(out).__name__}. Write "
                "return carry, None if nothing is stacked."
            )
        return new_leaves(self.body, self.leaves, self.carried, out[0]), out[1]

    def _carry_tree(self, carry: list[Any]) -> Any:
        leaves = list(self.leaves)
        for i, value in zip(self.carried, carry, strict=True):
            leaves[i] = value
        return unflatten_frozen(self.body.signature.treedef, leaves)[ARGS][0]


def _length(running: _Running) -> int:
    """The number of steps.

    **Raises:** `ValueError` if there is nothing to take it from, and if sizes disagree.
    """
    body, length = running.body, running.options.length
    fn = body.described.fn
    running.roles.refuse_no_axis(running.leaves)
    axes = running.roles.axes
    arrays = [(i, running.leaves[i]) for i in axes]
    sizes = {x.shape[axes[i]] if x.ndim else None for i, x in arrays}
    if length is not None:
        sizes.add(length)
    if len(sizes) == 1 and None not in sizes:
        return int(sizes.pop() or 0)
    if not sizes:
        raise ValueError(
            f"{fn} has no array to loop over, so there is nothing to take the number of steps from. "
            "Pass it: length=10."
        )
    layout, names = body.signature.layout, body.described.names
    shown = [
        f"    {body.signature.place(layout.key_path_of_leaf[i], names)}: shape {tuple(x.shape)}"
        + (f", axis {axes[i]}" if any(axes.values()) else "")
        for i, x in arrays
    ]
    which = "an axis" if any(axes.values()) else "the first axis"
    given = [] if length is None else [f"    length={length}"]
    raise ValueError(
        f"{fn} loops over {which} of every array in xs, but their sizes differ:\n"
        + "\n".join([*shown, *given])
        + "\nBind the function to arrays that are the same in all steps: "
        "ft.partial(f, array)."
    )


class _Scan(ControlFlow):
    """A loop over arrays, called as a statement."""

    __slots__ = ("options",)

    options: LoopOptions

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super()._take_apart(args, kwargs)
        if self.options.has_carry:
            refuse_live(call, self._rewritten)
        return call

    def _rewritten(self) -> tuple[str, str, str]:
        (fn,) = codes_of(self.fun)
        line = f"carry, ys = ps.scan(ft.partial({fn}, {{tree}}), carry, xs)"
        return self._code(), line, f"ys = ps.for_loop(ft.partial({fn}, {{tree}}), xs)"

    def _options_key(self) -> Hashable:
        return _Scan, self.options

    def _program(self, call: Call) -> _Loop:
        return flat_function_of(call, self._code(), _Loop, self.options)

    def _code(self) -> str:
        (fn,) = codes_of(self.fun)
        return f"ps.scan({fn})" if self.options.has_carry else f"ps.for_loop({fn})"

    def _shown(self, call: Call, index: int) -> str:
        (fn,) = codes_of(self.fun)
        if self.options.has_carry:
            in_xs = call.signature.argument_of_slot[index] == (ARGS, 1)
            xs = call.signature.root(index, call.names) if in_xs else "xs"
            return f"ps.scan({', '.join([fn, 'init', xs, *self._options()])})"
        return f"ps.for_loop({', '.join([fn, *shown_arguments(call), *self._options()])})"

    def _options(self) -> list[str]:
        return self.options.code()


@public
@short_tracebacks
def scan(
    f: Callable[[Carry, Any], tuple[Carry, Out]] | Body,
    init: Any,
    xs: Any = None,
    length: Integer | None = None,
    reverse: bool = False,
    unroll: Integer = 1,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    state_in_axes: StateAxes = None,
    state_out_axes: StateAxes = None,
    checkpoints: Integer | None = None,
    progress: Progress = None,
) -> tuple[Carry, Out]:
    """Loop over arrays, with a carry.

    It is `jax.lax.scan` with states. Those of the module that `f` is bound to, or of a partial, go
    from step to step, including random states: each step draws new numbers. States in `xs` are
    sliced along their first axis, as in a stack of layers; the values written into the slices are
    stacked. A `NonBatchState` in `xs` is never sliced, but goes from step to step. The values that
    steps write into a `SownState` are stacked. Called eagerly, the loop is compiled once for each
    signature.

    **Arguments:**

    - `f`: a function, bound method, callable module or partial: `carry, y = f(carry, x)`.
    - `init`: the first carry, any pytree. Numbers become arrays; other non-array leaves are static.
        Frozen states in it are data. Live states are refused.
    - `xs`: a pytree of arrays and states, of shape `(length, ...)`.
    - `length`, `reverse`, `unroll`: as in `jax.lax.scan`.
    - `in_axes`: which axis of `xs` is sliced, a prefix of it; `None` for arrays that all steps
        share.
    - `out_axes`: the axis along which `ys` are stacked, a prefix of `y`.
    - `state_in_axes`: for states in `xs`, overriding `in_axes`: `{axis: filter}` in priority order,
        or a bare filter meaning `{0: filter}`. `None` shares states among all steps, which may only
        read them; `"carry"` carries them from step to step.
    - `state_out_axes`: the axis along which writes into slices are stacked, `{axis: filter}`; by
        default the one that the state was sliced along.
    - `checkpoints`: how many steps keep their carry and states for the backward pass, which
        recomputes the others: the same numbers with less memory.
    - `progress`: `True`, a description, or a dict of tqdm's options, for a progress bar, also under
        `jit`. The loop calls the host at most a hundred times to draw it.

    **Returns:** `(carry, ys)`, where `ys` has the tree of `y` and shapes `(length, ...)`.

    **Raises:** `StateTypeError` for a state that changes its shape or dtype, and for a live state in the
    carry; `TypeError` for a carry that changes; `ValueError` if sizes disagree or are unknown, and
    for an axis that does not exist; `FrozenStateError` for a write that would be lost, and for one
    to a state that all steps share.

    !!! example

        >>> import functools as ft
        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def step(model, carry, x):
        ...     model["steps"].value += 1
        ...     return carry + x, carry
        >>> def run(model, xs):
        ...     return ps.scan(ft.partial(step, model), 0.0, xs)
        >>> (total, before), model = ps.pure(run)({"steps": ps.State(0)}, jnp.arange(4.0))
        >>> total.item(), before.tolist(), model["steps"].value.item()
        (6.0, [0.0, 0.0, 1.0, 3.0], 4)
    """
    options = loop_options(
        has_carry=True,
        length=length,
        reverse=reverse,
        unroll=unroll,
        progress=progress,
        in_axes=in_axes,
        out_axes=out_axes,
        state_in_axes=state_in_axes,
        state_out_axes=state_out_axes,
        checkpoints=checkpoints,
    )
    return _Scan(f, options=options)(init, xs)


@public
@short_tracebacks
def for_loop(
    f: Callable[..., Out] | Body,
    *xs: Any,
    length: Integer | None = None,
    reverse: bool = False,
    unroll: Integer = 1,
    in_axes: Any = 0,
    out_axes: Any = 0,
    state_in_axes: StateAxes = None,
    state_out_axes: StateAxes = None,
    checkpoints: Integer | None = None,
    progress: Progress = None,
) -> Out:
    """Loop over arrays, and stack what the function returns.

    It is `scan` without a carry: only the states that `f` is bound to go from step to step.

    **Arguments:**

    - `f`: a function, bound method, callable module or partial: `y = f(*x)`.
    - `xs`: pytrees of arrays and states, of shape `(length, ...)`.
    - `in_axes`: which axes are sliced, as in `vmap2`: an axis, a tuple with an entry per argument, or a
        dict by argument name.
    - `length`, `reverse`, `unroll`, `out_axes`, `state_in_axes`, `state_out_axes`, `checkpoints`,
        `progress`: as for `scan`.

    **Returns:** what `f` returns, stacked: shapes `(length, ...)`.

    **Raises:** as `scan`.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> def draws(rng):
        ...     return ps.for_loop(rng.normal, length=3)
        >>> noise, rng = ps.pure(draws)(ps.RandomState(0))
        >>> noise.shape, len(set(noise.tolist()))
        ((3,), 3)

    One layer of each, with a counter that all of them count on:

        >>> def layer(tree, x):
        ...     tree["n"].value += 1
        ...     return tree["w"].value * x
        >>> tree = {"n": ps.State(0), "w": ps.ParamState(jnp.ones((2, 4)))}
        >>> def run(tree, x):
        ...     specs = {1: ps.ParamState, "carry": ps.State}
        ...     return ps.for_loop(layer, tree, x, in_axes=(0, None), state_in_axes=specs)
        >>> ys, tree = ps.pure(run)(tree, 3.0)
        >>> ys.shape, tree["n"].value.item()
        ((4, 2), 4)
    """
    options = loop_options(
        has_carry=False,
        length=length,
        reverse=reverse,
        unroll=unroll,
        progress=progress,
        in_axes=in_axes,
        out_axes=out_axes,
        state_in_axes=state_in_axes,
        state_out_axes=state_out_axes,
        checkpoints=checkpoints,
    )
    return _Scan(f, options=options)(*xs)
