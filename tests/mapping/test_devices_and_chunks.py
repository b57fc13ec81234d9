"""What is particular to `pmap2` and to `chunk_size`; that they agree with `vmap2` is a law."""

import functools as ft
import gc
import re
import weakref

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps


def add(state, x):
    state.value = state.value + x
    return state.value


# Devices --------------------------------------------------------------------------------------------


def test_states_live_on_their_devices():
    """A mapped state is spread over the devices and stays there; a shared one is on all of them."""

    def body(tree, x):
        tree["own"].value += x
        tree["n"].value += 1

    mapped = ps.pmap2(body, state_in_axes={None: ps.filter.PathContains("n")})
    tree = {"own": ps.State(jnp.zeros((4, 2))), "n": ps.State(0)}
    for _ in range(3):
        _, tree = ps.pure(mapped)(tree, jnp.ones(4))
    assert len(tree["own"].value.devices()) == 4
    assert {shard.data.shape for shard in tree["own"].value.addressable_shards} == {(1, 2)}
    assert tree["n"].value.shape == ()
    assert tree["n"].value.item() == 3
    np.testing.assert_array_equal(tree["own"].value, np.full((4, 2), 3.0))


def test_a_spread_state_can_be_shared():
    """What one call spread over devices is an operand that all lanes share in the next."""
    _, state = ps.pure(ps.pmap2(add))(ps.State(jnp.zeros(4)), jnp.arange(4.0))
    total = ps.pmap2(lambda s, x: s.value.sum() + x, in_axes=(None, 0))(state, jnp.zeros(4))
    np.testing.assert_array_equal(total, np.full(4, 6.0))


@pytest.mark.parametrize("maker", [ps.pmap2, ft.partial(ps.StatefulMapping, mapping_fn=jax.pmap)])
def test_compiled_once(maker):
    """A warm call runs the body zero times and compiles nothing, also through a new wrapper."""
    runs = []

    def body(state, x):
        runs.append(None)
        return add(state, x)

    state = ps.State(jnp.zeros(4))
    for _ in range(3):
        _, state = ps.pure(maker(body))(state, jnp.ones(4))
    assert len(runs) == 1


@pytest.mark.parametrize("declared", ["state", "output"])
def test_differing_values_declared_the_same(declared):
    """What is declared the same everywhere and differs is refused, not taken from device 0."""

    def body(state, x):
        state.value = state.value + x
        return x

    options = {"state_out_axes": {None: ps.State}} if declared == "state" else {"out_axes": None}
    if declared == "output":
        options["state_out_axes"] = {0: ps.State}
    mapped = ps.pmap2(body, in_axes=(None, 0), **options)
    place = r"`s(tate)?` \(State\)" if declared == "state" else "`out`"
    with pytest.raises(ps.BatchAxisError, match=rf"{place} says that it is the same in all lanes"):
        ps.pure(mapped)(ps.State(0.0), jnp.arange(4.0))


def test_pmap_arguments():
    """`axis_name`, `axis_size`, `devices` and static arguments are those of `jax.pmap`."""
    two = jax.devices()[:2]
    out = ps.pmap2(lambda x: jax.lax.psum(x, "d"), "d", devices=two)(jnp.arange(2.0))
    np.testing.assert_array_equal(out, [1.0, 1.0])
    assert set(out.devices()) == set(two)
    draws, _ = ps.pure(ps.pmap2(lambda rng: rng.normal(), axis_size=3))(ps.RandomState(0))
    same, _ = ps.pure(ps.vmap2(lambda rng: rng.normal(), axis_size=3))(ps.RandomState(0))
    np.testing.assert_array_equal(draws, same)
    static = ps.pmap2(lambda x, mode: x * 2 if mode == "double" else x, static_broadcasted_argnums=1)
    np.testing.assert_array_equal(static(jnp.ones(4), "double"), np.full(4, 2.0))
    np.testing.assert_array_equal(static(jnp.ones(4), "keep"), np.ones(4))
    negative = ps.pmap2(lambda x, mode: x + len(mode), static_broadcasted_argnums=-1)
    np.testing.assert_array_equal(negative(jnp.ones(4), "abc"), np.full(4, 4.0))
    with pytest.raises(ValueError, match=r"static_argnums=\(2,\) counts the arguments.*2 were passed"):
        ps.pmap2(lambda x, y: x, static_broadcasted_argnums=2)(jnp.ones(4), 1)
    with pytest.raises(TypeError, match=r"`args\[1\]` is static.*must be hashable"):
        static(jnp.ones(4), [1])


@pytest.mark.parametrize("options", [{"donate": ps.State}, {"donate_argnums": 0}])
def test_donation(options):
    """A donated state's buffer is gone; using it again is a clear error, and nothing hangs."""
    mapped = ps.pure(ps.pmap2(add, **options))
    xs = jnp.ones((4, 8))
    _, first = mapped(ps.State(jnp.zeros((4, 8))), xs)
    _, second = mapped(first, xs)
    np.testing.assert_array_equal(second.value, np.full((4, 8), 2.0))
    assert first.value.is_deleted()
    with pytest.raises(ps.StateError, match=r"`state` was donated to an earlier call"):
        mapped(first, xs)
    _, third = mapped(second, xs)
    np.testing.assert_array_equal(third.value, np.full((4, 8), 3.0))


def test_unwritten_states_are_not_donated():
    """`donate` takes what is overwritten, and leaves what was only read."""

    def body(tree, x):
        tree["written"].value += x * tree["read"].value

    tree = {"read": ps.State(jnp.ones(4)), "written": ps.State(jnp.zeros(4))}
    _, tree = ps.pure(ps.pmap2(body))(tree, jnp.ones(4))
    spread = jax.pmap(lambda x: x)(jnp.ones(4))
    tree["read"] = ps.State(spread)
    ps.pure(ps.pmap2(body, donate=...))(tree, jnp.ones(4))
    assert not tree["read"].value.is_deleted()
    assert tree["written"].value.is_deleted()


def test_captured_states_are_refused():
    """A body that is compiled for certain must not read what did not come in."""
    state = ps.State(jnp.float32(1))
    with pytest.raises(ps.CapturedStateError, match=r"reads the state `State\(f32\[\]\)`.*go stale"):
        ps.pmap2(lambda x: x + state.value)(jnp.ones(4))
    out = ps.pmap2(lambda s, x: x + s.value, in_axes=(None, 0))(state, jnp.ones(4))
    np.testing.assert_array_equal(out, np.full(4, 2.0))


def test_too_many_lanes():
    """More lanes than devices are refused by number."""
    with pytest.raises(ValueError, match="maps 8 lanes, one per device, but there are 4 devices"):
        ps.pmap2(lambda x: x)(jnp.ones(8))


def test_threads_of_devices_in_lanes():
    """`lane`, `explain` and a mapping inside a lane work as for `vmap2`."""
    mapped = ps.pmap2(ps.vmap2(add))
    arguments = ps.State(jnp.zeros((4, 3))), jnp.ones((4, 3))
    assert "pmap2" in str(mapped.explain(*arguments))
    out, _ = ps.pure(mapped)(*arguments)
    np.testing.assert_array_equal(out, np.ones((4, 3)))
    lane, _ = ps.pure(mapped.lane(2))(*arguments)
    np.testing.assert_array_equal(lane, np.ones(3))


# Chunks ---------------------------------------------------------------------------------------------


def wide(state, x):
    """Needs much more memory inside a lane than it takes in or gives out."""
    big = jnp.outer(jnp.sin(x), jnp.cos(x))
    state.value = state.value + (big @ big).sum()
    return big.sum()


def peak_bytes(fn, *args) -> int:
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_memory():
    """4,096 lanes, 64 at a time, need a small part of the memory of all at once."""
    state, xs = ps.State(jnp.zeros(4096)), jnp.ones((4096, 32))
    whole = peak_bytes(ps.pure(ps.vmap2(wide)), state, xs)
    chunked = peak_bytes(ps.pure(ps.vmap2(wide, chunk_size=64)), state, xs)
    assert chunked < whole / 20


def test_memory_of_gradients():
    """Gradients through chunks need the memory of one chunk, because each is checkpointed."""
    state, xs = ps.State(jnp.zeros(1024)), jnp.ones((1024, 32))

    def loss(xs, **options):
        out, new = ps.pure(ps.vmap2(wide, **options))(state, xs)
        return out.sum() + new.value.sum()

    whole = peak_bytes(jax.grad(loss), xs)
    chunked = peak_bytes(jax.grad(ft.partial(loss, chunk_size=32)), xs)
    assert chunked < whole / 5
    np.testing.assert_allclose(
        jax.grad(loss)(xs), jax.grad(ft.partial(loss, chunk_size=100))(xs), rtol=1e-5
    )


def test_what_all_lanes_share_is_carried():
    """A value that is the same in all lanes is not stacked by the loop."""

    def body(tree, x):
        tree["table"].value = tree["table"].value * 2
        return x

    tree = {"table": ps.State(jnp.ones(10_000))}
    mapped = ps.pure(ps.vmap2(body, in_axes=(None, 0), chunk_size=4))
    _, after = mapped(tree, jnp.ones(400))
    np.testing.assert_array_equal(after["table"].value, np.full(10_000, 2.0))
    assert peak_bytes(mapped, tree, jnp.ones(400)) < 20 * 10_000 * 4


def test_no_lanes_in_chunks():
    """A zero-length axis works as in `jax.vmap`."""
    out, state = ps.pure(ps.vmap2(add, chunk_size=4))(ps.State(jnp.zeros((0, 2))), jnp.zeros((0, 2)))
    assert out.shape == (0, 2)
    assert state.value.shape == (0, 2)


@pytest.mark.parametrize("chunk_size", [0, -1, True])
def test_bad_chunk_size(chunk_size):
    """A chunk size that is none is refused when the mapping is made."""
    with pytest.raises(ValueError, match=rf"got {re.escape(repr(chunk_size))}\. Write chunk_size=64"):
        ps.StatefulMapping(add, chunk_size=chunk_size)


def test_chunks_and_collectives():
    """A named axis would see one chunk only."""
    with pytest.raises(ValueError, match="would see only the lanes of one chunk"):
        ps.vmap2(add, chunk_size=2, axis_name="batch")
    with pytest.raises(ValueError, match=r"chunk_size needs jax\.vmap"):
        ps.StatefulMapping(add, chunk_size=2, mapping_fn=jax.pmap)


def test_an_unknown_mapping_function():
    """Nothing is inferred about a mapping function nobody knows, and draws are right all the same."""

    def backwards(f, in_axes, out_axes, axis_name, axis_size):
        return jax.vmap(f, in_axes, out_axes, axis_name=axis_name, axis_size=axis_size)

    mapped = ps.StatefulMapping(add, mapping_fn=backwards)
    _, state = ps.pure(mapped)(ps.State(jnp.zeros(3)), jnp.arange(3.0))
    np.testing.assert_array_equal(state.value, [0.0, 1.0, 2.0])
    shared = ps.StatefulMapping(add, in_axes=(None, 0), mapping_fn=backwards)
    with pytest.raises(ps.BatchAxisError, match="may differ between lanes"):
        ps.pure(shared)(ps.State(0.0), jnp.arange(3.0))
    draw = lambda rng, x: rng.normal() + x
    drawn, rng = ps.pure(ps.StatefulMapping(draw, mapping_fn=backwards))(ps.RandomState(0), jnp.ones(3))
    expected, advanced = ps.pure(ps.vmap2(draw))(ps.RandomState(0), jnp.ones(3))
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(jr.key_data(rng.value), jr.key_data(advanced.value))


def test_programs_are_freed():
    """A function that dies takes its traced bodies with it."""

    def make():
        def body(x):
            return x * 2

        ps.pmap2(body)(jnp.ones(4))
        return weakref.ref(body)

    dead = make()
    gc.collect()
    assert dead() is None
