"""`ps.trainable`: the parameters of a tree, as Optax wants them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import pstate as ps


class Net(eqx.Module):
    weight: ps.ParamState
    mean: ps.BatchState
    hidden: ps.HiddenState
    rng: ps.RandomState
    gain: jax.Array
    steps: jax.Array
    activation: object = jnp.tanh
    nothing: None = None

    def __call__(self, x):
        self.mean.value = 0.9 * self.mean.value + 0.1 * x
        self.hidden.value = self.activation(self.weight.value * x) + self.rng.normal(size=(3,))
        return jnp.sum(self.gain * self.hidden.value * x) ** 2


def net():
    return Net(
        ps.ParamState(jnp.ones(3)),
        ps.BatchState(jnp.ones(3)),
        ps.HiddenState(jnp.zeros(3)),
        ps.RandomState(0),
        jnp.float32(2),
        jnp.int32(5),
    )


def test_parameters_only():
    """Parameters and raw floats stay the same arrays; statistics, hidden states and keys are empty."""
    model = net()
    parameters = ps.trainable(model)
    assert type(parameters) is Net
    assert parameters.weight.value is model.weight.value
    assert parameters.gain is model.gain
    assert jtu.tree_leaves([parameters.mean, parameters.hidden, parameters.rng]) == []
    assert parameters.steps is parameters.activation is parameters.nothing is None
    with pytest.raises(ps.UninitializedStateError):
        parameters.mean.value


WRT = [ps.filter.Trainable, ps.ParamState, ps.ParamState | ps.filter.OfType(ps.HiddenState)]


@pytest.mark.parametrize("wrt", WRT, ids=str)
@pytest.mark.parametrize("change", [lambda m: m, ps.pack], ids=["tree", "packed"])
def test_structure_of_the_gradient(change, wrt):
    """It has the structure of the gradient with the same `wrt`, also of a packed tree."""
    model = change(net())
    gradient, _ = ps.pure(ps.grad(Net.__call__, wrt=wrt))(model, jnp.ones(3))
    assert jtu.tree_structure(ps.trainable(model, wrt)) == jtu.tree_structure(gradient)


def test_it_is_what_the_mask_leaves():
    """It equals `eqx.filter` by the mask of `ps.select`, and `eqx.combine` puts it back."""
    model = {"net": net(), "n": 3, "s": ps.ParamState({"a": jnp.ones(2)}), "e": ps.ParamState()}
    assert eqx.tree_equal(ps.trainable(model), eqx.filter(model, ps.select(model)))
    assert eqx.tree_equal(eqx.combine(ps.trainable(model), model), model)


@pytest.mark.parametrize("change", [lambda m: m, ps.pack], ids=["tree", "packed"])
def test_optax_keeps_off_statistics(change):
    """Adam with weight decay moves parameters as it would by hand, and no statistics or keys."""
    optim = optax.adamw(0.1, weight_decay=0.5)
    model = change(net())
    opt_state = optim.init(ps.trainable(model))
    gradient, after = ps.pure(ps.grad(Net.__call__))(model, jnp.ones(3))
    updates, _ = optim.update(gradient, opt_state, ps.trainable(after))
    new = eqx.apply_updates(after, updates)
    old, grads, new = (x.unpack() if isinstance(x, ps.Packed) else x for x in (after, gradient, new))
    w, g = {"w": old.weight.value, "gain": old.gain}, {"w": grads.weight.value, "gain": grads.gain}
    by_hand, _ = optim.update(g, optim.init(w), w)
    np.testing.assert_array_equal(new.weight.value, w["w"] + by_hand["w"])
    np.testing.assert_array_equal(new.gain, w["gain"] + by_hand["gain"])
    assert new.mean.value is old.mean.value
    assert new.rng.value is old.rng.value


def test_inside_a_stateful_function():
    """Of a live tree it is the parameters as they are now; trees made of it may leave."""

    def step(model):
        model.weight.value = 2 * model.weight.value
        return jtu.tree_map(jnp.negative, ps.trainable(model))

    negative, model = ps.pure(ps.jit(step))(net())
    np.testing.assert_array_equal(negative.weight.value, -2 * jnp.ones(3))
    np.testing.assert_array_equal(model.weight.value, 2 * jnp.ones(3))
    assert jtu.tree_leaves([negative.mean, negative.hidden, negative.rng]) == []


def test_abstract_trees():
    """Shapes work instead of arrays."""
    shapes = eqx.filter_eval_shape(lambda: {"w": ps.ParamState(jnp.ones(3)), "n": ps.State(0)})
    assert jtu.tree_leaves(ps.trainable(shapes)) == [jax.ShapeDtypeStruct((3,), jnp.float32)]


def test_a_typo_warns():
    """A filter that names something and selects nothing warns, and says where it was given."""
    with pytest.warns(ps.UnmatchedFilterWarning, match=r"^wrt=WithTag\('tpyo'\) of ps\.trainable "):
        parameters = ps.trainable(net(), "tpyo")
    assert jtu.tree_leaves(parameters) == []
