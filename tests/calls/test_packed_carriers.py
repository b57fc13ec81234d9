"""Packed trees as carriers: wherever a tree can be passed, and they come back packed."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from trees.packing import add, net, tree, x


RUNS = {
    "pure": ps.pure(add),
    "jit": ps.pure(ps.jit(add)),
    "donate": ps.pure(ps.jit(add, donate=...)),
    "donate_argnums": ps.pure(ps.jit(add, donate_argnums=0)),
    "checkpoint": ps.pure(ps.checkpoint(add)),
    "vmap2": ps.pure(ps.vmap2(add)),
    "jit of vmap2": ps.pure(ps.jit(ps.vmap2(add))),
    "vmap2 of jit": ps.pure(ps.vmap2(ps.jit(add))),
    "jax.jit": jax.jit(ps.pure(add)),
    "jax.vmap": jax.vmap(ps.pure(add)),
    "filter_jit": eqx.filter_jit(ps.pure(add)),
    "contract": ps.pure(ps.jit(add), writes=ps.State),
    "argnums": ps.pure(ps.jit(add), argnums=0),
    "negative": ps.pure(ps.jit(add), argnums=-2),
    "tuple": lambda t, x: (lambda out, new: (out, new[0]))(*ps.pure(ps.jit(add), argnums=(0,))(t, x)),
    "second": lambda t, x: ps.pure(ps.jit(lambda x, t: add(t, x)), argnums=1)(x, t),
    "scan": lambda t, x: (lambda c, y: (y[0], c))(
        *jax.lax.scan(lambda c, x: ps.pure(add)(c, x)[::-1], t, x[None])
    ),
    "loop": ps.pure(lambda t, x: ps.for_loop(ft.partial(add, t), x[None])[0]),
    "numpy": lambda t, x: ps.pure(ps.jit(add))(t, np.asarray(x)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_as_a_carrier(run):
    """Through every transform it gives what the tree gives, and comes back packed."""
    packed = ps.pack(tree())
    for step in range(1, 3):
        out, packed = run(packed, x)
        assert type(packed) is ps.Packed
        np.testing.assert_array_equal(out, np.full(3, 2.0 * step))
        np.testing.assert_array_equal(packed.unpack()["s"].value, np.full(3, float(step)))


@pytest.mark.parametrize("outer", [ps.jit, ps.vmap2, ps.checkpoint])
def test_around_pure(outer):
    """`pure` inside a transform gets the tree itself, and gives back what `pure` outside does."""
    out, model = outer(ps.pure(add))(ps.pack(tree()), x)
    np.testing.assert_array_equal(out, 2 * x)
    _, packed = ps.pure(outer(add))(ps.pack(tree()), x)
    assert not ps.diff(model, packed.unpack())


def test_over_devices():
    """`pmap2` takes and gives it."""
    packed = ps.pack({"s": ps.State(jnp.zeros(4))})
    out, packed = ps.pure(ps.pmap2(add))(packed, jnp.ones(4))
    np.testing.assert_array_equal(out, np.full(4, 2.0))
    assert type(packed) is ps.Packed


def test_random_states_of_lanes():
    """Lanes of a packed tree draw what those of the tree draw."""
    model = {"rng": ps.RandomState(0), "s": ps.State(jnp.zeros(3))}
    noisy = ps.vmap2(lambda t, x: add(t, x) + t["rng"].normal())
    plain, after = ps.pure(noisy)(model, x)
    packed, after_too = ps.pure(noisy)(ps.pack(model), x)
    np.testing.assert_array_equal(plain, packed)
    assert after_too.unpack()["rng"].value == after["rng"].value


def test_gradients():
    """Gradients of a packed tree are those of the tree, and writes come back packed."""
    loss = lambda net, x: jnp.sum(net(x) ** 2)
    gradient, packed = ps.pure(ps.grad(loss))(ps.pack(net()), jnp.ones(2))
    expected, _ = ps.pure(ps.grad(loss))(net(), jnp.ones(2))
    np.testing.assert_array_equal(jtu.tree_leaves(gradient)[0], expected.weight.value)
    assert packed.unpack().count.value == 1
    raw = jax.grad(lambda p: jnp.sum(ps.pure(add)(p, 1.0)[0]))(ps.pack(tree()))
    np.testing.assert_array_equal(raw.unpack()["s"].value, np.full(3, 2.0))


def test_beside_other_carriers():
    """Two packed trees, and one inside another tree, are each read and written."""

    def both(a, b):
        return add(a, 1.0), add(b["inner"], 2.0)

    for wrap in (lambda f: f, ps.jit):
        _, (a, b) = ps.pure(wrap(both), argnums=(0, 1))(ps.pack(tree()), {"inner": ps.pack(tree())})
        assert type(a) is ps.Packed
        inner = b["inner"].unpack() if isinstance(b["inner"], ps.Packed) else b["inner"]
        assert (a.unpack()["s"].value[0], inner["s"].value[0]) == (1, 2)


def test_inside_another_tree_it_stays_packed():
    """The structure of a carrier does not change by a write, so that loops and second calls fit."""
    carrier = {"inner": ps.pack(tree())}
    _, new = ps.pure(ps.jit(lambda t, x: add(t["inner"], x)))(carrier, x)
    assert jtu.tree_structure(new) == jtu.tree_structure(carrier)


@pytest.mark.parametrize("partial", [ft.partial, jtu.Partial])
def test_in_a_partial_it_stays_packed(partial):
    """A partial that holds a packed tree comes back with a packed tree."""
    _, new = ps.pure(ps.jit(partial(add, ps.pack(tree()))))(x)
    assert type(new.args[0]) is ps.Packed


@pytest.mark.parametrize("partial", [ft.partial, jtu.Partial])
def test_in_a_partial(partial):
    """A partial that holds a packed tree is a carrier."""
    for wrap in (lambda f: f, ps.jit):
        out, new = ps.pure(wrap(partial(add, ps.pack(tree()))))(x)
        (state,) = jtu.tree_leaves(new.args)
        np.testing.assert_array_equal(state, x)
        np.testing.assert_array_equal(out, 2 * x)


def test_one_packed_tree_at_two_places():
    """As a state at two places: to write one of them would lose the sharing, and is refused."""
    packed = ps.pack(tree())
    with pytest.raises(ps.AliasedStateError, match="two places"):
        ps.pure(lambda a, b: add(a, 1.0))(packed, packed)


def test_made_and_returned_in_a_compiled_function():
    """A packed tree can be an output."""
    made = ps.jit(lambda: ps.pack({"s": ps.State(x)}))()
    assert type(made) is ps.Packed
    np.testing.assert_array_equal(made.unpack()["s"].value, x)


def test_of_a_live_tree():
    """Packing freezes; what was written is in it."""
    with ps.record(tree()) as live:
        add(live, 1.0)
        packed = ps.pack(live)
        add(live, 1.0)
    np.testing.assert_array_equal(packed.unpack()["s"].value, x)
    np.testing.assert_array_equal(ps.freeze(live)["s"].value, 2 * x)
