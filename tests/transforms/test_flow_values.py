"""Loops and branches: what a state may hold, and how it may change."""

import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from transforms.flow import XS, leave, same


VALUES = {
    "f32": jnp.arange(3.0),
    "bf16": jnp.ones(2, jnp.bfloat16),
    "i8": jnp.ones((2, 1), jnp.int8),
    "u32": jnp.uint32(4),
    "bool": jnp.array([True, False]),
    "c64": jnp.array(1 + 2j, jnp.complex64),
    "typed key": jr.key(3),
    "raw key": jr.PRNGKey(3),
    "rbg key": jr.key(3, impl="rbg"),
    "container": {"a": (jnp.ones(2), jnp.int32(1)), "b": [jr.key(1)]},
    "empty container": {},
    "weak": jnp.asarray(2.0),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_kind_of_value(value):
    """Two states swap values of any dtype in each loop and branch; types stay as they are."""

    def swap(pair, *_):
        pair["a"].value, pair["b"].value = pair["b"].value, pair["a"].value

    def again(pair, i):
        swap(pair)
        return i + 1

    def run(pair):
        ps.for_loop(ft.partial(swap, pair), length=3)
        ps.while_loop(lambda i: i < 2, ft.partial(again, pair), 0)
        ps.cond(False, lambda pair: None, swap, pair)
        ps.for_loop(ft.partial(swap, pair), length=1)
        return ps.scan(ft.partial(lambda pair, c, x: (c, pair["a"].value), pair), 0, length=2)[1]

    other = jax.tree.map(
        lambda x: jr.split(x)[0] if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, value
    )
    ys, new = ps.pure(run)({"a": ps.State(value), "b": ps.State(other)})
    same(new["a"].value, other)
    same(new["b"].value, value)
    same(ys, jax.tree.map(lambda x: jnp.stack([x, x]), other))


def test_a_weakly_typed_state_becomes_strong():
    """As in JAX, a weak type gives way to the type that the body writes."""

    def halve(tree, _):
        tree["s"].value = tree["s"].value + jnp.float32(0.5)

    _, new = ps.pure(lambda t: ps.for_loop(ft.partial(halve, t), XS))({"s": ps.State(jnp.asarray(1))})
    assert (new["s"].value, new["s"].value.dtype) == (2.5, jnp.float32)


def test_a_weakly_typed_state_that_cannot_be_promoted():
    """A weakly typed state whose new type JAX cannot promote to is named as any other."""

    def write(tree, _):
        tree["s"].value = jnp.int32(3)

    with pytest.raises(ps.StateTypeError, match=r"`tree\['s'\]` \(State\) .* f32\[\].* i32\[\]"):
        ps.pure(lambda t: ps.for_loop(ft.partial(write, t), XS))({"s": ps.State(jnp.asarray(1.0))})


def test_a_weakly_typed_value_in_one_branch():
    """The same where one branch writes a weakly typed value of another dtype."""

    def write(tree):
        tree["s"].value = jnp.asarray(2.5)

    with pytest.raises(ps.StateTypeError, match=r"`tree\['s'\]` \(State\) leaves write as f32\[\]"):
        ps.pure(lambda t: ps.cond(True, write, lambda t: None, t))({"s": ps.State(jnp.int32(1))})


def test_empty_states():
    """An empty state may be filled in both branches, and not in one, and not in a loop."""
    fill = lambda tree, *_: setattr(tree["s"], "value", jnp.float32(1))
    _, new = ps.pure(lambda t: ps.cond(True, fill, fill, t))({"s": ps.State()})
    assert new["s"].value == 1
    _, new = ps.pure(lambda t: ps.cond(True, lambda t: None, lambda t: None, t))(
        empty := {"s": ps.State()}
    )
    assert new is empty
    with pytest.raises(ps.StateTypeError) as error:
        ps.pure(lambda t: ps.cond(True, fill, lambda t: None, t))({"s": ps.State()})
    assert str(error.value) == (
        "`tree['s']` (State) leaves f as f32[] and f as empty. The branches of ps.cond(f, f) give back "
        "the same types: write a value of the same shape and dtype in both, state.value = "
        "jnp.asarray(new, state.value.dtype), or fill or reshape the state before."
    )
    with pytest.raises(ps.StateTypeError, match="as empty, but the body wrote f32"):
        ps.pure(lambda t: ps.for_loop(ft.partial(fill, t), XS))({"s": ps.State()})


def test_the_advice_for_an_empty_state_in_a_loop():
    """What the message says to write can be written."""
    fill = lambda tree, new: setattr(tree["s"], "value", new)
    with pytest.raises(ps.StateTypeError) as error:
        ps.pure(lambda t: ps.for_loop(ft.partial(fill, t), XS))({"s": ps.State()})
    assert "state.value.dtype" not in str(error.value)


def test_containers_are_checked():
    """A container that was edited in place and not written back is refused in a loop too."""

    def edit(tree, x):
        tree["s"].value["a"] = x

    with pytest.raises(
        ps.FrozenStateError, match=r"The container read from `tree\['s'\]` was edited in p"
    ):
        ps.pure(lambda t: ps.for_loop(ft.partial(edit, t), XS))({"s": ps.State({"a": 0.0})})


CHANGES = {
    "shape": (lambda v, new: v[0] + new, "f32[3]", "f32[]"),
    "dtype": (lambda v, new: v.astype(jnp.int32), "f32[3]", "i32[3]"),
    "tree": (lambda v, new: {"a": v}, "f32[3]", "{'a': f32[3]}"),
    "emptied": (lambda v, new: None, "f32[3]", "empty"),
}


@pytest.mark.parametrize(("change", "before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_state_that_changes_its_type(change, before, after):
    """Loops and branches name the state and both types; what the message says to write works."""

    def write(tree, new):
        tree["s"].value = change(tree["s"].value, new)
        return new

    start = {"s": ps.State(jnp.zeros(3))}
    loops = {
        "ps.for_loop(ft.partial(write, tree))": lambda t: ps.for_loop(ft.partial(write, t), XS),
        "ps.while_loop(f, ft.partial(write, tree))": lambda t: ps.while_loop(
            lambda i: i < 1, ft.partial(write, t), 0.0
        ),
    }
    for code, run in loops.items():
        with pytest.raises(ps.StateTypeError) as error:
            ps.pure(run)(start)
        place = "tree['s']"
        assert str(error.value) == (
            f"`{place}` (State) came into {code} as {before}, but the body wrote {after}. A loop keeps "
            "types: write a value of the same shape and dtype, state.value = jnp.asarray(new, "
            "state.value.dtype).reshape(state.value.shape), or give the state the other type before the "
            "loop."
        )
    with pytest.raises(ps.StateTypeError) as error:
        ps.pure(lambda t: ps.cond(True, write, leave, t, 1.0))(start)
    assert f"leaves write as {after} and leave as {before}. The branches of ps.cond(write, " in str(
        error.value
    )

    def right(tree, new):
        state = tree["s"]
        new = np.full((1, 3), 2)
        state.value = jnp.asarray(new, state.value.dtype).reshape(state.value.shape)
        return 1.0

    for run in (
        lambda t: ps.for_loop(ft.partial(right, t), XS),
        lambda t: ps.while_loop(lambda i: i < 1, ft.partial(right, t), 0.0),
        lambda t: ps.cond(True, right, leave, t, 1.0),
    ):
        same(ps.pure(run)(start)[1], {"s": ps.State(jnp.full(3, 2.0))})
