"""Empty states that the lanes of a mapping fill."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


Model = dict[str, Any]


def fill(model: Model, x: Any) -> Any:
    model["hidden"].value = x * model["weight"].value
    return x


def twin(model: Model, xs: Any) -> Any:
    return jax.vmap(lambda w, x: x * w)(model["weight"].value, xs)


def model(weight: Any) -> Model:
    return {"weight": ps.ParamState(weight), "hidden": ps.HiddenState()}


XS = jnp.arange(3.0)


@pytest.mark.parametrize("mapped", [ps.vmap2, ps.pmap2], ids=["vmap2", "pmap2"])
def test_a_mapped_argument(mapped: Callable[..., Any]) -> None:
    """What fills an empty state leaves along the axis of the argument, as of a filled one."""
    given = model(jnp.ones(3))
    ys, filled = ps.pure(mapped(fill))(given, XS)
    assert jnp.array_equal(ys, XS)
    assert jnp.array_equal(filled["hidden"].value, twin(given, XS))
    again = ps.pure(mapped(fill))(filled, XS)[1]
    assert jnp.array_equal(again["hidden"].value, filled["hidden"].value)


def test_other_axes() -> None:
    """The axis is that of the argument, a negative one too, by position, by name and by keyword."""
    weight = jnp.arange(6.0).reshape(2, 3)
    for axis in (1, -1):
        given = model(weight)
        _, filled = ps.pure(ps.vmap2(fill, in_axes=(axis, 0)))(given, XS)
        assert jnp.array_equal(filled["hidden"].value, weight * XS)
    _, filled = ps.pure(ps.vmap2(fill, in_axes={"model": 1, "x": 0}))(model(weight), XS)
    assert jnp.array_equal(filled["hidden"].value, weight * XS)

    def by_keyword(x: Any, model: Model) -> Any:
        return fill(model, x)

    with ps.record(model(jnp.ones(3))) as live:
        ps.vmap2(by_keyword)(XS, model=live)
    assert jnp.array_equal(ps.freeze(live)["hidden"].value, XS)


def test_a_prefix_of_the_argument() -> None:
    """A prefix applies to the empty state by itself, next to a weight that the lanes share."""
    prefix = {"weight": None, "hidden": 0}
    _, filled = ps.pure(ps.vmap2(fill, in_axes=(prefix, 0)))(model(2.0), XS)
    assert jnp.array_equal(filled["hidden"].value, 2 * XS)
    assert filled["weight"].value.shape == ()


def test_a_rule_going_in() -> None:
    """A rule of `state_in_axes` gives an empty state of a bound module its axis, both ways."""

    class Layer(eqx.Module):
        hidden: ps.HiddenState
        total: ps.State

        def __call__(self, x: Any) -> Any:
            self.hidden.value = x
            self.total.value = jnp.ones(2)
            return x

    layer = Layer(ps.HiddenState(), ps.State())
    _, layer = ps.pure(ps.vmap2(layer, state_in_axes={0: ps.HiddenState}))(XS)
    assert jnp.array_equal(layer.hidden.value, XS)
    assert layer.total.value.shape == (2,), "the lanes share the module, and agree"


def test_only_an_empty_state() -> None:
    """An argument that is one empty state, filled with the same in all lanes, has lanes after."""

    def start(state: ps.State) -> None:
        state.value = jnp.ones(2)

    _, state = ps.pure(ps.vmap2(start, axis_size=3))(ps.State())
    assert state.value.shape == (3, 2)


def test_containers_and_keys() -> None:
    """A filled container has the axis at each leaf; an empty random state gets a key per lane."""

    def start(states: Model, key: Any) -> None:
        states["pair"].value = {"a": jnp.zeros(2), "b": jnp.float32(1.0)}
        states["rng"].value = key

    empty_rng = eqx.tree_at(lambda rng: rng.value, ps.RandomState(0), None)
    keys = jax.random.split(jax.random.key(0), 3)
    _, states = ps.pure(ps.vmap2(start))({"pair": ps.State(), "rng": empty_rng}, keys)
    assert jax.tree.map(jnp.shape, states["pair"].value) == {"a": (3, 2), "b": (3,)}
    assert jnp.array_equal(states["rng"].value, keys)


def test_unwritten() -> None:
    """An empty state that nobody fills comes back empty."""
    _, given = ps.pure(ps.vmap2(lambda model, x: x))(model(jnp.ones(3)), XS)
    assert jax.tree.structure(given) == jax.tree.structure(model(jnp.ones(3)))


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_chunks_and_nests(chunk_size: int) -> None:
    """Chunks, lanes in lanes, and jit give what the twin gives."""
    given = model(jnp.arange(3.0))
    _, filled = ps.pure(ps.jit(ps.vmap2(fill, chunk_size=chunk_size)))(given, XS)
    assert jnp.array_equal(filled["hidden"].value, twin(given, XS))
    _, filled = ps.pure(ps.vmap2(ps.vmap2(fill)))(model(jnp.ones((2, 3))), jnp.ones((2, 3)))
    assert filled["hidden"].value.shape == (2, 3)


def test_what_stays_refused() -> None:
    """Where nobody gave an axis a value that differs is refused, and the advice runs.

    A function of the leaf gives none: there is no leaf.
    """
    for in_axes in ((None, 0), (eqx.if_array(0), 0), ({"weight": None, "hidden": None}, 0)):
        weight = jnp.ones(3) if callable(in_axes[0]) else 1.0
        with pytest.raises(ps.BatchAxisError, match=r"came in empty .* state_out_axes=\{0: ps.Hidden"):
            ps.pure(ps.vmap2(fill, in_axes=in_axes))(model(weight), XS)
        fixed = ps.vmap2(fill, in_axes=in_axes, state_out_axes={0: ps.HiddenState})
        assert jnp.array_equal(ps.pure(fixed)(model(weight), XS)[1]["hidden"].value, XS)


def test_an_axis_that_a_value_cannot_have() -> None:
    """A lane's value without a place for the axis of its argument is refused by name."""
    keep = lambda model, x: setattr(model["hidden"], "value", x)
    run = ps.pure(ps.vmap2(keep, in_axes=(1, 0)))
    with pytest.raises(ps.BatchAxisError, match=r"`model\['hidden'\]` \(Hidden.*\) leaves along axis 1"):
        run(model(jnp.ones((2, 3))), XS)
