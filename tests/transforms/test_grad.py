"""`grad` and its kin: what is differentiated, what is kept, and what comes back beside."""

import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import pstate as ps
from transforms.losses import Net, net, square, tree, x


def by_hand(w, x):
    return jnp.sum(jnp.tanh(w * x) ** 2)


# What is differentiated -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda net: ps.grad(net),
        lambda net: ps.grad(net.loss),
        lambda net: net.gradient,
        lambda net: ps.grad(ps.jit(net)),
        lambda net: ps.jit(ps.grad(net.loss)),
        lambda net: ps.grad(ps.checkpoint(net.loss)),
        lambda net: ps.grad(net.recomputed),
        lambda net: ft.partial(ps.grad(Net.loss), net),
        lambda net: ps.grad(jtu.Partial(net.loss)),
    ],
    ids=[
        "module",
        "method",
        "decorated",
        "of jit",
        "in jit",
        "of checkpoint",
        "recomputed",
        "partial",
        "Partial",
    ],
)
def test_callables(make):
    """However the module is bound, its gradient has its tree, and its writes come back."""
    model = net()
    gradient, new = ps.pure(make(model))(x)
    if isinstance(new, ft.partial):  # also `jax.tree_util.Partial`
        new, gradient = (new.args or (new.func.__self__,))[0], getattr(gradient, "func", gradient)
        gradient = getattr(gradient, "__self__", gradient)
    expected = jax.grad(by_hand)(model.weight.value, x)
    np.testing.assert_allclose(jtu.tree_leaves(gradient)[0], expected, rtol=1e-6)
    assert len(jtu.tree_leaves(gradient)) == 1
    assert new.calls.value == 1
    assert model.calls.value == 0


FILTERS = {
    "type": (ps.HiddenState, "h"),
    "tag": ("slow", "w"),
    "everything": (..., "hrw"),
    "true": (True, "hrw"),
    "array": (jax.Array, "r"),
    "tuple": ((ps.HiddenState, "slow"), "hw"),
    "list": ([ps.HiddenState, "slow"], "hw"),
    "callable": (lambda path, leaf: "r" in path, "r"),
    "path": (ps.filter.PathContains("h"), "h"),
    "union": (ps.ParamState | ps.HiddenState, "hw"),
    "not": (~ps.filter.OfType(ps.ParamState), "hr"),
    "trainable": (ps.filter.Trainable, "rw"),
    "and": (ps.filter.Trainable & ~ps.filter.WithTag("slow"), "r"),
}


@pytest.mark.parametrize(("wrt", "names"), FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("derivative", [ps.grad, ps.jacrev, ps.jacfwd])
def test_filters(wrt, names, derivative):
    """Every kind of filter: selected leaves have a derivative, all others `None`."""
    values = {"h": jnp.float32(2), "r": jnp.float32(3), "w": jnp.float32(5)}
    model = {
        "h": ps.HiddenState(values["h"]),
        "r": values["r"],
        "s": "static",
        "w": ps.ParamState(values["w"], tag="slow"),
    }
    loss = lambda model: model["h"].value * model["r"] * model["w"].value
    found = derivative(loss, wrt=wrt)(model)
    expected = {"h": 15.0, "r": 10.0, "w": 6.0}
    assert [leaf.item() for leaf in jtu.tree_leaves(found)] == [expected[name] for name in sorted(names)]
    assert found["s"] is None
    assert type(found["h"]) is ps.HiddenState
    assert found["w"].tag == ("slow",)


@pytest.mark.parametrize("argnums", [0, 1, -1, (0, 1), [1, 0], (1,), (-1, 0)], ids=str)
@pytest.mark.parametrize("name", ["grad", "jacfwd", "jacrev", "hessian"])
def test_argnums(name, argnums):
    """Integers, tuples and lists give what JAX gives, in the same nesting."""
    f = lambda a, b: a**2 * jnp.sin(b)
    args = jnp.float32(2), jnp.float32(3)
    ours = getattr(ps, name)(f, argnums=argnums)(*args)
    theirs = getattr(jax, name)(f, argnums=tuple(argnums) if isinstance(argnums, list) else argnums)(
        *args
    )
    assert jtu.tree_structure(ours) == jtu.tree_structure(theirs)
    np.testing.assert_allclose(jtu.tree_leaves(ours), jtu.tree_leaves(theirs), rtol=1e-6)


def test_argnums_of_states():
    """Several trees: each gradient has its argument's tree; a bound module is not counted."""

    def loss(a, b):
        a["n"].value += 1
        return jnp.sum(a["w"].value * b["w"].value)

    (ga, gb), (a, _) = ps.pure(ps.grad(loss, argnums=(0, 1)), argnums=(0, 1))(tree(), tree())
    np.testing.assert_array_equal(ga["w"].value, [3.0, 5.0])
    np.testing.assert_array_equal(gb["w"].value, [3.0, 5.0])
    assert a["n"].value == 1
    gradient, model = ps.pure(ps.grad(net().loss, argnums=0))(x)
    assert gradient.shape == (2,)
    assert model.calls.value == 1


def test_empty_states_and_numbers():
    """Empty parameters, Python numbers in modules and integer arrays have no derivative."""

    class Scaled(eqx.Module):
        scale: float
        empty: ps.ParamState
        weight: jax.Array
        steps: np.ndarray

    model = Scaled(2.0, ps.ParamState(), x, np.arange(3))
    gradient = ps.grad(lambda model: jnp.sum(model.scale * model.weight))(model)
    assert jtu.tree_leaves(gradient)[0].tolist() == [2.0, 2.0]
    assert gradient.scale is gradient.steps is None
    assert len(jtu.tree_leaves(gradient)) == 1


def test_numbers_and_numpy_arrays():
    """A number that is an argument by itself, and NumPy arrays, are differentiated as in JAX."""
    assert ps.grad(lambda x: x**2)(3.0) == 6
    assert ps.grad(lambda x: x.real, holomorphic=False)(3.0) == 1
    found = ps.grad(lambda t: jnp.sum(t["a"] ** 2))({"a": np.ones(2, np.float32), "b": np.arange(2)})
    np.testing.assert_array_equal(found["a"], [2.0, 2.0])
    assert found["b"] is None


@pytest.mark.parametrize("derivative", [ps.grad, ps.jacrev, ps.hessian, ps.value_and_grad])
def test_numbers_that_are_not_differentiated(derivative):
    """As in JAX, only what is differentiated becomes an array: a number decides what is traced."""
    loss = lambda tree, p: jnp.sum(tree["w"].value ** 2) * (2.0 if p > 0.5 else 1.0)
    jax.jit(lambda w: jax.grad(lambda w, p: jnp.sum(w) * (2.0 if p > 0.5 else 1.0))(w, 0.7))(x)
    ps.jit(lambda tree: derivative(loss)(tree, 0.7))(tree())


def test_complex_and_holomorphic():
    """Complex parameters: real losses as they are, complex ones with `holomorphic`."""
    z = jnp.array([1 + 2j, 3 - 1j])
    model = {"w": ps.ParamState(z)}
    square = lambda model: jnp.sum(model["w"].value ** 2)
    for derivative in (ps.grad, ps.jacfwd, ps.jacrev):
        np.testing.assert_allclose(derivative(square, holomorphic=True)(model)["w"].value, 2 * z)
    second = ps.hessian(square, holomorphic=True)(model)["w"].value["w"].value
    np.testing.assert_allclose(second, 2 * np.eye(2))
    norm = lambda z: jnp.sum(jnp.abs(z) ** 2)
    found = ps.grad(lambda model: norm(model["w"].value))(model)["w"].value
    np.testing.assert_allclose(found, jax.grad(norm)(z), rtol=1e-6)
    with pytest.raises(TypeError, match="holomorphic=True"):
        ps.grad(square)(model)


# What is written, and what comes beside -------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev", "hessian", "vjp", "jvp"])
def test_a_differentiated_state_that_is_written(name, live):
    """The derivative is that of the value that came in, and the written value comes back, concrete."""

    def double(tree, x):
        tree["w"].value = tree["w"].value * 2
        return jnp.sum(tree["w"].value ** 2 * x)

    def call(tree, x):
        if name == "vjp":
            out, pull = ps.vjp(double, tree, x)
            return pull(jnp.ones_like(out))[0]
        if name == "jvp":
            ones = {"n": None, "w": jnp.ones(2)}
            tangents = jtu.tree_map(jnp.ones_like, ps.trainable(ps.freeze(tree)))
            assert jtu.tree_leaves(ones)[0].shape == jtu.tree_leaves(tangents)[0].shape
            return ps.jvp(double, (tree, x), (tangents,))[1]
        return getattr(ps, name)(double)(tree, x)

    before = tree()
    if live:
        with ps.record(before) as copy:
            found = call(copy, x)
        after = ps.freeze(copy)
    else:
        found, after = ps.pure(call)(before, x)
    np.testing.assert_array_equal(after["w"].value, [6.0, 10.0])
    assert not isinstance(after["w"].value, jax.core.Tracer)
    first = 8 * before["w"].value * x
    expected = {
        "hessian": np.diag(8 * x),
        "jvp": jnp.sum(first),
        "value_and_grad": None,
    }.get(name, first)
    if expected is not None:
        np.testing.assert_allclose(jtu.tree_leaves(found)[0], expected)
    else:
        np.testing.assert_allclose(found[1]["w"].value, first)


@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev", "hessian", "vjp", "jvp"])
def test_aux_with_static_leaves(name):
    """Functions, strings, integers and written values in `aux` come out as they are."""

    def body(net, x):
        loss = net.loss(x)
        return loss, {"act": net.act, "calls": net.calls.value, "name": "aux", "none": None, "x": x}

    def call(net, x):
        if name == "vjp":
            return ps.vjp(body, net, x, has_aux=True)[2]
        if name == "jvp":
            tangents = jtu.tree_map(jnp.ones_like, ps.trainable(net))
            return ps.jvp(body, (net, x), (tangents,), has_aux=True)[2]
        result = getattr(ps, name)(body, has_aux=True)(net, x)
        return result[0][1] if name == "value_and_grad" else result[1]

    aux, new = ps.pure(call)(net(), x)
    assert aux["act"] is jnp.tanh
    assert (aux["name"], aux["none"], aux["calls"]) == ("aux", None, 1)
    assert new.calls.value == 1
    np.testing.assert_array_equal(aux["x"], x)


def test_aux_of_a_decorated_method():
    """Options of a decorator on a method: the value, its aux and the gradient."""
    ((value, aux), gradient), new = ps.pure(net().with_aux)(x)
    np.testing.assert_allclose(value, by_hand(net().weight.value, x), rtol=1e-6)
    assert (aux["act"], aux["name"], new.calls.value) == (jnp.tanh, "aux", 1)
    assert gradient.act is None


@pytest.mark.parametrize("out", [lambda loss: loss, lambda loss: [loss, 1], lambda loss: (loss, 1, 2)])
def test_aux_that_is_no_pair(out):
    """What is no pair is refused, and the advice runs."""
    with pytest.raises(
        TypeError, match=r"has_aux=True, so the function returns a pair.*return loss, aux\."
    ):
        ps.grad(lambda x: out(jnp.sum(x)), has_aux=True)(x)
    gradient, aux = ps.grad(lambda x: (jnp.sum(x), 1), has_aux=True)(x)
    assert gradient.tolist() == [1.0, 1.0]
    assert aux == 1


# Derivatives of derivatives, and pull-backs ---------------------------------------------------------


def test_second_derivatives():
    """`grad` of `grad`, `jacfwd` of `grad` and `hessian` agree, and count each run's write."""
    f = lambda tree, x: jnp.sum(tree["w"].value ** 3 * x)
    model = {"w": ps.ParamState(x)}
    diagonal = 6 * x * x
    of_sum = ps.grad(lambda tree, x: jnp.sum(ps.grad(f)(tree, x)["w"].value))(model, x)
    np.testing.assert_allclose(of_sum["w"].value, diagonal)
    forward = ps.jacfwd(ps.grad(f))(model, x)["w"].value["w"].value
    np.testing.assert_allclose(forward, np.diag(diagonal))
    np.testing.assert_allclose(ps.hessian(f)(model, x)["w"].value["w"].value, np.diag(diagonal))
    (gradient, new) = ps.pure(ps.grad(lambda t, x: jnp.sum(ps.grad(square)(t, x)["w"].value)))(tree(), x)
    np.testing.assert_allclose(gradient["w"].value, 2 * x)
    assert new["n"].value == 1


def test_a_pull_back_crosses_jit():
    """A pull-back is a pytree: out of a compiled function, and into one."""
    model = net()
    f = lambda net, x: net.act(net.weight.value * x)
    out, pull = ps.jit(lambda net, x: ps.vjp(f, net, x))(model, x)
    cotangents = jnp.array([1.0, -2.0])
    _, theirs = jax.vjp(lambda w: jnp.tanh(w * x), model.weight.value)
    for apply in (pull, ft.partial(ps.jit(lambda pull, c: pull(c)), pull), jtu.Partial(pull)):
        (found,) = apply(cotangents)
        np.testing.assert_allclose(found.weight.value, theirs(cotangents)[0], rtol=1e-6)
        assert found.act is None
    np.testing.assert_allclose(out, jnp.tanh(model.weight.value * x), rtol=1e-6)
    leaves, treedef = jtu.tree_flatten(pull)
    np.testing.assert_array_equal(
        treedef.unflatten(leaves)(cotangents)[0].weight.value, found.weight.value
    )


def test_vjp_and_jvp_of_several_arguments():
    """`argnums` gives a cotangent, and takes a tangent, for each argument; outputs may be trees."""
    f = lambda a, b: {"p": a["w"].value * b, "s": jnp.sum(b)}
    model = {"w": ps.ParamState(x)}
    out, pull = ps.vjp(f, model, 2 * x, argnums=(0, 1))
    ca, cb = pull(jtu.tree_map(jnp.ones_like, out))
    np.testing.assert_array_equal(ca["w"].value, 2 * x)
    np.testing.assert_array_equal(cb, x + 1)
    tangents = (jtu.tree_map(jnp.ones_like, model), jnp.zeros(2))
    out, tangent = ps.jvp(f, [model, 2 * x], tangents, argnums=(0, 1))
    np.testing.assert_array_equal(tangent["p"], 2 * x)
    assert tangent["s"] == 0


def test_tangents_that_do_not_fit():
    """Another structure is refused with both, another shape by JAX, and the advice runs."""
    f = lambda model, x: model.weight.value * x
    model = net()
    for tangents in ((model,), (x,), (), (ps.trainable(model), x)):
        with pytest.raises(
            ValueError, match=r"^The tangents of ps\.jvp\(f\) do not fit: .*argnums\.$"
        ) as error:
            ps.jvp(f, (model, x), tangents)
    advice = re.search(r"Write tangents = (.*), and name", str(error.value))[1]
    tangents = eval(advice, {"jax": jax, "jnp": jnp, "eqx": eqx, "ps": ps, "model": model})
    np.testing.assert_array_equal(ps.jvp(f, (model, x), tangents)[1], x)
    with pytest.raises(ValueError, match="shape"):
        ps.jvp(f, (model, x), jtu.tree_map(lambda leaf: jnp.ones(3), tangents))


def test_tangents_of_another_dtype():
    """A complex direction of a real argument is refused, as in JAX."""
    with pytest.raises(TypeError, match="dtype"):
        jax.jvp(lambda x: x * 2, (x,), (x * 1j,))
    with pytest.raises((TypeError, ValueError), match=r"dtype|do not fit"):
        ps.jvp(lambda x: x * 2, (x,), (x * 1j,))


# Results in other libraries -------------------------------------------------------------------------


def test_optax_and_apply_updates():
    """Gradients go into Optax and `eqx.apply_updates` as they are; the rest of the model stays."""
    optim = optax.adamw(1e-2)
    model = net()
    opt_state = optim.init(ps.trainable(model))

    @ps.jit
    def step(model, opt_state, x):
        (loss, gradient), model = ps.pure(ps.value_and_grad(Net.loss))(model, x)
        updates, opt_state = optim.update(gradient, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, loss

    losses = []
    for _ in range(5):
        model, opt_state, loss = step(model, opt_state, x)
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert model.calls.value == 5
    assert model.act is jnp.tanh


def test_gradients_of_packed_trees():
    """The gradient has the argument's tree, so that a packed model can be updated with it."""
    packed = ps.pack(tree())
    gradient, new = ps.pure(ps.grad(square))(packed, x)
    updated = eqx.apply_updates(new, gradient)
    np.testing.assert_array_equal(updated.unpack()["w"].value, packed.unpack()["w"].value * (1 + 2 * x))


# In lanes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ps.grad, ps.jacfwd, ps.checkpoint, ps.jit], ids=lambda f: f.__name__)
def test_random_states_in_lanes(make):
    """In a lane the draws are the lane's; a random state that nobody draws from is the same object."""

    def noisy(tree, x):
        return tree["w"].value * x * tree["rng"].normal()

    def quiet(tree, x):
        return tree["w"].value * x

    model, xs = {"rng": ps.RandomState(0), "w": ps.ParamState(1.0)}, jnp.arange(1.0, 4.0)
    lanes = ft.partial(ps.vmap2, in_axes=(None, 0))
    first = lambda f: lambda tree, x: jtu.tree_leaves(make(f)(tree, x))[0]
    plain, after = ps.pure(lanes(noisy))(model, xs)
    found, new = ps.pure(lanes(first(noisy)))(model, xs)
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    assert new["rng"].value == after["rng"].value
    found, new = ps.pure(lanes(first(quiet)))(model, xs)
    np.testing.assert_array_equal(found, xs)
    assert new["rng"].value is model["rng"].value


def test_an_empty_tangent_is_zero():
    """`ps.jvp` takes an empty state among the tangents as zero."""
    model = {"w": ps.ParamState(3.0), "v": ps.ParamState(1.0)}
    f = lambda model, x: model["w"].value * x + model["v"].value
    assert ps.jvp(f, (model, 5.0), ({"w": ps.ParamState(1.0), "v": ps.ParamState()},)) == (16, 5)
    assert ps.jvp(f, (model, 5.0), ({"w": ps.ParamState(), "v": ps.ParamState(2.0)},)) == (16, 2)
