"""`nn.Module` and `init_all_states`: states that are declared first and made later."""

import re

import jax
import jax.numpy as jnp
import pytest

import pstate as ps
from nn.modules import Linear, Plain, runs


class Net(ps.nn.Module):
    layers: list
    named: dict
    scale: ps.State = ps.State()

    def init_state(self, gain=2.0):
        runs.append("Net")
        # Children are filled before.
        self.scale.value = self.layers[0].weight.value.sum() * gain


def net() -> Net:
    return Net([Linear(), Linear()], {"plain": Plain(ps.ParamState())})


def test_init_all_states():
    """Children go first, through lists and dicts, and each gets the keywords it names."""
    runs.clear()
    before = net()
    after = before.init_all_states(size=3, rng=ps.RandomState(0))
    assert runs == ["Linear", "Linear", "Plain", "Net"]
    assert after.layers[1].weight.value.shape == (3,)
    assert after.scale.value.item() == 6.0
    assert jax.tree.leaves(before) == []
    assert ps.nn.init_all_states(before.layers[0], size=2).weight.value.shape == (2,)


def test_declared_states_beside_an_init():
    """A state declared on the class is part of the tree also where `__init__` does not mention it."""

    class Own(ps.nn.Module):
        weight: ps.ParamState
        hidden: ps.HiddenState = ps.HiddenState()

        def __init__(self):
            self.weight = ps.ParamState(jnp.ones(2))

        def init_state(self):
            self.hidden.value = jnp.zeros(3)

    assert Own().init_all_states().hidden.value.shape == (3,)


def test_keywords_that_do_not_fit():
    """A keyword that nobody names, or that is missing, is named with the module's path."""
    with pytest.raises(
        TypeError, match=re.escape("`net.layers[0].init_state` needs the keyword 'size'")
    ):
        net().init_all_states(rng=ps.RandomState(0))
    with pytest.raises(TypeError, match="No `init_state` in `net` takes the keyword 'sise'"):
        net().init_all_states(size=3, rng=ps.RandomState(0), sise=1)


def test_fields_are_assigned_in_init_state_only():
    """A module is immutable but for its declared fields while it is initialised."""
    with pytest.raises(ps.FrozenStateError, match=r"`Linear\.weight` was assigned outside init_state"):
        Linear().weight = ps.ParamState(1.0)

    class Undeclared(ps.nn.Module):
        def init_state(self):
            self.other = ps.State(1.0)

    with pytest.raises(ps.FrozenStateError, match=r"`Undeclared\.other`"):
        Undeclared().init_all_states()
