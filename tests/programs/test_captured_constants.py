"""What a compiled body made or wrote itself is no capture, whatever its value; what it read is one."""

from typing import Any

import jax.numpy as jnp
import pytest

import pstate as ps


ONES = jnp.ones(3)


def read(tree: Any, x: Any) -> Any:
    return tree["h"].value + x


def written_and_run(tree: Any, x: Any) -> Any:
    tree["h"].value = ONES
    return ps.pure(read)(tree, x)[0]


def written_and_run_twice(tree: Any, x: Any) -> Any:
    tree["h"].value = ONES
    return ps.pure(lambda tree, x: ps.pure(read)(tree, x)[0])(tree, x)[0]


def written_and_mapped(tree: Any, x: Any) -> Any:
    tree["h"].value = ONES
    return ps.vmap2(read, in_axes=(None, 0))(tree, jnp.full(1, x))[0]


def made_and_mapped(tree: Any, x: Any) -> Any:
    return ps.vmap2(read, in_axes=(None, 0))({"h": ps.State(ONES)}, jnp.full(1, x))[0]


def updated_and_run(tree: Any, x: Any) -> Any:
    tree = ps.update(ps.freeze(tree), {("h",): ONES})
    return ps.pure(read)(tree, x)[0]


def written_and_compiled(tree: Any, x: Any) -> Any:
    tree["h"].value = ONES
    return ps.jit(read)(tree, x)


def made_and_compiled(tree: Any, x: Any) -> Any:
    return ps.jit(read)({"h": ps.State(ONES)}, x)


def packed_and_compiled(tree: Any, x: Any) -> Any:
    return ps.jit(read)(ps.pack({"h": ps.State(ONES)}), x)


def made_and_recomputed(tree: Any, x: Any) -> Any:
    return ps.checkpoint(read)({"h": ps.State(ONES)}, x)


def made_for_a_branch(tree: Any, x: Any) -> Any:
    return ps.cond(x > 0, read, read, {"h": ps.State(ONES)}, x)


def beside_a_captured_state(tree: Any, x: Any) -> Any:
    return ps.jit(lambda own, other, x: read(own, x))({"h": ps.State(ONES)}, OTHER, x)


#: A tree that is passed on, and in which nothing is read.
OTHER = {"h": ps.State(2 * ONES)}

MADE_INSIDE = [
    written_and_run,
    written_and_run_twice,
    written_and_mapped,
    made_and_mapped,
    updated_and_run,
    written_and_compiled,
    made_and_compiled,
    packed_and_compiled,
    made_and_recomputed,
    made_for_a_branch,
    beside_a_captured_state,
]


@pytest.mark.parametrize("f", MADE_INSIDE, ids=lambda f: f.__name__)
def test_a_constant_of_the_body_is_no_capture(f: Any):
    """A constant array that the body gave to a state may be read through further transforms."""
    out, _ = ps.pure(ps.jit(f))({"h": ps.State(jnp.zeros(3))}, 2.0)
    assert out.tolist() == [3, 3, 3]


def test_states_that_update_takes_are_read():
    """Values from states that are no arguments are refused in a compiled body, and run in another."""
    other = {"h": ps.State(ONES)}

    def reset(tree: Any, x: Any) -> Any:
        ps.update(tree, ps.states(other))
        return tree["h"].value + x

    tree = {"h": ps.State(jnp.zeros(3))}
    with pytest.raises(ps.CapturedStateError, match=r"ps\.jit\(reset\) reads the state"):
        ps.pure(ps.jit(reset))(tree, 2.0)
    assert ps.pure(reset)(tree, 2.0)[0].tolist() == [3, 3, 3]

    def reset_to(tree: Any, other: Any, x: Any) -> Any:
        ps.update(tree, ps.states(other))
        return tree["h"].value + x

    out, _ = ps.pure(ps.jit(reset_to), argnums=0)(tree, other, 2.0)
    assert out.tolist() == [3, 3, 3]
