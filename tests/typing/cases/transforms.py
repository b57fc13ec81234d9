"""`jit`, mappings, `checkpoint` and custom rules: they are called like what they are made of."""

from typing import reveal_type

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from models import Norm, apply, loss, m, make, special, x, xs

import pstate as ps


# `jit`.
reveal_type(ps.jit(loss))  # is: Jit[(model: Norm, x: Array), Array, object]
reveal_type(ps.pure(ps.jit(loss)))  # is: PureOf[Jit[(model: Norm, x: Array), Array, object]]
reveal_type(ps.pure(ps.jit(loss))(m, x))  # is: tuple[Array, Norm]
reveal_type(ps.jit(m))  # is: Jit[(x: Array), Array, Norm]
reveal_type(ps.pure(ps.jit(m))(x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(ps.jit(m.train))(x, factor=2.0))  # is: tuple[Array, Any]
reveal_type(ps.jit(lambda y: jnp.sin(y))(x))  # is: Array
compiled = ps.pure(ps.jit(loss)).lower(m, x).compile()

# On methods: the module comes back in its own class.
reveal_type(Norm.compiled)  # is: Jit[(self: Norm, x: Array), Array, object]
reveal_type(m.compiled)  # is: Jit[(x: Array), Array, Norm]
reveal_type(special.with_options)  # is: Jit[(x: Array), Array, Special]
reveal_type(ps.pure(m.compiled)(x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(special.with_options)(x))  # is: tuple[Array, Special]
reveal_type(ps.pure(Norm.compiled)(m, x))  # is: tuple[Array, Norm]
jaxpr = m.compiled.get_jaxpr_by_cache(m.compiled.get_arg_cache_key(x))

# Mappings.
mapped = ps.vmap2(loss, in_axes=(None, 0))
reveal_type(mapped)  # is: StatefulMapping[(model: Norm, x: Array), Array, object]
reveal_type(ps.pure(mapped)(m, xs))  # is: tuple[Array, Norm]
reveal_type(ps.vmap2(make, 0, 0, "lanes")(jax.random.split(jax.random.key(0), 2)))  # is: Norm
reveal_type(ps.pure(ps.vmap2(m))(xs))  # is: tuple[Array, Norm]
reveal_type(m.mapped)  # is: StatefulMapping[(x: Array), Array, Norm]
reveal_type(ps.pure(m.mapped)(xs))  # is: tuple[Array, Norm]
reveal_type(ps.pure(special.mapped_over_columns)(xs))  # is: tuple[Array, Special]
reveal_type(ps.pure(mapped.lane(1))(m, xs))  # is: tuple[Array, Norm]
reveal_type(ps.pmap2(loss, in_axes=(None, 0)))  # is: StatefulMapping[(model: Norm, x: Array), Array, object]
reveal_type(ps.pure(ps.pmap2(loss, in_axes=(None, 0)))(m, xs[:1]))  # is: tuple[Array, Norm]
reveal_type(ps.pure(ps.StatefulMapping(loss, (None, 0)))(m, xs))  # is: tuple[Array, Norm]
table = m.mapped.explain(xs)

mesh = jax.make_mesh((1,), ("data",))
cut = PartitionSpec("data")  # error: ; no-untyped-call
sharded = ps.shard_map2(apply, mesh=mesh, in_specs=(None, cut), out_specs=cut)
reveal_type(sharded)  # is: ShardMapped[(model: Norm, x: Array), Array, object]
reveal_type(ps.pure(sharded)(m, x))  # is: tuple[Array, Norm]

# `checkpoint`.
reveal_type(ps.checkpoint(loss))  # is: Checkpoint[(model: Norm, x: Array), Array, object]
reveal_type(ps.pure(ps.checkpoint(m))(x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(m.recomputed)(x))  # is: tuple[Array, Norm]

# They nest.
reveal_type(ps.pure(ps.jit(ps.vmap2(m)))(xs))  # is: tuple[Array, Norm]
reveal_type(ps.pure(ps.jit(ps.vmap2(ps.checkpoint(loss), (None, 0))))(m, xs))  # is: tuple[Array, Norm]


# Custom rules.
@ps.custom_vjp
def spike(model: Norm, v: Array) -> Array:
    return jnp.where(v > 0, 1.0, 0.0)


def fwd(model: Norm, v: Array) -> tuple[Array, Array]:
    return spike(model, v), v


def bwd(v: Array, cotangent: Array) -> tuple[None, Array]:
    return None, cotangent


spike.defvjp(fwd, bwd)
reveal_type(spike)  # is: CustomVjp[(model: Norm, v: Array), Array, object]
reveal_type(ps.pure(spike)(m, x))  # is: tuple[Array, Norm]


@ps.custom_jvp(nondiff_argnums=0)
def rounded(model: Norm, v: Array) -> Array:
    return jnp.round(v)


@rounded.defjvp
def jvp(model: Norm, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return rounded(model, *primals), tangents[0]


reveal_type(ps.pure(rounded)(m, x))  # is: tuple[Array, Norm]
