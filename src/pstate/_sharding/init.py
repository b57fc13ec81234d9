"""`sharded_init`: a model computed on the devices where it will live."""

import functools as ft
import itertools as it
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.tree_util as jtu
from jax.extend.core import jaxpr_as_fun
from jax.sharding import NamedSharding

from .._ground.public import public
from .._ground.tracebacks import short_tracebacks
from .._ground.versions import is_eager
from .._trees.bulk import ARRAYS
from .meshes import mesh_or_current
from .shard import each_once, shard
from .shardings import Placed, placed


P = ParamSpec("P")
T = TypeVar("T")


@public
def sharded_init(make: Callable[P, T], rules: Any, mesh: Any = None) -> Callable[P, T]:
    """A function that makes a model on its devices, without a whole copy on any of them.

    `make` is traced and compiled, so each device computes its own shards. Its draws are the same as
    under `jax.jit` on one device, bit for bit.

    **Arguments:**

    - `make`: returns a model, or any pytree of arrays and states; an initialisation with
        `pstate.nn.init_all_states`, or with `pstate.vmap2_new_states` for an ensemble. It runs once
        per call.
    - `rules`: `{PartitionSpec: filter}` in priority order, as for `pstate.shardings`.
    - `mesh`: a `jax.sharding.Mesh`; by default that of the context.

    **Returns:** a function with the arguments of `make`, which returns the result of `make` with
    its arrays sharded by the rules. Arrays among the arguments are traced; every other leaf, such
    as a size, is static.

    **Raises:** when called, what `pstate.shardings` raises.

    !!! example

        >>> import equinox as eqx
        >>> import jax
        >>> import jax.random as jr
        >>> import pstate as ps
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> make = lambda size, key: eqx.nn.Linear(size, size, key=key)
        >>> model = ps.sharded_init(make, {ps.largest("data"): ...}, mesh)(8, jr.key(0))
        >>> model.weight.sharding.spec == jax.sharding.PartitionSpec("data")
        True
    """

    @ft.wraps(make)
    @short_tracebacks
    def init(*args: Any, **kwargs: Any) -> Any:
        if not is_eager():  # inside another program: the arrays are constrained there
            return shard(make(*args, **kwargs), rules, mesh)
        jitted, operands, build = init_program(make, rules, mesh, args, kwargs)
        return build(jitted(*operands))

    return init


def init_program(
    make: Callable[..., Any], rules: Any, mesh: Any, args: Any, kwargs: Any
) -> tuple[Any, list[Any], Callable[[list[Any]], Any]]:
    """A function that computes a model's arrays in place; its operands; and how to build the model."""
    mesh = mesh_or_current(mesh, "ps.sharded_init")
    leaves, treedef = jtu.tree_flatten((args, kwargs))
    is_operand = [isinstance(leaf, ARRAYS) for leaf in leaves]
    operands = list(it.compress(leaves, is_operand))
    made: list[tuple[list[Placed], list[int], Any]] = []

    def flat(*arrays: Any) -> list[Any]:
        supply = iter(arrays)
        filled = [next(supply) if is_one else x for x, is_one in zip(leaves, is_operand, strict=True)]
        args, kwargs = treedef.unflatten(filled)
        found, outer = placed(make(*args, **kwargs), rules, mesh, "ps.sharded_init")
        once, which = each_once(found)
        made.append((once, which, outer))
        pairs = [pair for item in once for pair in zip(item.leaves, item.shardings, strict=True)]
        return [x for x, sharding in pairs if sharding is not None]

    # Traced once, to a jaxpr, which is then compiled with the shardings that the trace has shown.
    jaxpr = jax.make_jaxpr(flat)(*operands)
    ((once, which, outer),) = made
    found = [sharding for item in once for sharding in item.shardings if sharding is not None]
    where = [NamedSharding(mesh, sharding.spec) for sharding in found]  # the trace has no devices
    jitted = jax.jit(jaxpr_as_fun(jaxpr), out_shardings=where)

    def build(arrays: list[Any]) -> Any:
        supply = iter(arrays)
        new = [
            item.with_leaves(
                [
                    leaf if sharding is None else next(supply)
                    for leaf, sharding in zip(item.leaves, item.shardings, strict=True)
                ]
            )
            for item in once
        ]
        return outer.unflatten([new[i] for i in which])

    return jitted, operands, build
