"""`pmap2`: a refused call gives up no buffer, and programs follow the settings that JAX's follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


def counted(state, x):
    state.value = state.value + x
    return state.value * 2


def echoed(state, x):
    state.value = state.value + x
    return state


XS = jnp.arange(4.0)


def ones():
    """A state whose value stands on the devices, so that a call can give it up."""
    return ps.State(jax.pmap(lambda x: x)(jnp.ones(4)))


def call_outside_pure(state):
    ps.pmap2(counted, donate=...)(state, XS)


def call_against_the_contract(state):
    ps.pure(ps.pmap2(counted, donate=...), writes=ps.BatchState)(state, XS)


def call_with_the_wrong_argnums(state):
    ps.pure(ps.pmap2(counted, donate=...), argnums=1)(state, XS)


def call_that_echoes(state):
    ps.pure(ps.pmap2(echoed, donate=...))(state, XS)


def call_with_a_keyword(state):
    swapped = lambda x, state: counted(state, x)
    ps.pure(ps.pmap2(swapped, donate=...))(XS, state=state)


def call_by_argument(state):
    ps.pmap2(counted, donate_argnums=(0, 1))(state, XS)


@pytest.mark.parametrize(
    "call",
    [
        call_outside_pure,
        call_against_the_contract,
        call_with_the_wrong_argnums,
        call_that_echoes,
        call_with_a_keyword,
        call_by_argument,
    ],
)
@pytest.mark.parametrize("again", [False, True], ids=["cold", "warm"])
def test_a_refused_call_gives_up_nothing(call, again):
    """What is refused is found out before anything runs, so every input can still be used."""
    state = ones()
    for _ in range(1 + again):
        with pytest.raises(ps.StateError):
            call(state)
    np.testing.assert_array_equal(state.value, np.ones(4))
    np.testing.assert_array_equal(XS, np.arange(4.0))


def test_a_call_that_is_right_donates():
    """The twin of the above: with `pure`, the overwritten buffer is gone."""
    state = ones()
    ys, new = ps.pure(ps.pmap2(counted, donate=...))(state, XS)
    np.testing.assert_array_equal(new.value, 1 + np.arange(4.0))
    np.testing.assert_array_equal(ys, 2 + 2 * np.arange(4.0))
    assert state.value.is_deleted()


def enable_x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def test_programs_follow_x64():
    """A program that was traced in 32 bits does not serve calls in 64."""
    third = lambda x: x * 0 + jnp.asarray(1.0) / 3
    mapped = ps.pmap2(third)
    assert mapped(np.arange(4)).dtype == jnp.float32
    with enable_x64():
        assert mapped(np.arange(4)).dtype == jnp.float64
    assert mapped(np.arange(4)).dtype == jnp.float32


def test_programs_follow_promotion():
    """Strict promotion refuses in a second call what it refuses in a first."""
    mixed = ps.pmap2(lambda x: x + jnp.int32(1))
    xs = jnp.arange(4.0)
    assert mixed(xs).tolist() == [1.0, 2.0, 3.0, 4.0]
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        mixed(xs)
    with jax.numpy_rank_promotion("raise"):
        assert mixed(xs).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_programs_follow_precision():
    """Another matmul precision is another program."""
    mapped = ps.pmap2(lambda x: x @ x.T)
    xs = jnp.ones((4, 2, 2))
    before = mapped.get_jaxpr_by_cache(mapped.get_arg_cache_key(xs))
    with jax.default_matmul_precision("highest"):
        mapped(xs)
        assert "HIGHEST" in str(mapped.get_jaxpr_by_cache(mapped.get_arg_cache_key(xs)))
    assert "HIGHEST" not in str(before)


@pytest.mark.parametrize("donate", [{}, {"donate": ...}], ids=["plain", "donate"])
def test_jit_follows_x64(donate):
    """So does `jit`, with donation too, whose choice of buffers is remembered by shapes."""

    def write(state):
        state.value = state.value + jnp.ones(2) / 3

    step = ps.pure(ps.jit(write, **donate))
    assert step(ps.State(jnp.zeros(2, jnp.float32)))[1].value.dtype == jnp.float32
    with enable_x64():
        assert step(ps.State(jnp.zeros(2, jnp.float32)))[1].value.dtype == jnp.float64
    assert step(ps.State(jnp.zeros(2, jnp.float32)))[1].value.dtype == jnp.float32
