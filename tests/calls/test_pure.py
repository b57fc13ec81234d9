"""`pure`: what it gives back, for every kind of callable, and who may call it."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


class Counter(eqx.Module):
    count: ps.ShortTermState
    step: jax.Array

    def __call__(self, by):
        self.count.value = self.count.value + by * self.step
        return self.count.value

    def reset(self, to=0.0):
        self.count.value = to

    @ps.pure
    def advanced(self, by):
        return self(by)

    @ps.pure(writes=ps.ShortTermState)
    def checked(self, by):
        return self(by)

    @staticmethod
    @ps.pure
    def both(a, by):
        return a(by)


def counter(value=1.0):
    return Counter(ps.ShortTermState(value), jnp.float32(1))


def add(model, by):
    return model(by)


# What comes back ----------------------------------------------------------------------------------


def test_a_function_gives_back_argument_0():
    """The first positional argument comes back with its states."""
    model = counter()
    out, new = ps.pure(add)(model, 2.0)
    assert (out, new.count.value, model.count.value) == (3, 3, 1)
    assert type(new) is Counter
    assert new.step is model.step


def test_a_keyword_is_no_carrier_but_is_read():
    """Keyword arguments are passed on; states in them are readable."""
    out, new = ps.pure(lambda model, *, other: model(other["s"].value))(
        counter(), other={"s": ps.State(4)}
    )
    assert out == new.count.value == 5


@pytest.mark.parametrize("make", [lambda m: m, lambda m: m.__call__, lambda m: m.reset])
def test_a_bound_method_and_a_module_give_back_the_module(make):
    """The bound module is the carrier, and is not counted as an argument."""
    model = counter()
    _, new = ps.pure(make(model))(2.0)
    assert type(new) is Counter
    assert new.count.value in (2, 3)
    assert new.step is model.step
    assert model.count.value == 1


@pytest.mark.parametrize("kind", [ft.partial, jtu.Partial])
def test_a_partial_gives_back_the_partial(kind):
    """A partial that holds states comes back in its own type, callable again."""
    partial = kind(add, counter())
    out, partial = ps.pure(partial)(2.0)
    assert type(partial) is kind
    assert (out, partial.args[0].count.value) == (3, 3)
    out, partial = ps.pure(partial)(2.0)
    assert (out, partial.args[0].count.value) == (5, 5)
    assert partial.func is add


@pytest.mark.parametrize("kind", [ft.partial, jtu.Partial])
def test_a_partial_of_keywords_and_of_methods(kind):
    """States in keywords and in the module of a bound method are the partial's too."""
    by_keyword = kind(lambda by, model: model(by), model=counter())
    _, new = ps.pure(by_keyword)(1.0)
    assert new.keywords["model"].count.value == 2
    _, new = ps.pure(kind(counter().reset, to=7.0))()
    assert new.func.__self__.count.value == 7


def test_a_partial_without_states_gives_back_argument_0():
    """Arguments filled by a partial that carries nothing are not counted."""
    scaled = ft.partial(lambda scale, model, by: model(scale * by), 10.0)
    out, new = ps.pure(scaled)(counter(), 1.0)
    assert out == new.count.value == 11
    out, new = ps.pure(scaled, argnums=0)(counter(), 1.0)
    assert new.count.value == 11


def test_a_transform_gives_what_its_inner_callable_gives():
    """However many transforms stand between, the carrier is that of the heart."""
    models, every = counter(jnp.arange(3.0)), {0: ps.State}
    shared = ps.vmap2(Counter.__call__, in_axes=(None, 0), state_in_axes=every)
    _, new = ps.pure(shared)(models, jnp.ones(3))
    assert type(new) is Counter
    mapped = ps.vmap2(models, state_in_axes=every)
    _, new = ps.pure(mapped)(jnp.ones(3))
    assert type(new) is Counter
    np.testing.assert_array_equal(new.count.value, [1, 2, 3])
    _, new = ps.pure(ps.vmap2(models.reset, in_axes=None, axis_size=3, state_in_axes=every))()
    np.testing.assert_array_equal(new.count.value, [0, 0, 0])
    _, new = ps.pure(ps.vmap2(jtu.Partial(models), state_in_axes=every))(jnp.ones(3))
    assert type(new) is jtu.Partial


@pytest.mark.parametrize(
    ("argnums", "positions"), [(1, 1), (-1, 1), ((1,), (1,)), ((1, 0), (1, 0)), ((0, -1), (0, 1))]
)
def test_argnums(argnums, positions):
    """Integers count what the caller passes, from either end; a tuple gives a tuple, in its order."""

    def both(a, b):
        for position in (positions,) if isinstance(positions, int) else positions:
            (a, b)[position](1.0)

    args = counter(10.0), counter(20.0)
    _, new = ps.pure(both, argnums=argnums)(*args)
    if isinstance(argnums, int):
        assert new.count.value == 21
    else:
        assert [m.count.value.item() for m in new] == [args[p].count.value.item() + 1 for p in positions]


class Pair(eqx.Module):
    own: Counter

    def feed(self, other, write_own):
        if write_own:
            self.own(1.0)
        other(1.0)


def test_argnums_and_a_bound_module():
    """An integer gives that argument alone; in a tuple the bound module comes first."""
    pair = Pair(counter())
    _, new = ps.pure(pair.feed, argnums=0)(counter(5.0), False)
    assert new.count.value == 6
    _, (new_pair, new) = ps.pure(pair.feed, argnums=(0,))(counter(5.0), False)
    assert new_pair is pair
    assert new.count.value == 6


def test_argnums_and_a_bound_module_that_is_written():
    """The same where the bound module is written too."""
    _, (pair, new) = ps.pure(Pair(counter()).feed, argnums=(0,))(counter(5.0), True)
    assert (type(pair), pair.own.count.value, new.count.value) == (Pair, 2, 6)


def test_decorators():
    """Usable with and without options, on functions and in class bodies."""

    @ps.pure
    def bare(model, by):
        return model(by)

    @ps.pure(argnums=1)
    def second(by, model):
        return model(by)

    assert bare(counter(), 1.0)[1].count.value == 2
    assert second(1.0, counter())[1].count.value == 2
    assert counter().advanced(1.0)[1].count.value == 2
    assert counter().checked(1.0)[1].count.value == 2
    assert Counter.both(counter(), 1.0)[1].count.value == 2
    assert Counter.advanced(counter(), 1.0)[1].count.value == 2


def test_variadic_functions_and_recursion():
    """`*args`, `**kwargs` and functions that call themselves through `pure` work."""

    def total(*models, **by):
        for model, x in zip(models, by.values(), strict=True):
            model(x)

    _, (a, b) = ps.pure(total, argnums=(0, 1))(counter(), counter(), b=2.0, a=1.0)
    assert (a.count.value, b.count.value) == (2, 3)  # keywords arrive sorted, as under `jax.jit`

    def countdown(model, n):
        model(1.0)
        if n > 1:
            _, inner = ps.pure(countdown)(model, n - 1)
            model.count.value = inner.count.value

    assert ps.pure(countdown)(counter(0.0), 5)[1].count.value == 5


def test_classmethods():
    """A class method's class carries no states, so argument 0 is given back."""

    class Made(Counter):
        @classmethod
        def feed(cls, model, by):
            return model(by)

    out, new = ps.pure(Made.feed)(counter(), 1.0)
    assert (out, type(new)) == (2, Counter)


def test_objects_that_are_no_pytrees():
    """A callable object without leaves is a function."""

    class Plain:
        def __call__(self, model, by):
            return model(by)

        def method(self, model, by):
            return model(by)

    assert ps.pure(Plain())(counter(), 1.0)[1].count.value == 2
    assert ps.pure(Plain().method)(counter(), 1.0)[1].count.value == 2


# Untouched ----------------------------------------------------------------------------------------


def test_read_only_functions_give_back_the_very_tree():
    """L1: a tree in which nothing was written comes back as the same object."""
    model = [counter(), {"x": jnp.ones(2), "f": jnp.tanh}]
    _, new = ps.pure(lambda m: m[0].count.value + 1)(model)
    assert new is model
    mapped = ps.vmap2(lambda m, x: m[0].count.value + x, in_axes=(None, 0))
    assert ps.pure(mapped)(model, jnp.ones(2))[1] is model
    assert ps.pure(ps.vmap2(lambda m: m["x"].value))({"x": ps.State(jnp.ones(2))})[1][
        "x"
    ].value.shape == (2,)


def test_unwritten_leaves_are_the_very_leaves():
    """L1: beside a written state everything else is the same object."""
    model = [counter(), counter(), {"x": jnp.ones(2), "f": jnp.tanh, "s": ps.State({"a": jnp.ones(1)})}]
    _, new = ps.pure(lambda m: m[0](1.0))(model)
    for i in (1, 2):
        pairs = zip(jtu.tree_leaves(new[i]), jtu.tree_leaves(model[i]), strict=True)
        assert all(a is b for a, b in pairs)
    assert new[0].step is model[0].step


# Who may call it ----------------------------------------------------------------------------------


def test_transforms_of_jax_take_pure_functions():
    """`jit`, `eval_shape`, `vmap`, `grad`, `checkpoint` and `scan` see an ordinary function."""
    step, model = ps.pure(add), counter()
    assert jax.jit(step)(model, 2.0)[1].count.value == 3
    shapes = jax.eval_shape(step, model, 2.0)
    assert shapes[1].count.value == jax.ShapeDtypeStruct((), "float32")
    _, batched = jax.vmap(step, in_axes=(None, 0))(model, jnp.arange(3.0))
    np.testing.assert_array_equal(batched.count.value, [1, 2, 3])
    grads, new = jax.grad(step, argnums=1, has_aux=True)(model, 2.0)
    assert (grads, new.count.value) == (1, 3)
    assert jax.checkpoint(step)(model, 2.0)[1].count.value == 3
    final, _ = jax.lax.scan(lambda m, x: step(m, x)[::-1], model, jnp.ones(4))
    assert final.count.value == 5


def test_gradients_with_respect_to_a_carrier():
    """Gradients of a module are a module of the same structure."""
    model = counter(2.0)
    grads = jax.grad(lambda m: ps.pure(add)(m, 3.0)[0])(model)
    assert jtu.tree_structure(grads) == jtu.tree_structure(model)
    assert (grads.count.value, grads.step) == (1, 3)


def test_equinox_takes_pure_functions():
    """`filter_jit` and its like take it, static leaves included."""
    model = (counter(), jnp.tanh)
    out, new = eqx.filter_jit(ps.pure(lambda m, x: m[1](m[0](x))))(model, 1.0)
    assert new[0].count.value == 2
    assert new[1] is jnp.tanh
    assert out == jnp.tanh(2.0)
    shapes = eqx.filter_eval_shape(ps.pure(lambda m, x: m[0](x)), model, 1.0)
    assert shapes[1][0].count.value.shape == ()


def test_a_jitted_step_is_traced_once():
    """The updated tree has the structure of the old one, so that a loop compiles once."""
    traces = []

    def step(model, by):
        traces.append(None)
        return model(by)

    compiled, model = jax.jit(ps.pure(step)), counter()
    for _ in range(4):
        _, model = compiled(model, 1.0)
    assert (len(traces), model.count.value) == (1, 5)


# Outputs ------------------------------------------------------------------------------------------


def test_states_in_outputs_are_frozen():
    """States made inside come out immutable, and a live one that was copied stands on its own."""

    def make(model):
        model(1.0)
        return {"new": ps.State(2.0), "copy": model.count.replace(model.count.value)}

    out, new = ps.pure(make)(counter())
    assert (out["copy"].value, new.count.value) == (2, 2)
    for state in ps.states(out).values():
        with pytest.raises(ps.FrozenStateError):
            state.value = 0.0


# Exceptions ---------------------------------------------------------------------------------------


def test_an_exception_leaves_the_inputs():
    """L8: whatever was written before the exception is gone, and the inputs work as before."""
    model = counter()

    def fail(model):
        model(1.0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ps.pure(fail)(model)
    assert model.count.value == 1
    assert ps.pure(add)(model, 1.0)[1].count.value == 2


def test_writes_allows_what_it_names():
    """`writes` lets through what it selects, at any depth and by any filter."""
    for writes in (ps.ShortTermState, ps.filter.PathContains("count"), ..., [None, ps.State]):
        assert ps.pure(add, writes=writes)(counter(), 1.0)[1].count.value == 2
    mapped = ps.vmap2(counter(jnp.arange(2.0)), state_in_axes={0: ps.State})
    _, new = ps.pure(mapped, writes=ps.ShortTermState)(jnp.ones(2))
    np.testing.assert_array_equal(new.count.value, [1, 2])
