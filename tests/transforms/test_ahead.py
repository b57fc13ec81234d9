"""Programs compiled ahead of their calls: what they take and give, and what they refuse."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from laws.test_laws import assert_same
from programs.steps import deleted, nothing_left_over


clean_thread = pytest.fixture(autouse=True)(nothing_left_over)


class Model(eqx.Module):
    weight: ps.ParamState
    hidden: ps.HiddenState
    rng: ps.RandomState
    activation: object = jnp.tanh
    rate: float = 0.5

    def __call__(self, x):
        self.hidden.value = self.activation(self.weight.value * x + self.rate * self.hidden.value)
        return self.hidden.value + self.rng.normal(size=x.shape)


def model(size=3, rate=0.5):
    return Model(
        ps.ParamState(jnp.arange(1.0, size + 1)),
        ps.HiddenState(jnp.zeros(size)),
        ps.RandomState(0),
        rate=rate,
    )


def shapes_of(tree):
    is_one = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if eqx.is_array(x) else x
    return jax.tree.map(is_one, tree)


def step(runs=None):
    """A function of its own, with no programs yet."""

    def step(model, x, *, scale=1.0):
        if runs is not None:
            runs.append(None)
        return scale * model(x)

    return step


X = jnp.ones(3)


# What they take and give ----------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True], ids=["arrays", "shapes"])
def test_it_takes_the_arguments_of_the_function(abstract):
    """Of arrays and of shapes, as a pure function and as a stateful one, traced once and never again."""
    expected = ps.pure(step())(model(), X, scale=2.0)
    given = shapes_of((model(), X)) if abstract else (model(), X)
    for lower, boundary in ((lambda f: ps.pure(f).lower, lambda f: f), (lambda f: f.lower, ps.pure)):
        runs = []
        compiled = lower(ps.jit(step(runs)))(*given, scale=2.0).compile()
        assert_same(boundary(compiled)(model(), X, scale=2.0), expected, exact=False)
        assert len(runs) == 1


def test_what_was_not_written_is_the_very_same_array():
    """As with `ps.jit`: only what was written leaves the compiled call."""
    tree = model()
    compiled = ps.pure(ps.jit(step())).lower(tree, X).compile()
    out, new = compiled(tree, X)
    assert new.weight.value is tree.weight.value
    assert new.activation is jnp.tanh
    out, newer = compiled(new, X)
    assert out.shape == (3,)
    assert not np.array_equal(newer.hidden.value, new.hidden.value)


def test_live_states_bound_modules_and_partials():
    """In a recording, of a bound method, and of a partial: as the function would be called."""
    tree = model()
    expected = ps.pure(ps.jit(Model.__call__))(tree, X)
    compiled = ps.jit(Model.__call__).lower(tree, X).compile()
    with ps.record(tree) as live:
        out = compiled(live, X)
    assert_same((out, ps.freeze(live)), expected)
    assert_same(ps.pure(ps.jit(tree)).lower(X).compile()(X), expected)
    bound = ps.pure(ps.jit(ft.partial(step(), tree))).lower(X).compile()
    out, partial = bound(X)
    assert_same((out, partial.args[0]), expected)


def test_argnums_and_writes_stay():
    """The boundary that was lowered is the boundary that is called."""

    def step(x, tree, other):
        tree.value += x
        other.value -= x

    pure = ps.pure(ps.jit(step), argnums=(1, 2))
    a, b = ps.State(X), ps.State(X)
    _, (new, other) = pure.lower(X, a, b).compile()(X, a, b)
    assert (new.value.tolist(), other.value.tolist()) == ([2.0] * 3, [0.0] * 3)
    narrow = ps.pure(ps.jit(step), argnums=(1, 2), writes=ps.HiddenState).lower(X, a, b).compile()
    with pytest.raises(ps.FrozenStateError, match="`tree` "):
        narrow(X, a, b)


def test_mappings_and_derivatives_inside():
    """Anything goes inside: the program is that of the whole."""
    f = ps.jit(ps.vmap2(Model.__call__, in_axes=(None, 0), state_out_axes={0: ps.HiddenState}))
    xs = jr.normal(jr.key(1), (4, 3))
    with pytest.warns(ps.BatchAxisWarning):
        compiled = ps.pure(f).lower(model(), xs).compile()
    assert_same(compiled(model(), xs), ps.pure(f)(model(), xs))


def test_it_has_what_jax_has():
    """Text, cost and memory of the lowered and of the compiled program; XLA's options."""
    lowered = ps.pure(ps.jit(step())).lower(model(), X)
    assert "tanh" in lowered.as_text()
    assert lowered.cost_analysis() is not None
    compiled = lowered.compile({"xla_embed_ir_in_executable": True})
    inner = ps.jit(step()).lower(model(), X).compile()
    for one in (compiled, inner):
        assert "tanh" in one.as_text()
        assert one.memory_analysis() is not None
    assert compiled(model(), X)[0].shape == (3,)
    with pytest.raises(RuntimeError, match="No such compile option"):
        lowered.compile({"no_such_option": 1})
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = inner.nothing_like_that
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = compiled.nothing_like_that


# What they refuse -----------------------------------------------------------------------------------


REFUSED = {
    "shape": (lambda: (model(4), jnp.ones(4)), r"`model.weight` .* f32\[3\]; got f32\[4\]"),
    "dtype": (lambda: (model(), jnp.ones(3, jnp.int32)), r"`x` of type f32\[3\]; got i32\[3\]"),
    "number": (lambda: (model(rate=0.25), X), r"`model.rate` is 0.25, which is not an array"),
    "structure": (lambda: (model(), (X, X)), r"`x` is now PyTreeDef\(\(\*, \*\)\), and was"),
    "arguments": (lambda: (model(),), "2 by position, but 1 were passed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_signature(case):
    """The difference is named, and the advice helps; inputs are usable, and so is the program."""
    args, message = REFUSED[case]
    compiled = ps.pure(ps.jit(step())).lower(model(), X).compile()
    given = args()
    with pytest.raises(TypeError, match=rf"ps.jit\(step\) was compiled for .*{message}"):
        compiled(*given)
    if case in ("shape", "number"):
        assert ps.pure(ps.jit(step())).lower(*given).compile()(*given)
    assert compiled(model(), X)


def test_another_keyword_another_alias():
    """Keywords count, and so does which places are one state."""

    def pair(a, b, **scales):
        a.value += 1
        return b.value

    one, other = ps.State(X), ps.State(X)
    compiled = ps.pure(ps.jit(pair)).lower(one, other).compile()
    with pytest.raises(TypeError, match=r"\[\] by keyword, but \['scale'\] were passed"):
        compiled(one, other, scale=X)
    with pytest.raises(TypeError, match="other places now share one state"):
        compiled(one, one)
    assert compiled(one, other)[1].value.tolist() == [2.0] * 3


def test_a_write_that_nobody_takes():
    """The error shows the line that takes the tree back, and it runs."""
    compiled = ps.jit(step()).lower(model(), X).compile()
    with pytest.raises(ps.FrozenStateError, match=r"`model\.hidden`") as caught:
        compiled(model(), X)
    names = {"ps": ps, "step": step(), "model": model(), "x": X}
    exec(str(caught.value).splitlines()[-1].strip(), names)
    assert names["model"].hidden.value.any()


def test_under_a_trace():
    """An executable takes arrays; under a trace the function of `ps.jit` is what to call."""
    pure = ps.pure(ps.jit(step()))
    compiled = pure.lower(model(), X).compile()
    with pytest.raises(TypeError, match="Cannot apply JAX transformations to a function lowered"):
        jax.vmap(lambda x: compiled(model(), x)[0])(jnp.ones((2, 3)))
    assert jax.vmap(lambda x: pure(model(), x)[0])(jnp.ones((2, 3))).shape == (2, 3)


def test_a_boundary_of_what_is_not_compiled():
    """`ps.pure(f)` has no program; the advice has one."""
    with pytest.raises(TypeError, match=r"Compile it: ps.pure\(ps.jit\(step\)\).lower"):
        ps.pure(step()).lower(model(), X)
    mapped = ps.vmap2(lambda s: s.value)
    with pytest.raises(TypeError, match=r"ps.pure\(ps.jit\(ps.vmap2\(f\)\)\).lower"):
        ps.pure(mapped).lower(ps.State(X))
    assert ps.pure(ps.jit(mapped)).lower(ps.State(X)).compile()(ps.State(X))
    assert jax.jit(ps.pure(mapped)).lower(ps.State(X)).compile()(ps.State(X))


def test_a_captured_state():
    """It is refused when the program is lowered."""
    other = ps.State(X)
    with pytest.raises(ps.CapturedStateError, match=r"ps.jit\(f\) reads the state `State\(f32\[3\]\)`"):
        ps.jit(lambda x: x + other.value).lower(X)


# Donation -------------------------------------------------------------------------------------------


def test_donation_by_filter():
    """Only selected, overwritten buffers are given up, whether `pure` or a recording takes the tree."""
    for make in (
        lambda f: ps.pure(f).lower(model(), X).compile(),
        lambda f: ps.pure(f.lower(model(), X).compile()),
    ):
        compiled = make(ps.jit(step(), donate=ps.HiddenState))
        tree = model()
        _, new = compiled(tree, X)
        assert (deleted(tree.hidden), deleted(tree.weight)) == ([True], [False])
        with pytest.raises(ps.StateError, match=r"`model.hidden` was donated to an earlier call"):
            compiled(tree, X)
        compiled(new, X)


def test_a_state_that_is_written_and_never_read():
    """JAX drops such an operand; its buffer is given up all the same. One buffer twice is copied."""

    def fill(tree, x):
        tree["a"].value = x

    tree = {"a": ps.State(jnp.zeros(3)), "b": ps.State(X)}
    compiled = ps.pure(ps.jit(fill, donate=...)).lower(tree, X).compile()
    _, new = compiled(tree, X)
    assert (deleted(tree["a"]), deleted(tree["b"])) == ([True], [False])
    assert X.tolist() == [1.0] * 3
    shared = {"a": ps.State(X), "b": ps.State(X)}
    _, newer = compiled(shared, new["b"].value)
    assert newer["b"].value is X
    assert X.tolist() == [1.0] * 3


def test_donation_by_argument():
    """Lowered with its boundary, only overwritten arrays are given up; by itself it refuses one."""
    jitted = ps.jit(step(), donate_argnums=0)
    tree = model()
    _, new = ps.pure(jitted).lower(tree, X).compile()(tree, X)
    assert (deleted(tree.hidden), deleted(tree.weight)) == ([True], [False])
    alone = ps.jit(step(), donate_argnums=0).lower(new, X).compile()
    with pytest.raises(ps.StateError, match=r"Lower it as it is called: ps.pure\(ps.jit\(step, donate_"):
        ps.pure(alone)(new, X)
    with ps.record(new) as live, pytest.raises(ps.StateError, match="was lowered by itself"):
        alone(live, X)
    assert (deleted(new.hidden), deleted(new.weight)) == ([False], [False])
    reads = ps.jit(lambda model, x: model.weight.value * x, donate_argnums=0).lower(new, X).compile()
    np.testing.assert_array_equal(reads(new, X), [1.0, 2.0, 3.0])
    assert deleted(new.weight) == [True]
