"""Loops with a gradient in reverse mode and loops with checkpoints, against loops by hand."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from transforms.flow import XS, same


class Model(eqx.Module):
    """A weight to train, a hidden state, a count, and noise."""

    weight: ps.ParamState
    hidden: ps.HiddenState
    count: ps.ShortTermState
    noise: ps.RandomState


def model() -> Model:
    weight, hidden = jnp.array([1.1, 0.9]), jnp.array([0.3, 0.4])
    count = ps.ShortTermState(0)
    return Model(ps.ParamState(weight), ps.HiddenState(hidden), count, ps.RandomState(0))


def below(model, carry):
    return jnp.sum(model.hidden.value) ** 2 + model.count.value < 6


def step(model, carry):
    model.count.value += 1
    noise = 0.1 * model.noise.normal(size=2)
    model.hidden.value = jnp.sin(model.weight.value * model.hidden.value) + noise + carry
    return carry * jnp.sum(model.weight.value) / 2


def loss_by_hand(weight, carry, hidden, key):
    """The same, as a loop of known length over a choice."""

    def advance(loop):
        hidden, key, i, carry = loop
        key, own = jr.split(key)
        hidden = jnp.sin(weight * hidden) + 0.1 * jr.normal(own, (2,)) + carry
        return hidden, key, i + 1, carry * jnp.sum(weight) / 2

    def one(loop, _):
        hidden, _, i, _ = loop
        return jax.lax.cond(jnp.sum(hidden) ** 2 + i < 6, advance, lambda loop: loop, loop), None

    before = hidden
    (hidden, key, i, carry), _ = jax.lax.scan(one, (hidden, key, 0, carry), length=12)
    return jnp.sum(before * carry * hidden), (hidden, key, i)


def loss_of(model, carry, **options):
    before = model.hidden.value
    bound = ft.partial(below, model), ft.partial(step, model)
    carry = ps.while_loop(*bound, carry, **options)
    return jnp.sum(before * carry * model.hidden.value)


BOUNDS = [{"max_steps": 12}, {"max_steps": 20, "checkpoints": 3}, {"checkpoints": 4}]
each_bound = pytest.mark.parametrize("options", BOUNDS, ids=str)


@each_bound
def test_a_gradient_through_states_and_carry(options):
    """Value, states and gradients of parameters and of the carry are those of a loop by hand."""
    m, carry = model(), jnp.float32(0.2)
    function = ft.partial(loss_of, **options)
    (value, (of_model, of_carry)), new = ps.pure(ps.value_and_grad(function, argnums=(0, 1)))(m, carry)
    by_hand = jax.value_and_grad(loss_by_hand, argnums=(0, 1), has_aux=True)
    (expected, (hidden, key, i)), (of_weight, of_x) = by_hand(
        m.weight.value, carry, m.hidden.value, m.noise.value
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(of_model.weight.value, of_weight, rtol=1e-4)
    np.testing.assert_allclose(of_carry, of_x, rtol=1e-4)
    np.testing.assert_allclose(new.hidden.value, hidden, rtol=1e-5)
    assert new.count.value == i
    same(new.noise.value, key)
    assert new.weight is m.weight


@pytest.mark.once
@each_bound
def test_lanes_that_end_at_different_steps(options):
    """Under `vmap2` each lane ends where it would alone, and the gradient is the sum over lanes."""
    m, carries = model(), jnp.array([0.2, 0.9, 2.0])

    def lane(model, carry):
        value = loss_of(model, carry, **options)
        return value, model.count.value

    def lanes(model, carries):
        mapped = ps.vmap2(ps.pure(lane), in_axes=(None, 0))
        (values, counts), _ = mapped(model, carries)
        return jnp.sum(values), counts

    derivative = ps.pure(ps.value_and_grad(lanes, has_aux=True))
    ((_, counts), gradient), _ = derivative(m, carries)
    fixed = [m.hidden.value, m.noise.value]
    keys = jr.split(m.noise.value, 4)[1:]
    by_hand = lambda w: sum(
        loss_by_hand(w, c, fixed[0], key)[0] for c, key in zip(carries, keys, strict=True)
    )
    np.testing.assert_allclose(gradient.weight.value, jax.grad(by_hand)(m.weight.value), rtol=1e-4)
    assert len(set(counts.tolist())) > 1


@each_bound
def test_types_of_the_carry(options):
    """Weakly typed numbers grow as in JAX's loop; integers and keys go through."""
    carry = (0, 1, jr.key(0))
    body = lambda c: (c[0] + 1, c[1] * 1.5, jr.split(c[2])[0])
    got = ps.while_loop(lambda c: c[0] < 3, body, carry, **options)
    same(got, jax.lax.while_loop(lambda c: c[0] < 3, body, carry))


def test_a_bound_ends_the_loop():
    """After `max_steps` the loop ends though the condition holds; with none nothing moves."""
    run = lambda n: ps.while_loop(lambda i: i < 100, lambda i: i + 1, 0, max_steps=n)
    assert [run(n) for n in (0, 1, 7)] == [0, 1, 7]


@pytest.mark.parametrize("condition", [lambda i: i, lambda i: (i < 3, i < 3), lambda i: (i < 3)[None]])
def test_a_condition_is_one_bool(condition):
    """A condition that is none is refused, as in JAX."""
    with pytest.raises(TypeError, match=r"one bool of shape \(\)"):
        ps.while_loop(condition, lambda i: i + 1, jnp.int32(0), max_steps=3)


def test_fori_loop_as_in_jax():
    """Values and gradients are JAX's, with known bounds, traced ones, and where there is no step."""
    body = lambda i, c: 1.5 * c + i
    for bounds in ((0, 4), (2, 2), (3, 1), (np.int32(1), jnp.int32(3))):
        same(ps.fori_loop(*bounds, body, 1.0), jax.lax.fori_loop(*bounds, body, 1.0))
    traced = jax.jit(lambda n: ps.fori_loop(0, n, body, 1.0))
    same(traced(4), jax.lax.fori_loop(0, 4, body, 1.0))
    power = lambda x, n: ps.fori_loop(0, n, lambda i, c: c * x, x)
    assert jax.grad(power)(2.0, 3) == 32.0
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.jit(jax.grad(power))(2.0, 3)
    with pytest.raises(TypeError, match=r"`upper` of ps\.fori_loop is an integer"):
        ps.fori_loop(0, 2.5, body, 1.0)


def recurrent(model, total, x):
    model.hidden.value = jnp.tanh(model.weight.value * model.hidden.value + x)
    model.hidden.value += 0.1 * model.noise.normal()
    model.count.value += 1
    return total + jnp.sum(model.hidden.value), model.hidden.value[0]


def over(model, xs, **options):
    total, ys = ps.scan(ft.partial(recurrent, model), 0, xs, **options)
    return total + jnp.sum(ys**2)


@pytest.mark.once
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("checkpoints", [1, 3, 4, 10, 30])
def test_checkpoints_change_no_number(checkpoints, reverse):
    """Value, gradients and states are those of the loop without, whatever the segments leave over."""
    derivative = ps.pure(ps.value_and_grad(over, argnums=(0, 1)))
    xs = jr.normal(jr.key(1), (10,))
    got = derivative(model(), xs, reverse=reverse, checkpoints=checkpoints)
    expected = derivative(model(), xs, reverse=reverse)
    keys = lambda tree: jax.tree.map(
        lambda x: jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), keys(got), keys(expected))


def test_checkpoints_save_memory():
    """The compiled gradient of a long loop needs less than a third of the memory."""
    m = eqx.tree_at(lambda m: m.hidden, model(), ps.HiddenState(jnp.zeros((256, 2))))
    xs = jr.normal(jr.key(1), (400,))

    def memory(**options):
        gradient = lambda w: jax.grad(
            lambda w: ps.pure(over)(eqx.tree_at(lambda m: m.weight, m, ps.ParamState(w)), xs, **options)[
                0
            ]
        )(w)
        return jax.jit(gradient).lower(m.weight.value).compile().memory_analysis().temp_size_in_bytes

    assert 3 * memory(checkpoints=20) < memory()


def test_checkpoints_of_no_step():
    """A loop without steps has nothing to keep."""
    total, ys = ps.scan(lambda c, x: (c + x, c), 0.0, XS[:0], checkpoints=3)
    assert (total, ys.shape) == (0, (0,))
