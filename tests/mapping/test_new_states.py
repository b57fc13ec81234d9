"""New states made for all lanes at once."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from nn.modules import Linear, Plain, runs


BOTH = pytest.mark.parametrize("new_states", [ps.vmap2_new_states, ps.pmap2_new_states])


class Mixed(ps.nn.Module):
    batched: ps.ShortTermState = ps.ShortTermState()
    shared: ps.NonBatchState = ps.NonBatchState()

    def init_state(self):
        self.batched.value = 0
        self.shared.value = jnp.array([1, 2, 3])


@BOTH
def test_default_axis(new_states):
    """New states go to axis 0, and the module that was passed stays as it was."""
    module = Linear()
    made, new = new_states(module, {"size": 10}, axis_size=4)
    assert made.weight.value.shape == (4, 10)
    assert made.counter.value.shape == (4,)
    assert set(new) == {0}
    assert set(new[0]) == {("weight",), ("counter",)}
    assert new[0][("weight",)].value is made.weight.value
    assert jax.tree.leaves(module) == []


@BOTH
def test_filters(new_states):
    """Filters come before axis 0, and `NonBatchState` before filters."""
    axes = {1: ps.filter.OfType(ps.ParamState), 0: ps.filter.OfType(ps.ShortTermState)}
    made, new = new_states(Linear(), {"size": 10}, axis_size=4, state_out_axes=axes)
    assert made.weight.value.shape == (10, 4)
    assert {axis: list(found) for axis, found in new.items()} == {1: [("weight",)], 0: [("counter",)]}
    made, new = new_states(Mixed(), {}, axis_size=4, state_out_axes={0: ...})
    assert made.batched.value.shape == (4,)
    assert made.shared.value.shape == (3,)
    assert list(new[None]) == [("shared",)]


@BOTH
def test_draws(new_states):
    """One run of `init_state`; a random state is split, so that lanes differ and lane keys are known."""
    runs.clear()
    made, _ = new_states(Plain(ps.ParamState()), {"rng": ps.RandomState(0)}, axis_size=3)
    assert runs == ["Plain"]
    keys = jr.split(jr.key(0), 4)[1:]
    expected = [jr.normal(jr.split(key)[1], (2,)) for key in keys]
    np.testing.assert_allclose(made.bias.value, expected, rtol=1e-6)


def test_a_live_random_state_is_advanced():
    """Inside a recording the random state that was passed goes on from where it was."""

    def build(rng):
        first, _ = ps.vmap2_new_states(Plain(ps.ParamState()), {"rng": rng}, axis_size=2)
        second, _ = ps.vmap2_new_states(Plain(ps.ParamState()), {"rng": rng}, axis_size=2)
        return first.bias.value, second.bias.value

    (first, second), rng = ps.pure(build)(ps.RandomState(0))
    assert not np.allclose(first, second)
    assert not np.array_equal(jr.key_data(rng.value), jr.key_data(jr.key(0)))


@BOTH
def test_refused(new_states):
    """Bare keys, a missing size, and a shared state that differs between lanes."""
    with pytest.raises(
        ValueError, match=r"init_kwargs\['rng'\] holds a bare key.*rng=ps\.RandomState\(key\)"
    ):
        new_states(Plain(ps.ParamState()), {"rng": jr.key(0)}, axis_size=2)
    with pytest.raises(ValueError, match="bare key"):
        new_states(Plain(ps.ParamState()), {"rng": jr.PRNGKey(0)}, axis_size=2)
    with pytest.raises(ValueError, match=r"Write axis_size=4\."):
        new_states(Linear(), {"size": 1}, axis_size=0)

    class Bad(ps.nn.Module):
        s: ps.NonBatchState = ps.NonBatchState()

        def init_state(self, rng):
            self.s.value = rng.normal()

    with pytest.raises(ps.BatchAxisError, match=r"`module\.s` \(NonBatchState\)"):
        new_states(Bad(), {"rng": ps.RandomState(0)}, axis_size=2)


def test_sizes():
    """Without a size `vmap2_new_states` asks, and `pmap2_new_states` takes the devices; not more."""
    with pytest.raises(ValueError, match="is needed here"):
        ps.vmap2_new_states(Linear(), {"size": 1})
    made, _ = ps.pmap2_new_states(Linear(), {"size": 1})
    assert made.counter.value.shape == (4,)
    assert len(made.counter.value.devices()) == 4
    with pytest.raises(ValueError, match="maps 8 lanes, one per device, but there are 4 devices"):
        ps.pmap2_new_states(Linear(), {"size": 1}, axis_size=8)


def test_tags_and_what_was_there_before():
    """New states get the tag; states that the module held keep their values and have none."""

    class Half(ps.nn.Module):
        old: ps.State
        fresh: ps.State = ps.State(tag="own")

        def init_state(self):
            self.fresh.value = self.old.value + 1

    module = Half(ps.State(1.0))
    made, new = ps.vmap2_new_states(module, {}, state_tag="made", axis_size=2)
    assert made.old.value is module.old.value
    assert made.fresh.tag == ("own", "made")
    assert new == {0: {("fresh",): made.fresh}}
    np.testing.assert_array_equal(made.fresh.value, [2.0, 2.0])


def test_nested():
    """New states of new states: two axes."""

    def outer(rng):
        made, _ = ps.vmap2_new_states(Plain(ps.ParamState()), {"rng": rng}, axis_size=3)
        return made

    made, _ = ps.pure(ps.vmap2(outer))(ps.RandomState(jr.split(jr.key(0), 2)))
    assert made.bias.value.shape == (2, 3, 2)
    assert len(np.unique(made.bias.value)) == 12
