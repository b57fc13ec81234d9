"""Integers of NumPy and of JAX, options by position, and wrappers that go in circles: all as in JAX."""

import functools as ft
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import pstate as ps


INTEGERS = [np.int64(3), np.array(3), jnp.array(3)]


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Without the type checker of the test run, which would raise before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Net(ps.nn.Module):
    h: ps.HiddenState = ps.HiddenState()

    def init_state(self):
        self.h.value = jnp.zeros(2)

    def update(self, x):
        self.h.value += x
        return self.h.value


def one():
    return jnp.ones(())


#: What takes a number, called with it; each returns an array with so many entries.
USES: dict[str, Any] = {
    "vmap2": lambda n: ps.vmap2(one, axis_size=n)(),
    "pmap2": lambda n: ps.pmap2(one, axis_size=n)(),
    "StatefulMapping": lambda n: ps.StatefulMapping(one, axis_size=n)(),
    "vmap2_new_states": lambda n: ps.vmap2_new_states(Net(), {}, axis_size=n)[0].h.value,
    "pmap2_new_states": lambda n: ps.pmap2_new_states(Net(), {}, axis_size=n)[0].h.value,
    "Map": lambda n: ps.pure(ps.nn.Map(Net(), n).init_all_states().update)(jnp.ones(3))[0],
    "scan": lambda n: ps.scan(lambda c, x: (c + 1, c), 0, length=n, unroll=n)[1],
    "for_loop": lambda n: ps.for_loop(one, length=n, unroll=n),
    "chunks": lambda n: ps.vmap2(lambda x: x, chunk_size=n)(jnp.arange(3)),
    "draws": lambda n: ps.pure(lambda rng: rng.normal(size=n))(ps.RandomState(0))[0],
    "keys": lambda n: ps.pure(lambda rng: rng.split_key(n))(ps.RandomState(0))[0],
}


@pytest.mark.parametrize("n", INTEGERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("use", USES)
def test_any_concrete_integer_is_a_number(use, n):
    """NumPy's and JAX's integers do what Python's do."""
    ours, python = USES[use](n), USES[use](3)
    assert ours.shape == python.shape
    assert ours.shape[0] == 3
    assert bool(jnp.all(ours == python))


@pytest.mark.parametrize("n", INTEGERS, ids=lambda n: type(n).__name__)
def test_any_concrete_integer_is_a_position(n):
    """`argnums` and its like take them too, one or several, as in JAX."""
    xs = [jnp.full(2, float(i)) for i in range(4)]
    last = lambda a, b, c, d: jnp.sum(d**2)
    assert ps.grad(last, argnums=n)(*xs).tolist() == jax.grad(last, argnums=3)(*xs).tolist()
    assert len(ps.grad(last, argnums=[n, n - 1])(*xs)) == 2
    assert ps.pure(last, argnums=n)(*xs)[1] is xs[3]
    double = ps.jit(lambda a, b, c, d: 2 * d, donate_argnums=n)
    given = jnp.ones(2)
    assert double(*xs[:3], given).tolist() == [2, 2]
    assert given.is_deleted()
    static = ps.StatefulMapping(lambda a, b, c, d: a, static_argnums=n)
    assert static(*xs[:3], "static").tolist() == [0, 0]


def test_an_integer_of_numpy_is_an_axis_of_states():
    """The keys of axis specs are axes as well."""
    model = Net(ps.HiddenState(jnp.zeros((3, 2))))
    mapped = ps.vmap2(Net.update, state_in_axes={np.int64(0): ps.HiddenState})
    assert ps.pure(mapped)(model, jnp.ones(3))[0].shape == (3, 2)


@pytest.mark.parametrize("use", [use for use in USES if use not in ("draws", "keys")])
def test_a_traced_integer_is_refused(use):
    """A program cannot depend on what it computes; the message says what to write, and that works."""
    with pytest.raises(TypeError, match="is part of the program, and got a traced i32") as caught:
        jax.jit(USES[use])(3)
    assert re.search(r"Pass an integer that is known beforehand: \w+=\d+", str(caught.value))
    assert "static_argnums keeps" in str(caught.value)
    if "pmap" not in use:  # of which JAX 0.6.2 warns under jit
        assert jax.jit(USES[use], static_argnums=0)(3).shape[0] == 3


@pytest.mark.parametrize("length", [-1, 2.5, "3"])
def test_a_number_of_steps_that_is_none(length):
    """JAX makes 2 of 2.5; here it is refused, and the advice is right."""
    with pytest.raises(ValueError, match="length is the number of steps, an integer") as caught:
        ps.for_loop(one, length=length)
    (n,) = re.findall(r"Write length=(\d+)\.", str(caught.value))
    assert ps.for_loop(one, length=int(n)).shape == (10,)


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("argnums", lambda: ps.grad(lambda m: m, argnums="m")),
        ("argnums", lambda: ps.hessian(lambda m: m, argnums=("m",))),
        ("argnums", lambda: ps.vjp(lambda m: m, 1.0, argnums="m")),
        ("argnums", lambda: ps.pure(lambda m: m, argnums="m")),
        ("donate_argnums", lambda: ps.jit(lambda m: m, donate_argnums="m")),
        ("donate_argnums", lambda: ps.pmap2(lambda m: m, donate_argnums=1.5)),
        ("static_argnums", lambda: ps.StatefulMapping(lambda m: m, static_argnums="m")),
    ],
)
def test_names_are_no_positions(option, make):
    """An argument's name instead of its position is refused when the transform is made."""
    with pytest.raises(TypeError, match=rf"^{option} counts positional arguments from 0") as caught:
        make()
    assert f"Write {option}=0." in str(caught.value)
    assert ps.grad(lambda m: m, argnums=0)(2.0) == 1


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("axis_name", lambda name: ps.vmap2(jnp.sin, axis_name=name)),
        ("axis_name", lambda name: ps.pmap2(jnp.sin, axis_name=name)),
        ("axis_name", lambda name: ps.nn.Map(Net(), 3, axis_name=name)),
        ("spmd_axis_name", lambda name: ps.vmap2(jnp.sin, spmd_axis_name=name)),
    ],
)
def test_a_list_is_no_name_of_an_axis(option, make):
    """It is unhashable, which Python would say from somewhere inside."""
    with pytest.raises(
        TypeError, match=rf"^{option} names an axis, .*; got \['a'\] of type list"
    ) as caught:
        make(["a"])
    assert str(caught.value).endswith(f"Write {option}='batch'.")
    make("batch")


@pytest.mark.parametrize("option", ["in_axes", "out_axes"])
def test_an_array_is_no_axis(option):
    """As in JAX, axes are Python's integers; the message is ours."""
    with pytest.raises(TypeError, match=rf"^{option} are integers and None; got Array\(0"):
        ps.vmap2(lambda x: x, **{option: jnp.array(0)})
    assert ps.vmap2(lambda x: x, **{option: 0})(jnp.ones(2)).shape == (2,)


def test_options_of_vmap_go_by_position():
    """`jax.vmap` and `ps.vmap2` have the same parameters in the same places."""
    ours = list(inspect.signature(ps.vmap2).parameters.values())
    jaxs = list(inspect.signature(jax.vmap).parameters.values())[:6]
    assert [p.name for p in ours[1:6]] == [p.name for p in jaxs[1:]]
    assert [p.default for p in ours[1:6]] == [p.default for p in jaxs[1:]]
    assert {p.kind for p in ours[6:]} == {inspect.Parameter.KEYWORD_ONLY}
    f = lambda a, b: jax.lax.psum(a, "i") + b
    given = (None, 0), 1, "i", 3
    a, b = 2.0, jnp.arange(6.0).reshape(3, 2)
    assert ps.vmap2(f, *given)(a, b).tolist() == jax.vmap(f, *given)(a, b).tolist()


def test_options_of_pmap_go_by_position():
    """`jax.pmap` takes the axis name by position, and so does `ps.pmap2`; the others go by name."""
    for pmap in (jax.pmap, ps.pmap2):
        kinds = {p.name: p.kind for p in inspect.signature(pmap).parameters.values()}
        assert kinds["axis_name"] is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert kinds["in_axes"] is inspect.Parameter.KEYWORD_ONLY


def circle(n: int) -> Any:
    """A function whose `__wrapped__` leads back to itself after `n` steps."""
    functions: list[Any] = [(lambda k: lambda x: x * k)(2.0) for _ in range(n)]
    for i, function in enumerate(functions):
        function.__wrapped__ = functions[(i + 1) % n]
    return functions[0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_wrappers_that_go_in_circles(n):
    """Following `__wrapped__` ends, in each transform."""
    f, xs = circle(n), jnp.arange(3.0)
    expected = (2 * xs).tolist()
    assert ps.vmap2(f)(xs).tolist() == expected
    assert ps.vmap2(ft.partial(f))(xs).tolist() == expected
    assert ps.jit(f)(xs).tolist() == expected
    assert ps.pure(f)(xs)[0].tolist() == expected
    assert ps.checkpoint(f)(xs).tolist() == expected
    assert ps.for_loop(f, xs).tolist() == expected
    assert ps.cond(True, f, f, xs).tolist() == expected
    assert ps.grad(f)(1.0) == 2
    assert "lanes" in str(ps.vmap2(f).explain(xs))
