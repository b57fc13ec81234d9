"""Programs of trees that pstate gave back: the right one, whatever changed since the last call."""

import functools as ft
import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pstate as ps
from calls.known_trees import (
    WAYS,
    Layer,
    copied,
    every_way,
    layer,
    model,
    remembered,
    same,
    step,
)
from pstate._trees.known import known


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("transform", [ps.jit, ft.partial(ps.vmap2, in_axes=None, axis_size=2)])
def test_one_run_for_each_set_of_shapes(transform, packed):
    """For other shapes, and after caches were cleared, the body runs once more, as under `jax.jit`."""
    runs: list[None] = []

    def body(tree, x):
        runs.append(None)
        tree.count.value = tree.count.value + x.sum()

    tree: Any = layer(1.0)
    pure, tree = ps.pure(transform(body)), ps.pack(tree) if packed else tree
    for n, expected in ((2, 1), (2, 1), (3, 2), (2, 2), (4, 3), (3, 3), (0, 3)):
        if n == 0:
            jax.clear_caches()
        _, tree = pure(tree, jnp.ones(n or 2))
        assert len(runs) == expected + (n == 0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("transform", [ps.jit, ft.partial(ps.vmap2, in_axes=None, axis_size=2)])
def test_static_parts_of_other_arguments(packed, transform):
    """Arguments whose static parts are equal, but of other types, have other programs."""

    class Config(eqx.Module):
        scale: Any = eqx.field(static=True)

    def scaled(tree, config):
        tree.count.value += 1
        return jnp.asarray(3) * config.scale

    tree = layer(1.0)
    pure = ps.pure(transform(scaled))
    tree = ps.pack(tree) if packed else tree
    for _ in range(2):
        for scale in (2, 2.0, True, 1.0, 0.0, -0.0):
            out, tree = pure(tree, Config(scale))
            expected = jnp.asarray(3) * scale
            assert out.dtype == expected.dtype
            assert bool(jnp.all(out == expected))
            assert bool(jnp.all(jnp.signbit(out * 1.0) == jnp.signbit(expected * 1.0)))


scale = 1.0


def helper(x):
    return x * scale


def _rebind_global(_: Any) -> None:
    global scale
    scale += 1


def _rebind_default(fn: Any) -> None:
    fn.__defaults__ = (fn.__defaults__[0] + 1,)


def _rebind_keyword(fn: Any) -> None:
    fn.__kwdefaults__["more"] += 1


def _rebind_cell(fn: Any) -> None:
    cell = fn.__closure__[fn.__code__.co_freevars.index("held")]
    cell.cell_contents += 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("transform", [ps.jit, ft.partial(ps.vmap2, in_axes=None, axis_size=2)])
@pytest.mark.parametrize("rebind", [_rebind_global, _rebind_default, _rebind_keyword, _rebind_cell])
def test_rebound_names(rebind, transform, packed):
    """A name that is bound to something else between two calls is noticed."""
    held = 1.0

    def body(tree, x, by=1.0, *, more=1.0):
        tree.count.value += helper(x) * by * more * held

    def by_hand(x):
        defaults, keywords = body.__defaults__, body.__kwdefaults__
        assert defaults
        assert keywords
        return x * scale * defaults[0] * keywords["more"] * held

    tree: Any = layer(1.0)
    pure, tree = ps.pure(transform(body)), ps.pack(tree) if packed else tree
    expected = 0.0
    for _ in range(4):
        _, tree = pure(tree, jnp.asarray(1.0))
        expected += by_hand(1.0)
        assert (tree.unpack() if packed else tree).count.value == expected
        rebind(body)


@every_way
def test_numbers_and_keywords(way):
    """Calls that do not fit the short way take the usual one, and go on with its tree."""
    pure, tree = remembered(way)
    _, tree = pure(tree, 1.0)
    _, tree = pure(tree, np.float32(1.0))
    if not isinstance(way, ps.StatefulMapping):  # which maps keyword arguments
        _, tree = pure(tree, x=jnp.asarray(1.0))
    calls = 3 if isinstance(way, ps.StatefulMapping) else 4
    np.testing.assert_allclose(tree.layers[0].count.value, calls)
    with pytest.raises(TypeError):
        pure(tree)


@every_way
def test_other_shapes(way):
    """A remembered tree runs with arguments of other shapes."""
    pure, tree = remembered(way)
    with jax.numpy_dtype_promotion("standard"):
        for n in (1, 2, 3, 2):
            _, new = pure(tree, jnp.ones(n))
            assert new.layers[0].count.value.shape == (n,)
    _, new = pure(new, jnp.ones(2))
    assert new.layers[0].count.value.tolist() == [3, 3]


def test_two_trees_and_one_twice():
    """Aliases are found among remembered arguments too."""

    def both(a, b):
        a.count.value += 1
        b.count.value += 2

    pure = ps.pure(ps.jit(both), argnums=(0, 1))
    _, (a, b) = pure(layer(1.0), layer(1.0))
    assert None not in (known(a), known(b))
    _, (a, b) = pure(a, b)
    assert (a.count.value, b.count.value) == (2, 4)
    with pytest.raises(ps.AliasedStateError, match=r"`a\.count` and `b\.count`"):
        pure(a, a)
    with pytest.raises(ps.AliasedStateError):
        pure(a, Layer(ps.ParamState(1.0), a.count, jnp.tanh))


@every_way
def test_errors_are_those_of_the_usual_way(way):
    """A refused write names the state and its path, whether or not the tree is remembered."""

    def bad(model, x):
        model.layers[1].weight.value = jnp.ones(3)
        return model.layers[1].weight

    wrapped = ps.jit(bad) if way is not step else bad
    _, tree = remembered(WAYS["jit"])
    messages = []
    for one in (tree, copied(tree)):
        for pure in (ps.pure(wrapped), ps.pure(wrapped, writes=ps.ShortTermState)):
            with pytest.raises(ps.StateError) as caught:
                pure(one, jnp.asarray(1.0))
            messages.append(str(caught.value))
    assert messages[:2] == messages[2:]
    assert "layers[1].weight" in messages[0]


def test_donated_buffers_are_named():
    """A tree whose buffers were given up is refused with the place of the first one."""

    def add(layer, x):
        layer.count.value = layer.count.value + layer.weight.value + x

    pure = ps.pure(ps.jit(add, donate=ps.ShortTermState))
    first = Layer(ps.ParamState(jnp.ones(4)), ps.ShortTermState(jnp.ones(4)), jnp.tanh)
    _, second = pure(first, jnp.ones(4))
    _, new = pure(second, jnp.ones(4))
    assert new.count.value.tolist() == [5, 5, 5, 5]
    for one in (pure, ps.pure(ps.jit(add))):
        with pytest.raises(ps.StateError, match=r"`layer\.count"):
            one(second, jnp.ones(4))


def test_captured_states():
    """A body that reads another tree by closure is refused, remembered or not."""
    _, other = remembered(WAYS["jit"])

    def body(model, x):
        model.layers[0].count.value += other.layers[0].count.value + x

    pure, tree = ps.pure(ps.jit(body)), model()
    for _ in range(2):
        with pytest.raises(ps.CapturedStateError):
            pure(tree, jnp.asarray(1.0))
        _, tree = remembered(WAYS["jit"])
    mapped = ps.pure(ps.vmap2(body, in_axes=None, axis_size=2))
    with pytest.warns(ps.CapturedStateWarning):
        _, tree = mapped(tree, jnp.asarray(1.0))
    for _ in range(2):
        tree = mapped(tree, jnp.asarray(1.0))[1]
    np.testing.assert_allclose(tree.layers[0].count.value, 1 + 3 * 2)


# Traces, threads and contexts -----------------------------------------------------------------------


@every_way
def test_inside_transforms_of_jax(way):
    """A remembered tree is used under traces: closed over, passed in, and differentiated."""
    pure, tree = remembered(way)
    expected, new = pure(copied(tree), jnp.asarray(2.0))
    with jax.checking_leaks():
        out, counts = jax.jit(lambda x: (lambda o, t: (o, t.layers[0].count.value))(*pure(tree, x)))(2.0)
        arrays, static = eqx.partition(tree, eqx.is_array)
        passed = jax.jit(lambda a, x: pure(eqx.combine(a, static), x)[0])(arrays, jnp.asarray(2.0))
        grads = jax.grad(lambda x: jnp.sum(pure(tree, x)[0]))(2.0)
        lanes = jax.vmap(lambda x: pure(tree, x)[0])(jnp.asarray([2.0, 3.0]))
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_allclose(counts, new.layers[0].count.value)
    np.testing.assert_allclose(passed, expected, rtol=1e-6)
    np.testing.assert_allclose(grads, np.size(expected))
    np.testing.assert_allclose(lanes[0], expected, rtol=1e-6)

    @jax.jit
    def inside(x):
        tree_x = tree
        for _ in range(3):
            _, tree_x = pure(tree_x, x)
        return tree_x.layers[0].count.value

    twin = tree
    for _ in range(3):
        _, twin = pure(copied(twin), jnp.asarray(2.0))
    np.testing.assert_allclose(inside(2.0), twin.layers[0].count.value)


def test_constants_inside_a_trace():
    """Nothing of the call depends on the trace, but the trace is running: no tracer is remembered."""
    pure, tree = remembered(WAYS["jit"])

    @jax.jit
    def inside(x):
        _, new = pure(tree, jnp.ones(()))
        _, new = pure(new, jnp.ones(()))
        return new.layers[0].count.value + x

    assert inside(1.0) == 4
    _, after = pure(tree, jnp.asarray(1.0))
    assert after.layers[0].count.value == 2


@every_way
def test_inside_a_recording(way):
    """A live copy of a remembered tree takes writes; the tree itself does not."""
    pure, tree = remembered(way)
    with ps.record(tree) as live:
        live.layers[0].count.value = live.layers[0].count.value + 5
        if way is not step and not isinstance(way, ps.StatefulMapping):
            way(live, jnp.asarray(1.0))
    new = ps.freeze(live)
    assert same(pure(new, jnp.asarray(1.0)), pure(copied(new), jnp.asarray(1.0)))
    assert known(tree) is not None


@every_way
def test_without_jit(way):
    """`jax.disable_jit()` and `jax.enable_x64` are seen by calls with a remembered tree."""
    pure, tree = remembered(way)
    expected = pure(copied(tree), jnp.asarray(1.0))
    with jax.disable_jit():
        got = pure(tree, jnp.asarray(1.0))
        again = pure(got[1], jnp.asarray(1.0))
    assert same(got, expected)
    assert same(again, pure(copied(expected[1]), jnp.asarray(1.0)))


@pytest.mark.parametrize("transform", [ps.jit, ft.partial(ps.vmap2, in_axes=None, axis_size=2)])
def test_a_running_function_is_told_of_reads(transform):
    """A tree that is threaded and also passed on by closure is refused, remembered or not."""

    def outer(model, x):
        out, _ = ps.pure(ps.jit(lambda t, y: t.layers[0].count.value + y))(closed, x)
        model.layers[0].count.value += x + out

    pure = ps.pure(transform(outer))
    _, tree = remembered(WAYS["jit"])
    for one in (tree, copied(tree)):
        closed = one
        for _ in range(2):
            with pytest.raises(ps.CapturedStateError, match="also read"):
                pure(one, jnp.asarray(1.0))
        with pytest.raises(ps.CapturedStateError, match="also read"):
            pure(one, jnp.ones(2))  # the same program, traced for other shapes


def test_threads():
    """Threads that pass on trees of their own do not mix them up."""
    pure = ps.pure(WAYS["jit"])
    results: dict[int, float] = {}

    def work(number: int) -> None:
        tree = model()
        for _ in range(30):
            _, tree = pure(tree, jnp.asarray(float(number)))
        results[number] = float(tree.layers[2].count.value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: 30.0 * n for n in range(6)}


@every_way
def test_values_of_other_structures(way):
    """A state that gets a value of another structure, or none, comes back with it."""

    def change(model, x):
        state = model.layers[0].count
        state.value = {"a": x, "b": [x]} if isinstance(state.value, jax.Array) else x

    wrapped = ps.jit(change) if way is not step else change
    pure, tree = ps.pure(wrapped), model()
    for i in range(4):
        _, tree = pure(tree, jnp.asarray(1.0))
        assert isinstance(tree.layers[0].count.value, dict if i % 2 == 0 else jax.Array)
        assert same(tree, copied(tree))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_other_functions_go_on_with_it(n):
    """A tree that one function gave back is passed to others, which write other states."""

    def nth(model, x):
        model.layers[n - 1].weight.value += x

    one, other = ps.pure(WAYS["jit"]), ps.pure(ps.jit(nth))
    tree, twin = model(), model()
    for _ in range(3):
        for pure in (one, other):
            _, tree = pure(tree, jnp.asarray(1.0))
            _, twin = pure(copied(twin), jnp.asarray(1.0))
            assert same(tree, twin)
    assert [layer.weight.value.item() for layer in tree.layers] == [
        i + 3 * (i == n - 1) for i in range(3)
    ]
