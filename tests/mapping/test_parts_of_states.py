"""States that hold containers whose parts have axes of their own, or are written differently."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import pstate as ps


X = jnp.arange(4.0)
WAYS = {
    "vmap2": ps.vmap2,
    "chunks": ft.partial(ps.vmap2, chunk_size=3),
    "pmap2": ps.pmap2,
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def by_rank(leaf: Any) -> int | None:
    return 0 if leaf.ndim == 2 else None


def pair(a: Any, b: Any) -> ps.State:
    return ps.State({"a": a, "b": b})


ROWS, ONE = jnp.ones((4, 2)), jnp.asarray(1.0)


@each_way
@pytest.mark.parametrize("first", [True, False])
def test_a_part_that_all_lanes_share_and_write_differently(way, first):
    """It is refused, wherever it stands in the value; a declared axis for all parts is taken."""
    shared, mapped = ("b", "a") if first else ("a", "b")

    def step(state, x):
        value = state.value
        state.value = {mapped: value[mapped] + x, shared: value[shared] + x}
        return x

    state = ps.State({mapped: ROWS, shared: ONE})
    axes = {"state": by_rank, "x": 0}
    with pytest.raises(
        ps.BatchAxisError, match=r"A part of `s(tate)?` \(State\) came in without an axis"
    ):
        ps.pure(way(step, in_axes=axes))(state, X)
    with pytest.warns(ps.BatchAxisWarning, match="grows by an axis"):
        _, after = ps.pure(way(step, in_axes=axes, state_out_axes={0: ps.State}))(state, X)
    np.testing.assert_array_equal(after.value[mapped], np.ones((4, 2)) + X[:, None])
    np.testing.assert_array_equal(after.value[shared], 1 + X)


@each_way
@pytest.mark.parametrize("first", [True, False])
def test_each_part_comes_back_as_it_came_in(way, first):
    """A mapped part along its axis, also if its lanes agree; a shared one shared."""
    shared, mapped = ("b", "a") if first else ("a", "b")

    def step(state, x):
        state.value = {mapped: jnp.full(2, 3.0), shared: state.value[shared] + 1}
        return x

    _, after = ps.pure(way(step, in_axes=(by_rank, 0)))(ps.State({mapped: ROWS, shared: ONE}), X)
    np.testing.assert_array_equal(after.value[mapped], np.full((4, 2), 3.0))
    np.testing.assert_array_equal(after.value[shared], 2.0)


def test_parts_along_several_axes():
    """As in `jax.vmap` with the same axes; another structure of the value needs a declared axis."""
    a, b = jnp.arange(12.0).reshape(4, 3), jnp.arange(12.0).reshape(3, 4)
    axes = jax.tree.unflatten(jax.tree.structure(pair(a, b)), [0, 1])

    def step(state, x):
        value = state.value
        state.value = {"a": value["a"] + x, "b": value["b"] * x}
        return x

    _, after = ps.pure(ps.vmap2(step, in_axes=(axes, 0)))(pair(a, b), X)
    twin = jax.vmap(lambda a, b, x: (a + x, b * x), in_axes=(0, 1, 0), out_axes=(0, 1))(a, b, X)
    np.testing.assert_array_equal(after.value["a"], twin[0])
    np.testing.assert_array_equal(after.value["b"], twin[1])

    def other(state, x):
        state.value = {"sum": state.value["a"].sum() + x}
        return x

    with pytest.raises(ps.BatchAxisError, match=r"parts along different axes.*another structure"):
        ps.pure(ps.vmap2(other, in_axes=(axes, 0)))(pair(a, b), X)
    declared = ps.vmap2(other, in_axes=(axes, 0), state_out_axes={0: ps.State})
    _, after = ps.pure(declared)(pair(a, b), X)
    np.testing.assert_array_equal(after.value["sum"], a.sum(axis=1) + X)


@pytest.mark.parametrize("policy", ["ignore", "warn"])
def test_a_policy_gives_lanes_to_the_whole_state(policy):
    """If one part differs, all parts get the new axis, so that the state can come in along it."""

    def step(state, x):
        value = state.value
        state.value = {"n": value["n"] + 1, "v": value["v"] + x}
        return value["n"]

    start = ps.State({"n": 10 * jnp.ones(4), "v": jnp.zeros(4)})
    once = ps.vmap2(step, in_axes=(None, 0), unexpected_out_state_mapping=policy)
    if policy == "warn":
        with pytest.warns(ps.BatchAxisWarning) as warned:
            _, after = ps.pure(once)(start, X)
        assert len(warned) == 1
    else:
        _, after = ps.pure(once)(start, X)
    np.testing.assert_array_equal(after.value["n"], np.full((4, 4), 11.0))
    np.testing.assert_array_equal(after.value["v"], np.repeat(np.arange(4.0)[:, None], 4, axis=1))
    seen, _ = ps.pure(ps.vmap2(step))(after, X)
    np.testing.assert_array_equal(seen, np.full((4, 4), 11.0))


@pytest.mark.parametrize("a", [0, None])
def test_a_loop_slices_a_state_along_one_axis(a):
    """A loop refuses parts with axes of their own; their size would not say which is which."""
    square = jnp.arange(9.0).reshape(3, 3)

    def step(state, x):
        state.value = {"a": state.value["a"] + x, "b": state.value["b"] + x}
        return x

    def run(state, xs):
        axes = jax.tree.unflatten(jax.tree.structure(state), [a, 1])
        return ps.for_loop(step, state, xs, in_axes=(axes, 0))

    with pytest.raises(ValueError, match=r"of `s(tate)?` \(State\).*state_in_axes=\{0: ps\.State\}"):
        ps.pure(run)(pair(square, square), jnp.arange(3.0))

    def advised(state, xs):
        return ps.for_loop(step, state, xs, in_axes=0, state_in_axes={0: ps.State})

    _, after = ps.pure(advised)(pair(square, square), jnp.arange(3.0))
    np.testing.assert_array_equal(after.value["b"], square + jnp.arange(3.0)[:, None])


def test_a_written_slice_that_lost_its_axis():
    """The message gives the option of states, which helps."""

    def run(state, xs, **options):
        return ps.for_loop(lambda s, x: setattr(s, "value", x), state, xs, in_axes=(1, 0), **options)

    state, xs = ps.State(jnp.ones((2, 3))), jnp.ones(3)
    with pytest.raises(
        ValueError, match=r"no axis 1 for the steps\. Write state_out_axes=\{0: ps\.State\}\."
    ):
        ps.pure(run)(state, xs)
    _, after = ps.pure(ft.partial(run, state_out_axes={0: ps.State}))(state, xs)
    np.testing.assert_array_equal(after.value, xs)


def test_the_plan_shows_each_part():
    """`explain` has the axes of all parts if they differ."""
    state = pair(ROWS, ONE)

    def step(state, x):
        state.value = {"a": state.value["a"] + x, "b": state.value["b"] + 1}

    row, _ = ps.vmap2(step, in_axes=(by_rank, 0)).explain(state, X).rows
    assert (row.axis_in, row.axis_out, row.mapped) == ("0 shared", "0 shared", True)
    assert row.reason.endswith("out: as it came in, the same in all lanes")
    row, _ = ps.vmap2(step, in_axes=(None, 0)).explain(state, X).rows
    assert (row.axis_in, row.axis_out) == ("shared", "refused shared")


def test_shards_of_parts():
    """Each part by its own spec; another structure of the value needs a declared spec."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    state = pair(jnp.arange(8.0), jnp.ones(2))
    specs = jax.tree.unflatten(jax.tree.structure(state), [P("data"), P()])
    of = ft.partial(ps.shard_map2, mesh=mesh, in_specs=(specs,), out_specs=P())

    def step(state):
        state.value = {"a": state.value["a"] + 1, "b": state.value["b"] * 2}

    _, after = ps.pure(of(step))(state)
    np.testing.assert_array_equal(after.value["a"], np.arange(1.0, 9.0))
    np.testing.assert_array_equal(after.value["b"], np.full(2, 2.0))
    row = of(step).explain(state).rows[0]
    assert (row.axis_in, row.axis_out) == ("P('data') P()", "P('data') P()")

    def other(state):
        state.value = {"mean": jax.lax.pmean(state.value["a"].mean(), "data")}

    with pytest.raises(
        ps.BatchAxisError, match=r"parts by different specs.*state_out_specs=\{P\(\): ps\.State\}"
    ):
        ps.pure(of(other))(state)
    _, after = ps.pure(of(other, state_out_specs={P(): ps.State}))(state)
    assert after.value["mean"] == 3.5
