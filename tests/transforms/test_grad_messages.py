"""`grad` and related transforms: what they refuse, the messages, and that the advice runs."""

import re

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from transforms.losses import net, square, tree, x


def line_of(error):
    """The line of code at the end of a message."""
    return str(error.value).splitlines()[-1].strip()


def exactly(text):
    return f"^{re.escape(text)}$"


def test_nothing_to_differentiate():
    """A filter that selects nothing is told what is there."""
    with pytest.raises(
        ValueError,
        match=exactly(
            "ps.grad(f) differentiates nothing: wrt=Trainable selects no array in `tree`, which has "
            "`tree['a']` (State, f32[]). Select other leaves, wrt=..., or another argument by "
            "argnums=0, as the caller counts them."
        ),
    ):
        ps.grad(lambda tree: tree["a"].value)({"a": ps.State(1.0)})
    assert ps.grad(lambda tree: tree["a"].value, wrt=ps.State)({"a": ps.State(1.0)})["a"].value == 1
    with pytest.raises(ValueError, match=r"wrt=Trainable selects no array in `x`, which has no array"):
        ps.grad(lambda x: x)(3)


def test_no_argnums():
    """`argnums=()` is refused with words for it."""
    with pytest.raises(ValueError) as error:
        ps.grad(lambda a: a, argnums=())(1.0)
    assert " in , " not in str(error.value)


def test_argnums_named_twice():
    """An argument named twice is refused, as by `pure`; the line that is advised runs."""
    f = lambda a, b: a * b
    with pytest.raises(ValueError, match=r"names an argument twice\. Write argnums=\(0,\)\."):
        ps.grad(f, argnums=(0, 0))(3.0, 2.0)
    assert ps.grad(f, argnums=(0,))(3.0, 2.0) == (2.0,)


def test_argnums_that_nobody_passed():
    """A position beyond what was passed is refused; the advice runs."""
    message = (
        r"ps\.grad\(f, argnums=1\) differentiates argument 1, as the caller counts them, but 1 were "
        r"passed: positions \[0\]\. Write argnums=0, or pass the differentiated argument by position\.$"
    )
    with pytest.raises(ValueError, match=message):
        ps.grad(lambda a: a, argnums=1)(1.0)
    assert ps.grad(lambda a: a, argnums=0)(1.0) == 1
    with pytest.raises(ValueError, match=r"ps\.grad\(f\) differentiates argument 0.*but 0 were passed"):
        ps.grad(lambda a: a)(a=1.0)


class Two(eqx.Module):
    good: ps.ParamState
    bad: ps.ParamState


BAD = {
    "module": (
        lambda: Two(ps.ParamState(x), ps.ParamState(jnp.arange(2))),
        lambda m: m.good.value,
        {},
    ),
    "dict": (
        lambda: {"bad": ps.ParamState(jnp.arange(2)), "good": ps.ParamState(x)},
        lambda m: m["good"].value,
        {},
    ),
    "list": (
        lambda: [ps.ParamState(jnp.arange(2)), ps.ParamState(x)],
        lambda m: m[1].value,
        {},
    ),
    "other filter": (
        lambda: Two(ps.LongTermState(x), ps.LongTermState(jnp.arange(2))),
        lambda m: m.good.value,
        {"wrt": ps.LongTermState},
    ),
    "container": (
        lambda: {"p": ps.ParamState({"bad": jnp.arange(2), "good": x}), "q": ps.ParamState(x)},
        lambda m: m["q"].value,
        {},
    ),
}


@pytest.mark.parametrize(
    ("make", "good", "options"),
    [pytest.param(*case[:3], id=name) for name, case in BAD.items()],
)
def test_integers(make, good, options):
    """A selected integer array is named, and the advice runs."""
    loss = lambda model: jnp.sum(good(model))
    message = r"was selected by wrt=.* and holds i32\[2\], which has no derivative"
    with pytest.raises(TypeError, match=message) as error:
        ps.grad(loss, **options)(make())
    advice = re.search(r"Leave it out: wrt=(.*)\.$", str(error.value))[1]
    gradient = ps.grad(loss, wrt=eval(advice, {"ps": ps}))(make())
    np.testing.assert_array_equal(good(gradient), [1.0, 1.0])


def test_no_scalar():
    """A loss that is no scalar is refused as by JAX."""
    with pytest.raises(TypeError, match=r"Gradient only defined for scalar-output functions"):
        ps.grad(lambda x: x * 2)(x)


def with_aux(tree, x):
    return square(tree, x), 1


@ps.value_and_grad(wrt=ps.ParamState)
def decorated(tree, x):
    return square(tree, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda tree: ps.grad(square)(tree, x),
        lambda tree: ps.grad(with_aux, has_aux=True, wrt=(ps.ParamState, "tag"))(tree, x),
        lambda tree: ps.value_and_grad(square, argnums=(0, 1))(tree, x),
        lambda tree: ps.jacrev(square, wrt=~ps.filter.OfType(ps.State) | ps.ParamState)(tree, x),
        lambda tree: ps.hessian(square)(tree, x=x),
        lambda tree: decorated(tree, x),
        lambda tree: ps.checkpoint(square, prevent_cse=False)(tree, x),
        lambda tree: ps.vjp(square, tree, x),
        lambda tree: ps.vjp(with_aux, tree, x, has_aux=True, argnums=1),
        lambda tree: ps.jvp(square, (tree, x), (tangents(),)),
    ],
    ids=[
        "grad",
        "aux",
        "argnums",
        "jacrev",
        "hessian",
        "decorated",
        "checkpoint",
        "vjp",
        "vjp options",
        "jvp",
    ],
)
def test_the_line_that_is_right(call):
    """A write that nobody takes names the line to write, which runs."""
    model = tree()
    with pytest.raises(ps.FrozenStateError, match=r"`tree\['n'\]` \(State\) was written") as error:
        call(model)
    names = {**globals(), "tree": model, "tangents": (tangents(),)}
    exec(line_of(error), names)
    assert names["tree"]["n"].value == 1


def tangents():
    model = tree()
    return jtu.tree_map(jnp.ones_like, ps.trainable(model))


def test_an_echo():
    """A model that comes back in `aux` too is refused where it is threaded, and only there."""
    loss = lambda net, x: (jnp.sum(net.weight.value * x), net)
    with pytest.raises(
        ps.AliasedStateError, match=r"came in as `net\.weight` and is also in the output"
    ):
        ps.pure(ps.grad(loss, has_aux=True))(net(), x)
    gradient, same = ps.grad(loss, has_aux=True)(net(), x)
    np.testing.assert_array_equal(gradient.weight.value, x)
    assert same.act is jnp.tanh


@pytest.mark.parametrize(
    "make",
    [ps.grad, ps.jacfwd, ps.hessian, ps.checkpoint, lambda f: lambda *args: ps.vjp(f, *args)[0]],
    ids=["grad", "jacfwd", "hessian", "checkpoint", "vjp"],
)
def test_an_exception_half_way(make):
    """The exception comes out as it is, inputs stay as they were, and nothing was written."""

    def body(tree, x):
        square(tree, x)
        raise KeyError("half way")

    model = tree()
    with pytest.raises(KeyError, match="half way"):
        ps.pure(make(body))(model, x)
    with ps.record(model) as live, pytest.raises(KeyError, match="half way"):
        make(body)(live, x)
    assert ps.written(live) == {}
    assert ps.pure(square)(model, x)[1]["n"].value == 1
