"""Faults known from object-mutation libraries, which must not be here."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


def accumulate(total: ps.State, x: jnp.ndarray) -> None:
    total.value = total.value + x


def test_a_scalar_state_does_not_grow_silently():
    """A state that would grow by an axis on each call warns, and raises unless it is declared."""
    with pytest.raises(ps.BatchAxisError):
        ps.pure(ps.vmap2(accumulate, in_axes=(None, 0)))(ps.State(0.0), jnp.ones(3))
    mapped = ps.vmap2(accumulate, in_axes=(None, 0), state_out_axes=ps.State)
    with pytest.warns(ps.BatchAxisWarning, match=r"state_in_axes=\{0: ps\.State\}"):
        ps.pure(mapped)(ps.State(0.0), jnp.ones(3))


def test_warm_calls_write_where_cold_calls_write():
    """A mapping kept and called with another tree changes that tree, not the first."""
    mapped = ps.pure(ps.vmap2(accumulate))
    first, second = ps.State(jnp.zeros(3)), ps.State(jnp.full(3, 10.0))
    _, first_after = mapped(first, jnp.ones(3))
    _, second_after = mapped(second, jnp.ones(3))
    np.testing.assert_array_equal(first_after.value, np.ones(3))
    np.testing.assert_array_equal(second_after.value, np.full(3, 11.0))


def test_no_lanes():
    """A zero-length axis works as in `jax.vmap`."""
    _, state = ps.pure(ps.vmap2(accumulate))(ps.State(jnp.zeros(0)), jnp.zeros(0))
    assert state.value.shape == (0,)


def test_states_created_in_a_mapped_body():
    """A state made in the body comes out with the lanes' values, and nothing leaks."""
    made = ps.vmap2(lambda x: ps.HiddenState(x * 2))(jnp.arange(3.0))
    np.testing.assert_array_equal(made.value, [0.0, 2.0, 4.0])


def test_map_inherits_its_name_and_passes_its_module():
    """`Map.map` has the map's `axis_name`, and a function gets the module first."""

    class Plain(eqx.Module):
        gain: ps.ParamState

        def init_state(self):
            self.gain.value = 2.0

    mapper = ps.nn.Map(Plain(ps.ParamState()), 4, axis_name="lanes").init_all_states()

    def centred(module, x):
        return (x - jax.lax.pmean(x, "lanes")) * module.gain.value

    np.testing.assert_array_equal(mapper.map(centred)(jnp.arange(4.0)), [-3.0, -1.0, 1.0, 3.0])


def test_explain_shows_what_a_call_would_refuse():
    """The table says why a write would raise, where one wants to look at it."""

    def overwrite(total, x):
        total.value = x

    mapped = ps.vmap2(overwrite, in_axes=(None, 0))
    shown = mapped.explain(ps.State(0.0), jax.ShapeDtypeStruct((3,), jnp.float32))
    assert shown.rows[0].axis_out == "refused"
    assert "no axis is declared for it" in shown.notes[0]
    with pytest.raises(ps.BatchAxisError, match="no axis is declared for it"):
        ps.pure(mapped)(ps.State(0.0), jnp.ones(3))


@pytest.mark.parametrize("maker", [ps.vmap2, ps.pmap2])
def test_an_unbound_axis_name(maker):
    """JAX's error of an unbound axis name says which call should have named it."""
    body = lambda x: jax.lax.pmean(x, "lanes")
    with pytest.raises(NameError, match="unbound axis name: lanes") as caught:
        maker(body)(jnp.ones(4))
    assert "The innermost is ps." in caught.value.__notes__[0]
    assert "axis_name='lanes'" in caught.value.__notes__[0]
    np.testing.assert_array_equal(maker(body, axis_name="lanes")(jnp.ones(4)), np.ones(4))


def test_spmd_axis_name():
    """`spmd_axis_name` reaches `jax.vmap`: sharding constraints in lanes get the mapped axis."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(4), ("lanes",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def step(total, x):
        total.value = jax.lax.with_sharding_constraint(total.value + x, sharding)

    mapped = ps.pure(ps.vmap2(step, spmd_axis_name="lanes"))
    _, total = mapped(ps.State(jnp.zeros((4, 2))), jnp.ones((4, 2)))
    np.testing.assert_array_equal(total.value, np.ones((4, 2)))
    assert total.value.sharding.spec[0] == "lanes"
