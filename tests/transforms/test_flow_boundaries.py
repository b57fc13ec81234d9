"""Loops and branches: what a run gives back at its boundary, and writes that nobody takes."""

import functools as ft
import re

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from transforms.flow import XS, Model, add, advance, advised, carry, leave, model, stays


def test_pure_of_a_loop():
    """Loops are functions of a callable, and `pure` gives back the callable, which is a pytree."""
    ys, method = ps.pure(ps.for_loop)(model().add, XS)
    np.testing.assert_allclose(ys, [6.0, 18.0, 36.0])
    assert method.__self__.total.value == 18
    (n, _), partial = ps.pure(ps.scan, argnums=0)(jtu.Partial(carry, model()), 0, XS)
    assert (n, type(partial), partial.args[0].total.value) == (3, jtu.Partial, 18)
    _, partial = ps.pure(ft.partial(ps.scan, jtu.Partial(carry, model())))(0, XS)
    assert partial.args[0].args[0].total.value == 18
    _, m = ps.pure(ps.cond, argnums=3)(True, Model.add, leave, model(), 1.0)
    assert m.total.value == 3
    layers = {"s": ps.State(jnp.zeros(3))}
    write = lambda layer, x: setattr(layer["s"], "value", x)
    _, new = ps.pure(ps.for_loop, argnums=1)(write, layers, XS)
    np.testing.assert_allclose(new["s"].value, XS)


def write_layer(layer, x):
    layer["s"].value = layer["s"].value + x


def write_layer_and_carry(carry, layer):
    layer["s"].value = layer["s"].value + 1
    return carry, None


def layers():
    return {"s": ps.State(jnp.zeros(3))}


def always(model, i):
    return i < 4


NOBODY = {
    "for_loop": (lambda: ps.for_loop(ft.partial(add, model()), XS), {"model": model, "x": XS}),
    "method": (lambda: ps.for_loop(model().add, XS), {"model": model, "x": XS}),
    "module": (lambda: ps.for_loop(model(), XS), {"model": model, "x": XS}),
    "scan": (lambda: ps.scan(ft.partial(carry, model()), 0, XS), {"model": model, "init": 0, "xs": XS}),
    "keyword": (
        lambda: ps.for_loop(ft.partial(lambda x, *, model: model.add(x), model=model()), XS),
        {"model": model, "x": XS, "f": lambda x, model: model.add(x)},
    ),
    "while_loop": (
        lambda: ps.while_loop(ft.partial(always, model()), ft.partial(advance, model()), 0.0),
        {"model": model, "init_val": 0.0},
    ),
    "cond": (lambda: ps.cond(True, add, leave, model(), 1.0), {"model": model, "pred": True, "x": 1.0}),
    "second branch": (
        lambda: ps.cond(False, stays, model().add, 1.0),
        {"model": model, "pred": False, "x": 1.0},
    ),
    "switch": (
        lambda: ps.switch(0, [ft.partial(add, model()), stays], 1.0),
        {"model": model, "index": 0, "x": 1.0},
    ),
    "xs": (lambda: ps.for_loop(write_layer, layers(), XS), {"layer": layers, "x": XS}),
    "jit": (lambda: ps.for_loop(ps.jit(model().add), XS), {"model": model, "x": XS}),
    "xs of a scan": (
        lambda: ps.scan(write_layer_and_carry, 0, layers()),
        {"layer": layers, "init": 0, "xs": 1.0},
    ),
}


@pytest.mark.parametrize(("call", "names"), NOBODY.values(), ids=NOBODY)
def test_a_write_that_nobody_takes(call, names):
    """A loop outside `pure` that writes raises, and the line of its message gives the writes back."""
    with pytest.raises(
        ps.FrozenStateError, match="was written, but the new value would be lost"
    ) as error:
        call()
    functions = (add, carry, advance, always, leave, stays, write_layer, write_layer_and_carry)
    names = {name: x() if callable(x) and name != "f" else x for name, x in names.items()}
    root = "layer" if "layer" in names else "model"
    got = advised(error, {**{f.__name__: f for f in functions}, **names})[root]
    written = got["s"] if root == "layer" else got.total
    assert np.any(written.value != 0)


def test_a_write_and_a_draw_in_a_condition():
    """A condition only reads: the message says so, and writing in the body is right."""
    for condition in (lambda m, i: m.add(i) < 3, lambda m, i: m.rng.uniform() < 0.5):
        with pytest.raises(ps.FrozenStateError) as error:
            ps.pure(lambda m, f=condition: ps.while_loop(ft.partial(f, m), m.advance, 0.0))(model())
        assert re.fullmatch(
            r"`m\.(total|rng)` \((ShortTerm|Random)State\) was written in the condition of "
            r"ps\.while_loop\(ft\.partial\(f, m\), model\.advance\), which only decides whether to go "
            r"on, and may run any number of times\. Write, and draw, in the body: def body\(carry\): "
            r"state\.value = \.\.\.; return carry\.",
            str(error.value),
        )
    assert ps.pure(lambda m: ps.while_loop(m.below, m.advance, 0.0))(model())[1].total.value == 18
