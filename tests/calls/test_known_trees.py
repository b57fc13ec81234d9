"""Trees that pstate gave back, passed on: remembered, checked, and forgotten with them."""

import functools as ft
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from pstate._trees.known import _table, known


class Norm(eqx.Module):
    """Without states, and with lists and dicts."""

    scale: Any
    options: dict[str, Any]
    history: list[Any]


class Layer(eqx.Module):
    weight: ps.ParamState
    count: ps.ShortTermState
    act: Callable[..., Any]


class Model(eqx.Module):
    layers: list[Any]
    norm: Norm
    extra: dict[str, Any]
    pair: tuple[Any, ...]
    name: str = eqx.field(static=True, default="model")


def layer(weight: float, act: Any = jnp.tanh) -> Layer:
    return Layer(ps.ParamState(weight), ps.ShortTermState(0.0), act)


def model() -> Model:
    return Model(
        [layer(float(i)) for i in range(3)],
        Norm(jnp.ones(2), {"eps": 1.0}, [jnp.zeros(1)]),
        {"shift": jnp.asarray(1.0), "more": [jnp.asarray(2.0)]},
        (jnp.asarray(3.0), [jnp.asarray(4.0)]),
    )


RUNS: list[None] = []


def step(model, x):
    RUNS.append(None)
    for layer in model.layers:
        layer.count.value += x
    parts = [model.norm.scale, *model.norm.options.values(), *model.norm.history]
    parts += [*model.extra.values(), *model.pair, *(layer.weight.value for layer in model.layers)]
    return sum(jnp.sum(jnp.asarray(leaf)) for leaf in jtu.tree_leaves(parts)) + x


WAYS = {
    "jit": ps.jit(step),
    "vmap2": ps.vmap2(step, in_axes=None, axis_size=2),
    "checkpoint": ps.checkpoint(step),
    "none": step,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def remembered(way: Any, tree: Any = None) -> tuple[Any, Any]:
    """A pure function of that way, and a tree that it gave back."""
    pure = ps.pure(way)
    _, tree = pure(model() if tree is None else tree, jnp.asarray(1.0))
    assert known(tree) is not None
    return pure, tree


def copied(tree: Any) -> Any:
    """The same tree, which nobody remembers."""
    tree = jtu.tree_map(lambda x: x, tree)
    assert known(tree) is None
    return tree


def same(a: Any, b: Any) -> bool:
    flat, flat_b = jtu.tree_flatten(a), jtu.tree_flatten(b)
    equal = lambda x, y: x is y if callable(x) else np.array_equal(x, y)
    return flat[1] == flat_b[1] and all(map(equal, flat[0], flat_b[0]))


def _set(mapping: Any, key: Any, value: Any) -> None:
    mapping[key] = value


EDITS: dict[str, Callable[[Model], Any]] = {
    "replaced in a list": lambda m: _set(
        m.layers, 1, Layer(ps.ParamState(7.0), ps.ShortTermState(1.0), jnp.tanh)
    ),
    "an equal one in a list": lambda m: _set(m.layers, 1, jtu.tree_map(lambda x: x, m.layers[1])),
    "appended": lambda m: m.layers.append(
        m.layers[0].__class__(ps.ParamState(9.0), ps.ShortTermState(0.0), jnp.sin)
    ),
    "removed": lambda m: m.layers.pop(),
    "reversed": lambda m: m.layers.reverse(),
    "set in a dict": lambda m: _set(m.extra, "shift", jnp.asarray(5.0)),
    "added to a dict": lambda m: _set(m.extra, "new", jnp.asarray(5.0)),
    "removed from a dict": lambda m: m.extra.pop("shift"),
    "renamed in a dict": lambda m: _set(m.extra, "renamed", m.extra.pop("shift")),
    "a list in a dict": lambda m: _set(m.extra["more"], 0, jnp.asarray(6.0)),
    "a list in a tuple": lambda m: m.pair[1].append(jnp.asarray(6.0)),
    "a dict in a module without states": lambda m: _set(m.norm.options, "eps", 2.0),
    "a number of another type": lambda m: _set(m.norm.options, "eps", 1),
    "a list in a module without states": lambda m: m.norm.history.append(jnp.ones(1)),
    "emptied": lambda m: m.extra.clear(),
}


@every_way
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_between_calls(way, edit):
    """What is edited in place between two calls is seen by the next one."""
    pure, tree = remembered(way)
    edit(tree)
    got, expected = pure(tree, jnp.asarray(1.0)), pure(copied(tree), jnp.asarray(1.0))
    assert same(got, expected)
    assert same(pure(got[1], jnp.asarray(1.0)), pure(copied(got[1]), jnp.asarray(1.0)))


@every_way
def test_edits_of_one_tree_do_not_reach_the_other(way):
    """Lists and dicts outside unwritten modules belong to one tree."""
    pure, tree = remembered(way)
    _, new = pure(tree, jnp.asarray(1.0))
    for a, b in ((tree.layers, new.layers), (tree.extra, new.extra), (tree.pair[1], new.pair[1])):
        assert a is not b
    assert new.norm is tree.norm
    new.extra["shift"] = jnp.asarray(50.0)
    assert tree.extra["shift"] == 1


def test_edits_of_arrays_in_place():
    """A NumPy array is read at each call."""

    class Holder(eqx.Module):
        n: ps.State
        data: np.ndarray

    def add(holder, x):
        holder.n.value += holder.data.sum() + x

    for way in (ps.jit(add), ps.vmap2(add, in_axes=None, axis_size=2)):
        data = np.ones(2, np.float32)
        _, holder = ps.pure(way)(Holder(ps.State(0.0), data), jnp.asarray(0.0))
        data[:] = 10
        _, holder = ps.pure(way)(holder, jnp.asarray(0.0))
        assert holder.n.value == 22


@every_way
def test_one_trace(way):
    """A remembered tree runs the program that was compiled for the first one."""
    if way is step:
        return
    jax.clear_caches()
    fresh = _fresh(way)
    pure, tree = ps.pure(fresh), model()
    before = len(RUNS)
    _, tree = pure(tree, jnp.asarray(1.0))
    once = len(RUNS) - before
    for _ in range(3):
        _, tree = pure(tree, jnp.asarray(1.0))
    again = 3 * once if isinstance(way, type(WAYS["checkpoint"])) else 0
    assert once == 1
    assert len(RUNS) - before == once + again


def _fresh(way: Any) -> Any:
    anew = lambda model, x: step(model, x)
    if isinstance(way, ps.StatefulMapping):
        return ps.vmap2(anew, in_axes=None, axis_size=2)
    return ps.jit(anew) if isinstance(way, type(WAYS["jit"])) else ps.checkpoint(anew)


@pytest.mark.parametrize("way", [*WAYS.values(), ps.jit(lambda model, x: x)], ids=[*WAYS, "read only"])
def test_gone_with_the_tree(way):
    """What is remembered is freed as soon as the tree is, without the garbage collector."""
    _, tree = remembered(way)
    gc.collect()
    gc.disable()
    try:
        key, module = id(tree), weakref.ref(tree)
        arrays = [weakref.ref(leaf) for leaf in jtu.tree_leaves(tree.layers) if eqx.is_array(leaf)]
        assert key in _table
        del tree
        assert module() is None
        assert key not in _table
        assert all(array() is None for array in arrays)
    finally:
        gc.enable()


def test_a_loop_remembers_one_tree():
    """Passing a tree on leaves nothing behind."""
    pure, tree = remembered(WAYS["jit"])
    gc.collect()
    size, arrays = len(_table), len(jax.live_arrays())
    for _ in range(50):
        _, tree = pure(tree, jnp.asarray(1.0))
    assert len(_table) <= size
    assert len(jax.live_arrays()) <= arrays + 1


@pytest.mark.parametrize("x", [np.float32(1), np.ones((), np.float32), jnp.ones(())], ids=str)
@pytest.mark.parametrize("transform", [ps.jit, ft.partial(ps.vmap2, in_axes=(None, None), axis_size=2)])
def test_each_call_remembers(transform, x):
    """Whatever the other arguments are, and whatever was written last, the tree is known."""

    class Noisy(eqx.Module):
        count: ps.ShortTermState
        rng: ps.RandomState

    def draw(noisy, x):
        noisy.rng.split_key()
        noisy.count.value += x

    pure, noisy = ps.pure(transform(draw)), Noisy(ps.ShortTermState(0.0), ps.RandomState(0))
    for i in range(4):
        assert (known(noisy) is not None) == (i > 0)
        _, noisy = pure(noisy, x)
    assert noisy.count.value == 4


@every_way
def test_read_only_trees_come_back_as_they_are(way):
    """A tree in which nothing was written is remembered too, and seen again if it is edited."""
    read = lambda model, x: model.extra["shift"] + x
    pure = ps.pure(ps.jit(read)) if way is not step else ps.pure(read)
    tree = model()
    for _ in range(3):
        out, new = pure(tree, jnp.asarray(1.0))
        assert new is tree
        assert out == 2
    tree.extra["shift"] = jnp.asarray(3.0)
    assert pure(tree, jnp.asarray(1.0))[0] == 4


class _Box:
    """A node with an attribute."""

    def __init__(self, content):
        self.content = content


class _Labelled(tuple):
    """A tuple with an attribute."""

    content: Any

    @classmethod
    def of(cls, content):
        labelled = cls()
        labelled.content = content
        return labelled


for _node, _make in ((_Box, _Box), (_Labelled, _Labelled.of)):
    jtu.register_pytree_node(
        _node, lambda node: ((node.content,), None), lambda _, c, make=_make: make(*c)
    )


@pytest.mark.parametrize("make", [_Box, _Labelled.of])
def test_other_nodes_are_not_remembered(make):
    """A node that may change in other ways is taken apart each time."""

    class Holder(eqx.Module):
        n: ps.State
        box: Any

    def add(holder, x):
        holder.n.value += holder.box.content + x

    pure = ps.pure(ps.jit(add))
    _, holder = pure(Holder(ps.State(0.0), make(jnp.asarray(1.0))), jnp.asarray(0.0))
    assert known(holder) is None
    holder.box.content = jnp.asarray(5.0)
    assert pure(holder, jnp.asarray(0.0))[1].n.value == 6


def test_cached_properties_do_not_go_stale():
    """What a module worked out for itself is not handed to its successor."""

    class Lazy(eqx.Module):
        n: ps.State

        @ft.cached_property
        def twice(self):
            return 2 * self.n.value

    def add(lazy, x):
        lazy.n.value += x
        return lazy.twice

    pure = ps.pure(ps.jit(add))
    lazy = Lazy(ps.State(1.0))
    for expected in (4.0, 6.0, 8.0):
        out, lazy = pure(lazy, jnp.asarray(1.0))
        assert out == expected == lazy.twice


# Programs -------------------------------------------------------------------------------------------


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
    closed = model()
    pure(model(), jnp.asarray(1.0))
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
