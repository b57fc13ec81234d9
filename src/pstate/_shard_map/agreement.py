"""Over which mesh axes the outputs of a traced body may differ.

A value differs along a mesh axis where it was computed from something that does, or from the place
along that axis; a reduction over the axis makes it the same again. `flow` follows that through the
equations of a program, once, and never says "the same" of what may differ. It knows few
primitives, and takes the rest for the worst; so where it would have a value refused, `by_batching`
looks again, with the rules of `jax.vmap`, which know all of them and take half the time of a
trace. They are not asked where values move between shards: of one that is the same in all, `jax.vmap`
moves nothing, and a shard to which nothing is sent gets zeros.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from .._mapping.probes import which_differ


Axes = frozenset[str]

_NONE: Axes = frozenset()
#: Primitives that call one program, with its inputs and outputs in order.
_CALLS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_vmap_call",
        "jit",
        "pjit",
        "remat",
        "remat2",
        "shard_map",
    }
)
#: Collectives whose result is the same in all shards along their axes.
_REDUCTIONS = frozenset({"all_gather", "pmax", "pmin", "psum"})


def may_differ(
    jaxpr: Jaxpr, inputs: Sequence[Axes], sizes: Mapping[str, int], allowed: Sequence[Axes]
) -> list[Axes]:
    """For each output of a program the mesh axes over which it may differ.

    `inputs` says it of the inputs, and `sizes` has the size of each mesh axis. Where an output differs
    over more axes than are `allowed`, that was looked at twice.
    """
    names = frozenset(sizes)
    found = flow(jaxpr, inputs, names)
    if all(axes <= fine for axes, fine in zip(found, allowed, strict=True)) or _moves(jaxpr, names):
        return found
    try:
        exactly = by_batching(jaxpr, inputs, sizes)
    except Exception:  # what cannot be mapped, such as groups of shards, is taken for the worst
        return found
    return [a & b for a, b in zip(found, exactly, strict=True)]


def flow(jaxpr: Jaxpr, inputs: Sequence[Axes], names: Axes) -> list[Axes]:
    """For each output of a program the mesh axes, among `names`, over which it may differ.

    `inputs` says it of the inputs.
    """
    found: dict[Any, Axes] = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda v: _NONE if isinstance(v, Literal) else found.get(v, _NONE)
    for eqn in jaxpr.eqns:
        outs = _through(eqn, [of(v) for v in eqn.invars], names)
        found.update(zip(eqn.outvars, outs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _through(eqn: Any, ins: list[Axes], names: Axes) -> list[Axes]:
    """What an equation makes of the axes over which its inputs differ."""
    name, params, n = eqn.primitive.name, eqn.params, len(eqn.outvars)
    if not params and not eqn.effects:  # most of all: `add` and its like
        return [_union(ins)] * n
    inside = [one for value in params.values() for one in _programs_in(value)]
    if name in _CALLS and len(inside) == 1 and len(inside[0].invars) == len(ins):
        return flow(inside[0], ins, names)
    if name == "cond":
        of_branches = [flow(branch, ins[1:], names) for branch in inside]
        return [ins[0].union(*each) for each in zip(*of_branches, strict=True)]
    if name == "while":
        return _through_while(params, ins, names)
    if name == "scan" and "num_consts" in params:
        return _through_scan(params, ins, names)
    if inside:
        return [_union(ins) | (names if any(_mentions(one, names) for one in inside) else _NONE)] * n
    if _is_impure(eqn):
        return [names] * n
    used = names & frozenset(_tokens(params.values()))
    if name in _REDUCTIONS and params.get("axis_index_groups") is None:
        return [one - used for one in ins] if n == len(ins) else [_union(ins) - used] * n
    return [_union(ins) | used] * n


def _through_while(params: Mapping[str, Any], ins: list[Axes], names: Axes) -> list[Axes]:
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    cond, body, carry = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    while True:
        (again,) = flow(params["cond_jaxpr"].jaxpr, [*cond, *carry], names)
        new = flow(params["body_jaxpr"].jaxpr, [*body, *carry], names)
        # Where shards disagree on when to stop, everything that the loop carries differs.
        new = [old | one | again for old, one in zip(carry, new, strict=True)]
        if new == carry:
            return carry
        carry = new


def _through_scan(params: Mapping[str, Any], ins: list[Axes], names: Axes) -> list[Axes]:
    n_consts, n_carry = params["num_consts"], params["num_carry"]
    consts, carry, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    while True:
        outs = flow(params["jaxpr"].jaxpr, [*consts, *carry, *xs], names)
        new = [old | one for old, one in zip(carry, outs[:n_carry], strict=True)]
        if new == carry:
            return [*carry, *outs[n_carry:]]
        carry = new


def _mentions(jaxpr: Jaxpr, names: Axes) -> bool:
    """Whether a program can make differ what is the same: it names an axis, or has an effect."""
    for eqn in jaxpr.eqns:
        inside = [one for value in eqn.params.values() for one in _programs_in(value)]
        if _is_impure(eqn) or not names.isdisjoint(_tokens(eqn.params.values())):
            return True
        if any(_mentions(one, names) for one in inside):
            return True
    return False


def _moves(jaxpr: Jaxpr, names: Axes) -> bool:
    """Whether a program has collectives that `jax.vmap` does not take for what they are."""
    for eqn in jaxpr.eqns:
        inside = [one for value in eqn.params.values() for one in _programs_in(value)]
        if any(_moves(one, names) for one in inside):
            return True
        known = inside or eqn.primitive.name in _REDUCTIONS | {"axis_index"}
        if not known and not names.isdisjoint(_tokens(eqn.params.values())):
            return True
    return False


def _is_impure(eqn: Any) -> bool:
    """Whether an equation does more than compute, such as a callback or a reference to memory."""
    return any(type(effect).__name__ != "NamedAxisEffect" for effect in eqn.effects)


def _programs_in(value: Any) -> Iterator[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _programs_in(one)


def _tokens(values: Iterable[Any]) -> Iterator[str]:
    """The strings among parameters: an equation that uses a mesh axis has its name there."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple | list | frozenset | set):
            yield from _tokens(value)


def _union(axes: Sequence[Axes]) -> Axes:
    return axes[0] if len(axes) == 1 else _NONE.union(*axes)


def by_batching(jaxpr: Jaxpr, inputs: Sequence[Axes], sizes: Mapping[str, int]) -> list[Axes]:
    """The same by the rules of `jax.vmap`: every mesh axis is an axis that is mapped.

    `sizes` has the size of each mesh axis. Nothing is computed.

    **Raises:** what JAX raises for a program that it cannot map.
    """
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr, []))
    found: list[set[str]] = [set() for _ in jaxpr.outvars]
    for asked in sizes:
        order = [*(name for name in sizes if name != asked), asked]  # the last is the innermost
        differ: list[bool] = []

        def probe(reference: Any, *values: Any, differ: list[bool] = differ) -> Any:
            differ.extend(which_differ(reference, run(*values)))
            return reference

        mapped: Any = probe
        for name in reversed(order):
            in_axes = (0 if name == asked else None, *[0 if name in axes else None for axes in inputs])
            mapped = jax.vmap(mapped, in_axes=in_axes, axis_name=name, axis_size=sizes[name])
        avals: list[Any] = [v.aval for v in jaxpr.invars]
        stacked = [
            jax.ShapeDtypeStruct((*(sizes[n] for n in order if n in axes), *aval.shape), aval.dtype)
            for axes, aval in zip(inputs, avals, strict=True)
        ]
        jax.eval_shape(mapped, jax.ShapeDtypeStruct((sizes[asked],), jnp.int32), *stacked)
        for axes, differs in zip(found, differ, strict=True):
            axes |= {asked} if differs else set()
    return list(map(frozenset, found))
