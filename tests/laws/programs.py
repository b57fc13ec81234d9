"""Programs as data: which primitives a function traces to, and how they nest."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def program(fn: Callable[..., Any], *args: Any, unused: bool = True, **kwargs: Any) -> Any:
    """The program of `fn`: a sorted tuple of `(primitive, programs inside)`.

    Sorted, because the order of independent equations means nothing. With `unused=False`, without the
    equations whose results nothing uses.
    """
    arrays, rest = eqx.partition((args, kwargs), eqx.is_array)

    def flat(arrays: Any) -> Any:
        args, kwargs = eqx.combine(arrays, rest)
        return eqx.filter(fn(*args, **kwargs), eqx.is_array)

    return _program(jax.make_jaxpr(flat)(arrays).jaxpr, unused)


def _program(jaxpr: Jaxpr, unused: bool) -> tuple[Any, ...]:
    eqns = jaxpr.eqns if unused else _without_unused(jaxpr)
    return tuple(sorted((eqn.primitive.name, _inside(eqn, unused)) for eqn in eqns))


def _without_unused(jaxpr: Jaxpr) -> list[Any]:
    needed = {id(v) for v in jaxpr.outvars}
    used = []
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in eqn.outvars) or not eqn.outvars:
            used.append(eqn)
            needed |= {id(v) for v in eqn.invars}
    return used


def _inside(eqn: Any, unused: bool) -> tuple[Any, ...]:
    found = []
    # JAX 0.12 keeps the program of a custom derivative in an object, and no longer in the parameters
    higher = getattr(eqn.params.get("_prim"), "traced", None)
    for param in (*eqn.params.values(), *([higher.jaxpr] if higher is not None else ())):
        for item in param if isinstance(param, tuple | list) else (param,):
            if isinstance(item, ClosedJaxpr):
                item = item.jaxpr
            if isinstance(item, Jaxpr):
                found.append(_program(item, unused))
    return tuple(found)
