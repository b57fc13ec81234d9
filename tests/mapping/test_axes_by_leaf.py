"""`in_axes` as a function of the leaf, as Equinox has it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


def by_rank(leaf: Any) -> int | None:
    return 0 if getattr(leaf, "ndim", 0) == 2 else None


class Layer(eqx.Module):
    weight: ps.ParamState
    scale: jax.Array
    calls: ps.State
    name: str = eqx.field(static=True, default="layer")

    def __call__(self, x: Any) -> Any:
        self.calls.value += 1
        return self.weight.value @ x * self.scale


def layer() -> Layer:
    return Layer(
        ps.ParamState(jnp.arange(6.0).reshape(3, 2)), jnp.asarray(2.0), ps.State(jnp.zeros(3, jnp.int32))
    )


def run(layer: Layer, x: Any) -> Any:
    return layer(x)


def test_a_function_for_each_argument() -> None:
    axes = {
        "layer": lambda leaf: 0 if getattr(leaf, "shape", ())[:1] == (3,) else None,
        "x": None,
    }
    mapped = ps.vmap2(run, in_axes=axes)
    x = jnp.asarray([1.0, 10.0])
    out, after = ps.pure(mapped)(layer(), x)
    twin = jax.vmap(lambda w: w @ x * 2.0)(layer().weight.value)
    assert jnp.array_equal(out, twin)
    assert after.calls.value.tolist() == [1, 1, 1]


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_one_function_for_all_arguments(chunk_size: Any) -> None:
    def f(a: Any, b: Any, *, c: Any) -> Any:
        return a.sum() + b + c.sum()

    a, b, c = jnp.arange(6.0).reshape(3, 2), 2.0, jnp.ones((3, 4))
    mapped = ps.vmap2(f, in_axes=by_rank, chunk_size=chunk_size)
    assert jnp.array_equal(mapped(a, b, c=c), jax.vmap(lambda a, c: f(a, b, c=c))(a, c))


def test_equinox_spells_it() -> None:
    f = lambda a, name: a.sum()
    mapped = ps.vmap2(f, in_axes=(eqx.if_array(0), None))
    assert mapped({"x": jnp.ones((3, 2))}["x"], "label").tolist() == [2.0, 2.0, 2.0]


def test_compiled_once_for_one_function_and_again_for_another() -> None:
    traced = []

    def f(x: Any) -> Any:
        traced.append(1)
        return x.sum()

    for _ in range(2):
        assert ps.vmap2(f, in_axes=by_rank)(jnp.ones((3, 2))).tolist() == [2.0] * 3
    assert len(traced) == 1
    by_last = lambda leaf: -1
    assert ps.vmap2(f, in_axes=by_last)(jnp.ones((3, 2))).tolist() == [3.0] * 2
    assert len(traced) == 2


def test_random_states_are_split_and_rules_come_first() -> None:
    def f(m: Any, x: Any) -> Any:
        return m["rng"].normal() + m["shared"].value.sum() + x

    m = {"rng": ps.RandomState(0), "shared": ps.ParamState(jnp.ones((3, 2)))}
    mapped = ps.vmap2(f, in_axes=lambda leaf: 0, state_in_axes={None: ps.ParamState})
    out, after = ps.pure(mapped)(m, jnp.zeros(4))
    twin, expected = ps.pure(ps.vmap2(f, in_axes=(None, 0)))(m, jnp.zeros(4))
    assert jnp.array_equal(out, twin)
    assert after["rng"].value == expected["rng"].value


def test_it_shows_in_explain_and_in_the_name() -> None:
    mapped = ps.vmap2(run, in_axes={"layer": by_rank, "x": None})
    assert "by_rank" in repr(mapped)
    assert "layer.weight" in str(mapped.explain(layer(), jnp.ones(2)))


@pytest.mark.parametrize("axis", ["zero", 0.5, True])
def test_a_function_that_gives_no_axis(axis: Any) -> None:
    with pytest.raises(TypeError, match=rf"`x` in in_axes .*got {axis!r}"):
        ps.vmap2(lambda x: x, in_axes=lambda leaf: axis)(jnp.ones(3))


def test_an_exception_of_the_function_is_the_users() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        ps.vmap2(lambda x: x, in_axes=lambda leaf: leaf.no_such)(jnp.ones(3))


def test_out_axes_are_no_functions() -> None:
    with pytest.raises(TypeError, match="out_axes are integers and None"):
        ps.vmap2(lambda x: x, out_axes=by_rank)(jnp.ones(3))
