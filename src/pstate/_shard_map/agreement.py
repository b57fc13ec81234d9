"""The mesh axes over which the outputs of a traced body may differ.

A value differs along a mesh axis if it was computed from something that does, or from the index
along that axis; a reduction over the axis makes it the same again. `flow` follows this through the
equations of a program, once, and never says "the same" about a value that may differ. It knows the
primitives that hold other programs, and assumes the worst for the rest. The rules of `jax.vmap` are
not used: they say what happens to lanes, and a user's rule, a callback, or Equinox's `unvmap_any`
may give all lanes one value where each shard has its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


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
        "eval_jaxpr",
        "jit",
        "pjit",
        "remat",
        "remat2",
        "shard_map",
    }
)
#: Collectives whose result is the same in all shards along their axes.
_REDUCTIONS = frozenset({"all_gather", "pmax", "pmin", "psum"})
#: Primitives that give different numbers on each device without saying so.
_IMPURE = frozenset({"rng_uniform"})


def flow(jaxpr: Jaxpr, inputs: Sequence[Axes], names: Axes) -> list[Axes]:
    """For each output of a program, the mesh axes among `names` over which it may differ.

    `inputs` says the same for the inputs.
    """
    found: dict[Any, Axes] = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda v: _NONE if isinstance(v, Literal) else found.get(v, _NONE)
    for eqn in jaxpr.eqns:
        outs = _through(eqn, [of(v) for v in eqn.invars], names)
        found.update(zip(eqn.outvars, outs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _through(eqn: Any, ins: list[Axes], names: Axes) -> list[Axes]:
    """The axes over which the outputs of an equation differ, given those of its inputs."""
    name, params, n = eqn.primitive.name, eqn.params, len(eqn.outvars)
    if n == 1 and not params and not eqn.effects:  # most equations: `add` and similar ones
        return [_union(ins)] * n
    inside = [one for value in params.values() for one in _programs_in(value)]
    if name in _CALLS and len(inside) == 1 and len(inside[0].invars) == len(ins):
        return flow(inside[0], ins, names)
    if name == "cond":
        of_branches = [flow(branch, ins[1:], names) for branch in inside]
        return [ins[0].union(*each) for each in zip(*of_branches, strict=True)]
    if name == "while":
        return _through_while(params, ins, names)
    if name == "scan":
        return _through_scan(eqn, ins, names)
    if name == "custom_linear_solve":
        return _through_linear_solve(params, ins, names)
    if name == "optimization_barrier":
        return ins
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
        # If shards disagree on when to stop, everything that the loop carries differs.
        new = [old | one | again for old, one in zip(carry, new, strict=True)]
        if new == carry:
            return carry
        carry = new


def _through_scan(eqn: Any, ins: list[Axes], names: Axes) -> list[Axes]:
    (body,) = _programs_in(eqn.params["jaxpr"])
    # Counted, since the parameters depend on JAX's version: scanned inputs, and the outputs of each
    # step, have one axis less inside; the rest has the same.
    n_carry = sum(map(_same_ndim, eqn.outvars, body.outvars))
    n_xs = len(ins) - sum(map(_same_ndim, eqn.invars, body.invars))
    n_consts = len(ins) - n_carry - n_xs
    consts, carry, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    while True:
        outs = flow(body, [*consts, *carry, *xs], names)
        new = [old | one for old, one in zip(carry, outs[:n_carry], strict=True)]
        if new == carry:
            return [*carry, *outs[n_carry:]]
        carry = new


def _same_ndim(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape)


def _through_linear_solve(params: Mapping[str, Any], ins: list[Axes], names: Axes) -> list[Axes]:
    lengths = params["const_lengths"]
    (solve,) = _programs_in(params["jaxprs"].solve)
    start = lengths.matvec + lengths.vecmat
    consts, given = ins[start : start + lengths.solve], ins[sum(lengths) :]
    return flow(solve, [*consts, *given], names)


def _mentions(jaxpr: Jaxpr, names: Axes) -> bool:
    """Whether a program can make equal values differ: it names an axis, or has an effect."""
    for eqn in jaxpr.eqns:
        inside = [one for value in eqn.params.values() for one in _programs_in(value)]
        if _is_impure(eqn) or not names.isdisjoint(_tokens(eqn.params.values())):
            return True
        if any(_mentions(one, names) for one in inside):
            return True
    return False


def _is_impure(eqn: Any) -> bool:
    """Whether an equation does more than compute, such as a callback or a reference to memory."""
    noted = any(type(effect).__name__ != "NamedAxisEffect" for effect in eqn.effects)
    return noted or eqn.primitive.name in _IMPURE


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
