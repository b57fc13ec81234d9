"""`pure`, `pack` and recordings."""

import functools as ft
from typing import Any, reveal_type

import equinox as eqx
import jax
import jax.random as jr
from equinox.nn import Linear
from jax import Array
from models import Norm, loss, m, of_arrays, of_dict, special, x, xs

import pstate as ps


# Functions: argument 0 comes back. It may be a module, a state, or a container of these.
reveal_type(ps.pure(loss))  # is: PureOf[(model: Norm, x: Array) -> Array]
reveal_type(ps.pure(loss)(m, x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(loss, writes=ps.State)(m, x=x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(loss, argnums=0)(m, x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(loss)(special, x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(of_dict)({"n": ps.State(0)}, x))  # is: tuple[Array, dict[str, State[Array]]]
reveal_type(ps.pure(of_dict, argnums=(0, 1))({"n": ps.State(0)}, x))  # is: tuple[Array, tuple[Any, ...]]
reveal_type(ps.pure(of_arrays)(x, x))  # is: tuple[Array, Any]
reveal_type(ps.pure(of_arrays, argnums=1)(x, x))  # is: tuple[Array, Any]

# Modules and methods.
reveal_type(ps.pure(m))  # is: Pure[(x: Array), tuple[Array, Norm], Norm]
reveal_type(ps.pure(m)(x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(special)(x))  # is: tuple[Array, Special]
reveal_type(ps.pure(Norm.__call__)(m, x))  # is: tuple[Array, Norm]
reveal_type(ps.pure(Norm.train)(m, x, factor=2.0))  # is: tuple[Array, Norm]
reveal_type(ps.pure(Norm.reset)(m))  # is: tuple[None, Norm]
reveal_type(ps.pure(m.train))  # is: PureOf[(x: Array, factor: float) -> Array]
reveal_type(ps.pure(m.train)(x, factor=2.0))  # is: tuple[Array, Any]
reveal_type(ps.pure(m.train)(x=x))  # is: tuple[Array, Any]
reveal_type(ps.pure(m.reset)())  # is: tuple[None, Any]
reveal_type(ps.pure(ft.partial(loss, m))(x))  # is: tuple[Array, Any]
linear = Linear(3, 3, key=jr.key(0))
reveal_type(ps.pure(linear)(x))  # is: tuple[Array, Linear]

# Random states.
rng = ps.RandomState(0)
reveal_type(rng.value)  # is: Array
reveal_type(ps.pure(rng.normal)())  # is: tuple[Array, Any]
draw: Array
draw, rng = ps.pure(rng.normal)(size=(2,))

# Decorators.
reveal_type(m.stepped)  # is: Pure[(x: Array), tuple[Array, Norm], Norm]
reveal_type(m.stepped(x))  # is: tuple[Array, Norm]
reveal_type(special.stepped(x))  # is: tuple[Array, Special]
reveal_type(Norm.stepped(m, x))  # is: tuple[Array, Norm]


@ps.pure
def step(model: Norm, y: Array) -> Array:
    return model(y)


@ps.pure(writes=ps.State)
def checked_step(model: Norm, y: Array) -> Array:
    return model(y)


@ps.pure(writes=None)
def of_array(y: Array) -> Array:
    return y


@ps.pure
@ps.jit(donate=None)
def compiled_step(model: Norm, y: Array) -> Array:
    return model(y)


@ps.pure
@ps.vmap2(in_axes=(None, 0))
def mapped_step(model: Norm, y: Array) -> Array:
    return model(y)


reveal_type(step(m, x))  # is: tuple[Array, Norm]
reveal_type(checked_step(m, x))  # is: tuple[Array, Norm]
reveal_type(of_array(x))  # is: tuple[Array, Any]
reveal_type(compiled_step)  # is: PureOf[Jit[(model: Norm, y: Array), Array, object]]
reveal_type(mapped_step)  # is: PureOf[StatefulMapping[(model: Norm, y: Array), Array, object]]
reveal_type(mapped_step(m, xs))  # is: tuple[Array, Norm]

# A packed tree comes back packed.
reveal_type(ps.pack(m))  # is: Packed[Norm]
reveal_type(ps.pack(ps.pack(m)))  # is: Packed[Norm]
reveal_type(ps.pack(m).unpack())  # is: Norm
reveal_type(compiled_step(ps.pack(m), x))  # is: tuple[Array, Packed[Norm]]
reveal_type(compiled_step(m, x))  # is: tuple[Array, Norm]

# JAX and Equinox go on from here.
reveal_type(eqx.filter_jit(ps.pure(loss))(m, x))  # is: tuple[Array, Norm]
reveal_type(ps.jit(ps.pure(loss))(m, x))  # is: tuple[Array, Norm]
pair: tuple[Array, Norm] = jax.jit(ps.pure(loss))(m, x)

# Recordings.
with ps.record(m) as live:
    reveal_type(live)  # is: Norm
    reveal_type(ps.freeze(live))  # is: Norm
with ps.record(ps.pack(m)) as unpacked:
    reveal_type(unpacked)  # is: Norm
reveal_type(ps.written(live))  # is: dict[tuple[Any, ...], Any]


# What nobody annotated is `Any`, and no error.
def of_any(model: Any, y: Array) -> Array:
    return loss(model, y)


reveal_type(ps.pure(of_any)(m, x))  # is: tuple[Array, Any]
reveal_type(ps.pure(lambda r: r.normal())(ps.RandomState(0)))  # is: tuple[Any, Any]
reveal_type(ps.pure(lambda s, y: s.value + y)(ps.State(0), x))  # is: tuple[Any, Any]
reveal_type(ps.pure(ps.for_loop)(m, xs))  # is: tuple[Any, Norm]
reveal_type(ps.pure(ps.jit(ps.for_loop))(m, xs))  # is: tuple[Any, Norm]
reveal_type(ps.pure(ps.vmap2(ps.for_loop, in_axes=(None, 0)))(m, xs[None]))  # is: tuple[Any, Norm]
