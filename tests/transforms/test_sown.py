"""`SownState` and `reap`: what a call records, and how it is taken out."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps


class Cell(eqx.Module):
    hidden: ps.HiddenState
    seen: ps.SownState

    def __call__(self, x: Any) -> Any:
        self.hidden.value = 0.5 * self.hidden.value + x
        self.seen.value = self.hidden.value
        return 2 * self.hidden.value


def cell() -> Cell:
    return Cell(ps.HiddenState(jnp.zeros(2)), ps.SownState())


def run(cell: Cell, xs: Any) -> Any:
    return ps.for_loop(cell, xs)


def test_a_value_for_each_step_is_taken_out():
    """`reap` gives what the steps wrote by path, and a tree as it was before, but for other states."""
    _, after = ps.pure(run)(cell(), jnp.ones((3, 2)))
    seen, rest = ps.reap(after)
    assert list(seen) == [("seen",)]
    np.testing.assert_array_equal(seen["seen",], [[1, 1], [1.5, 1.5], [1.75, 1.75]])
    assert jax.tree.structure(rest) == jax.tree.structure(cell())
    assert rest.hidden is after.hidden
    assert ps.reap(rest) == ({}, rest)


def test_one_program_for_reaped_models():
    """A step whose model is reaped between calls is compiled once; one whose model is not, twice."""
    traces = []
    counted = ps.pure(ps.jit(lambda cell, xs: (traces.append(None), run(cell, xs))[1]))
    model = cell()
    for _ in range(3):
        _, model = counted(model, jnp.ones((3, 2)))
        _, model = ps.reap(model)
    assert len(traces) == 1
    _, model = counted(model, jnp.ones((3, 2)))
    _, model = counted(model, jnp.ones((3, 2)))
    assert len(traces) == 2
    assert model.seen.value.shape == (3, 2)


def test_what_nobody_wrote_comes_back():
    """A call that records nothing keeps what an earlier one recorded, of whatever shape."""
    _, model = ps.pure(run)(cell(), jnp.ones((3, 2)))
    look = lambda cell, x: cell.hidden.value + x
    in_steps = lambda cell, xs: ps.for_loop(ft.partial(look, cell), xs)
    for f in (in_steps, ps.vmap2(look, in_axes=(None, 0)), ps.jit(look)):
        _, after = ps.pure(f)(model, jnp.ones((4, 2)))
        assert after.seen is model.seen


def test_rules_give_another_axis():
    """A rule of `state_out_axes` overrules the kind, in lanes and in steps."""
    axes = {"state_in_axes": {0: ps.HiddenState}, "state_out_axes": {1: ps.SownState}}
    model = ps.broadcast(cell(), {0: ps.HiddenState}, 3)
    _, after = ps.pure(ps.vmap2(Cell.__call__, in_axes=(None, 0), **axes))(model, jnp.ones((3, 2)))
    assert after.seen.value.shape == (2, 3)
    loop = lambda cell, xs: ps.for_loop(cell, xs, state_out_axes={-1: ps.SownState})
    assert ps.pure(loop)(cell(), jnp.ones((4, 2)))[1].seen.value.shape == (2, 4)


def test_lanes_that_agree_are_stacked_too():
    """The shape that comes out does not depend on values: lanes that record the same are stacked."""
    record = lambda seen, x: setattr(seen, "value", jnp.ones(2))
    _, seen = ps.pure(ps.vmap2(record, in_axes=(None, 0)))(ps.SownState(), jnp.zeros(3))
    assert seen.value.shape == (3, 2)


def test_growth_is_no_slip():
    """A number that becomes a value for each lane gives no warning, as another kind would."""
    record = lambda seen, x: setattr(seen, "value", x)
    _, seen = ps.pure(ps.vmap2(record, in_axes=(None, 0)))(ps.SownState(0.0), jnp.zeros(3))
    assert seen.value.shape == (3,)


def test_packed_trees_stay_packed():
    """`reap` of a packed tree gives a packed one."""
    _, packed = ps.pure(run)(ps.pack(cell()), jnp.ones((3, 2)))
    seen, rest = ps.reap(packed)
    assert isinstance(rest, ps.Packed)
    assert seen["seen",].shape == (3, 2)
    assert jax.tree.leaves(rest.unpack().seen) == []


def test_a_subclass_and_a_filter():
    """Kinds of one's own are stacked as their base is, and `reap` takes what a filter selects."""

    class Attention(ps.SownState):
        __slots__ = ()

    def layer(model: Any, x: Any) -> None:
        model["weights"].value = x
        model["norm"].value = 2 * x

    model = {"weights": Attention(), "norm": ps.SownState()}
    _, model = ps.pure(ps.vmap2(layer, in_axes=(None, 0)))(model, jnp.arange(3.0))
    seen, rest = ps.reap(model, Attention)
    assert list(seen) == [("weights",)]
    assert rest["norm"] is model["norm"]
    assert list(ps.reap(rest)[0]) == [("norm",)]


def test_live_states_are_refused_and_the_advice_runs():
    """Inside a call there is nothing to take out: the message says to reap what comes back."""

    def f(model: Any, x: Any) -> Any:
        model["seen"].value = x
        return ps.reap(model)

    model = {"seen": ps.SownState()}
    with pytest.raises(
        ps.FrozenStateError, match=r"`tree\['seen'\]` \(SownState\) is live, and ps.reap"
    ):
        ps.pure(f)(model, 1.0)

    def g(model: Any, x: Any) -> Any:
        model["seen"].value = x
        return model["seen"].value

    out, tree = ps.pure(g)(model, 1.0)
    values, tree = ps.reap(tree)
    assert out == values["seen",] == 1.0


def test_a_loop_without_steps_keeps_the_last():
    """`fori_loop` cannot stack: an empty state is refused with what to do, and then the last stays."""
    loop = lambda cell: ps.fori_loop(0, 3, ft.partial(_again, cell), jnp.zeros(2))
    with pytest.raises(ps.StateTypeError, match=r"fill the state before the loop"):
        ps.pure(loop)(cell())
    filled = Cell(ps.HiddenState(jnp.zeros(2)), ps.SownState(jnp.zeros(2)))
    _, after = ps.pure(loop)(filled)
    np.testing.assert_array_equal(after.seen.value, after.hidden.value)


def _again(cell: Cell, i: Any, x: Any) -> Any:
    return cell(x + 1.0)


def test_gradients_and_checkpoints_record():
    """What a differentiated or checkpointed function records comes out; the gradient is unchanged."""
    loss = lambda cell, xs: jnp.sum(ps.for_loop(ps.checkpoint(cell), xs) ** 2)
    plain = lambda cell, xs: jnp.sum(run(cell, xs) ** 2)
    xs = jnp.arange(6.0).reshape(3, 2)
    gradient, after = ps.pure(ps.grad(loss, argnums=1))(cell(), xs)
    expected, _ = ps.pure(ps.grad(plain, argnums=1))(cell(), xs)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert after.seen.value.shape == (3, 2)


def test_the_table_of_explain_names_the_kind():
    """`explain` gives the kind as the reason."""
    mapped = ps.vmap2(Cell.__call__, in_axes=(None, 0), state_in_axes={0: ps.HiddenState})
    model = ps.broadcast(cell(), {0: ps.HiddenState}, 3)
    assert "SownState; out: SownState" in str(mapped.explain(model, jnp.ones((3, 2))))
