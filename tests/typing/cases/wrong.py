"""Mistakes that checkers find. Not to be run."""

import jax.numpy as jnp
from jax import Array
from models import Norm, loss, m, x

import pstate as ps


# A missing argument, one too many, one of a wrong type, a name that is none.
ps.pure(loss)(m)  # error: reportCallIssue; call-overload
ps.pure(loss)(m, x, x)  # error: reportCallIssue; call-overload
ps.pure(loss)(m, "x")  # error: reportCallIssue reportArgumentType; call-overload
ps.pure(loss)(x, x)  # error: reportCallIssue reportArgumentType; call-overload
ps.pure(loss)(m, y=x)  # error: reportCallIssue; call-overload
ps.pure(m)()  # error: reportCallIssue; call-arg
ps.pure(m)("x")  # error: reportArgumentType; arg-type
ps.pure(m.train)()  # error: reportCallIssue; call-arg
ps.jit(loss)(m)  # error: reportCallIssue; call-arg
ps.jit(m)("x")  # error: reportArgumentType; arg-type
ps.pure(ps.jit(loss))(m)  # error: reportCallIssue; call-overload
ps.pure(m.mapped)()  # error: reportCallIssue; call-arg
ps.vmap2(loss)(m, "x")  # error: reportArgumentType; arg-type
ps.value_and_grad(loss)(m)  # error: reportCallIssue; call-overload
ps.pure(ps.jit(ps.value_and_grad(loss)))(m, "x")  # error: reportCallIssue reportArgumentType; call-overload

# Options.
ps.vmap2(loss, unexpected_out_state_mapping="rasie")  # error: reportCallIssue reportArgumentType; call-overload
ps.pmap2(loss, unexpected_out_state_mapping="rasie")  # error: reportCallIssue reportArgumentType; call-overload
ps.StatefulMapping(loss, unexpected_out_state_mapping="rasie")  # error: reportArgumentType; arg-type
ps.vmap2(loss, in_axis=0)  # error: reportCallIssue; call-overload
ps.jit(loss, donat=ps.State)  # error: reportCallIssue; call-overload
ps.jit(loss, donate=3)  # error: reportCallIssue reportArgumentType; call-overload
ps.shard_map2(loss, mesh=None)  # error: reportCallIssue; call-overload
ps.grad(loss, has_aux=1)  # error: reportCallIssue reportArgumentType; call-overload
ps.pure(loss, write=ps.State)  # error: reportCallIssue; call-overload
ps.checkpoint(3)  # error: reportCallIssue reportArgumentType; call-overload


# Functions that loops and branches do not take.
def no_pair(carry: Array, y: Array) -> Array:
    return carry


def other_carry(carry: Array) -> str:
    return "carry"


ps.scan(no_pair, x, x)  # error: reportArgumentType; arg-type
ps.while_loop(lambda carry: True, other_carry, x)  # error: reportArgumentType; misc
ps.cond(True, 3, loss, m, x)  # error: reportArgumentType; arg-type


# What comes back.
text: str = ps.pure(loss)(m, x)[0]  # error: reportAssignmentType; assignment
array: Array = ps.pure(m)(x)[1]  # error: reportAssignmentType; assignment
norm: Norm = ps.pack(m)  # error: reportAssignmentType; assignment
m.stepped(x).value  # error: reportAttributeAccessIssue; attr-defined

# Values.
m.weight.value = "text"  # error: reportAttributeAccessIssue; assignment
ps.State({"a": jnp.ones(3)}).value = {"b": "text"}  # error: reportAttributeAccessIssue; dict-item
m.weight.tag = ("a",)  # error: reportAttributeAccessIssue; misc
