"""Recordings: `record`, `freeze`, `written`, and copies of live trees."""

import concurrent.futures

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


class Counter(eqx.Module):
    count: ps.ShortTermState
    limit: jax.Array

    def __call__(self, by):
        self.count.value = self.count.value + by


def counter(value=0.0):
    return Counter(ps.ShortTermState(value), jnp.float32(9))


# Writing ------------------------------------------------------------------------------------------


def test_writes_come_back_and_the_original_stays():
    """A write is seen by later reads and by `freeze`, and never by the tree that was recorded."""
    tree = counter()
    with ps.record(tree) as live:
        live(1.0)
        live.count.value += 2
        assert live.count.value == 3
    frozen = ps.freeze(live)
    assert (frozen.count.value, tree.count.value) == (3, 0)
    assert (type(frozen), type(frozen.count)) == (Counter, ps.ShortTermState)
    assert frozen.limit is tree.limit


def test_freeze_inside_gives_the_moment():
    """Each `freeze` is a snapshot, inside the context and after it."""
    with ps.record(counter()) as live:
        first = ps.freeze(live)
        live(1.0)
        second = ps.freeze(live)
        live(1.0)
    assert [tree.count.value.item() for tree in (first, second, ps.freeze(live))] == [0, 1, 2]
    assert ps.freeze(ps.freeze(live)).count.value == 2


def test_an_unwritten_tree_is_the_very_tree():
    """L1: where nothing was written `freeze` gives back the object that was recorded."""
    tree = [counter(), {"a": ps.State({"b": jnp.ones(2)})}, jnp.tanh]
    with ps.record(tree) as live:
        live[0].count.value + live[1]["a"].value["b"]
    assert ps.freeze(live) is tree
    assert ps.written(live) == {}


def test_unwritten_leaves_are_the_very_leaves():
    """L1: a write to one state leaves every other array as the same object."""
    tree = [counter(), counter()]
    with ps.record(tree) as live:
        live[0](1.0)
    assert ps.freeze(live)[1].count.value is tree[1].count.value


def test_written():
    """`written` lists paths and newest values, in the order of the tree."""
    with ps.record({"b": counter(), "a": ps.State(1), "c": ps.State(1)}) as live:
        live["b"](1.0)
        live["a"].value = 5
        live["a"].value = 6
        assert {path: v.item() for path, v in ps.written(live).items()} == {
            ("a",): 6,
            ("b", "count"): 1,
        }
    assert list(ps.written(live)) == [("a",), ("b", "count")]


def test_empty_states_fill_and_empty():
    """A declared state may be filled in a recording, and a filled one emptied."""
    with ps.record([ps.HiddenState(), ps.HiddenState(1.0)]) as live:
        live[0].value = {"a": 1.0}
        live[1].value = None
    filled, emptied = ps.freeze(live)
    assert filled.value["a"] == 1
    assert jtu.tree_leaves(emptied) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64", "int8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_writes_of_any_dtype_and_shape(dtype, shape):
    """A write may change shape and dtype; nothing is cast."""
    with ps.record(ps.State(0.0)) as live:
        live.value = jnp.ones(shape, dtype)
    assert (ps.freeze(live).value.dtype, ps.freeze(live).value.shape) == (dtype, shape)


# Nesting ------------------------------------------------------------------------------------------


def test_nested_recordings_are_isolated():
    """A recording of a live tree starts from its values and does not write into it."""
    with ps.record(counter(1.0)) as outer:
        outer(1.0)
        with ps.record(outer) as inner:
            inner(10.0)
            assert (inner.count.value, outer.count.value) == (12, 2)
            outer(1.0)
            assert (inner.count.value, outer.count.value) == (12, 3)
        assert ps.written(outer).keys() == {("count",)}
    assert (ps.freeze(inner).count.value, ps.freeze(outer).count.value) == (12, 3)


def test_interleaved_recordings():
    """Recordings held by generators may be open at once and end in any order."""

    def count(tree):
        with ps.record(tree) as live:
            for _ in range(3):
                live(1.0)
                yield live.count.value.item()
        yield ps.freeze(live).count.value.item()

    steps = list(zip(count(counter()), count(counter(10.0)), strict=True))
    assert steps == [(1, 11), (2, 12), (3, 13), (3, 13)]


def test_one_record_object_entered_twice():
    """Each entry is a recording of its own that ends with its own block."""
    context = ps.record(counter())
    with context as first, context as second:
        second(1.0)
    with pytest.raises(ps.FrozenStateError):
        first(1.0)


def test_an_exception_passes_and_loses_nothing():
    """The exception comes through, the original is untouched, and the next recording works."""
    tree, lives = counter(), []

    def fail():
        with ps.record(tree) as live:
            lives.append(live)
            live(1.0)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert (tree.count.value, ps.freeze(lives[0]).count.value) == (0, 1)
    with ps.record(tree) as live:
        live(2.0)
    assert ps.freeze(live).count.value == 2


# Copies of live trees -----------------------------------------------------------------------------


def test_identity_copies_are_live():
    """A copy with the same child objects shares the cells, both ways."""
    with ps.record(counter()) as live:
        twin = jtu.tree_map(lambda x: x, live)
        twin(1.0)
        live(1.0)
        assert twin.count.value == live.count.value == 2
    assert ps.freeze(live).count.value == 2


def test_tree_at_elsewhere_keeps_states_live():
    """`eqx.tree_at` on another leaf leaves the states live."""
    with ps.record(counter()) as live:
        eqx.tree_at(lambda m: m.limit, live, jnp.float32(1))(5.0)
    assert ps.freeze(live).count.value == 5


def test_partition_and_combine_keep_states_live():
    """The usual Equinox dance inside model code ends in a tree that takes writes."""
    with ps.record([counter(), counter()]) as live:
        dynamic, static = eqx.partition(live, eqx.is_array)
        for one in eqx.combine(dynamic, static):
            one(2.0)
        left, right = eqx.partition(live, [True, False])
        eqx.combine(left, right)[1](1.0)
    assert [one.count.value.item() for one in ps.freeze(live)] == [2, 3]


def test_shared_keeps_states_live():
    """`eqx.nn.Shared` ties two places, and a write to either is seen at both."""
    tied = eqx.nn.Shared([counter(), counter()], lambda m: m[1].count, lambda m: m[0].count)
    with ps.record(tied) as live:
        first, second = live()
        second(3.0)
        assert first.count.value == 3
    first, second = ps.freeze(live)()
    assert first.count.value == second.count.value == 3


def test_shared_keeps_containers_live():
    """Sharing works for states that hold containers of the same array objects as well."""
    pair = [ps.State({"a": jnp.zeros(2)}), ps.State({"a": jnp.zeros(2)})]
    with ps.record(eqx.nn.Shared(pair, lambda m: m[1], lambda m: m[0])) as live:
        live()[1].value = {"a": jnp.ones(2)}
    np.testing.assert_array_equal(ps.freeze(live)()[0].value["a"], [1, 1])


def test_changed_copies_are_frozen():
    """A copy with other children is a tree of its own: readable, not writable, and no danger."""
    with ps.record(counter(1.0)) as live:
        changed = jtu.tree_map(lambda x: x * 2, live)
        assert changed.count.value == 2
        with pytest.raises(ps.FrozenStateError):
            changed(1.0)
        _, changed = ps.pure(Counter.__call__)(changed, 1.0)
        assert (changed.count.value, live.count.value) == (3, 1)
    assert ps.freeze(live).count.value == 1


def test_a_copy_goes_stale_when_the_original_is_written():
    """A copy made before a write shares its cell; flattening it gives the newest value."""
    with ps.record(counter()) as live:
        twin = jtu.tree_map(lambda x: x, live)
        live(1.0)
        [count, _] = jtu.tree_leaves(twin)
        assert count is live.count.value


# Containers ---------------------------------------------------------------------------------------


def test_containers_are_written_as_copies():
    """Editing a container after it was written changes nothing silently."""
    with ps.record(ps.State({"a": jnp.zeros(2)})) as live:
        value = {"a": jnp.ones(2)}
        live.value = value
        value["a"] = jnp.full(2, 7.0)
        np.testing.assert_array_equal(live.value["a"], [1, 1])


def test_an_edited_container_may_be_written_back():
    """Read, edit, write back: the way to do it, any number of times."""
    with ps.record(ps.State({"a": [1, 2]})) as live:
        for _ in range(3):
            value = live.value
            value["a"].append(0)
            live.value = value
    assert len(ps.freeze(live).value["a"]) == 5


def test_a_container_edited_and_replaced():
    """An edited copy that served to make the written value is no lost edit."""
    with ps.record(ps.State({"a": jnp.zeros(2)})) as live:
        value = live.value
        value["a"] = value["a"] + 1
        live.value = {**value, "b": jnp.ones(1)}
    assert set(ps.freeze(live).value) == {"a", "b"}


def test_what_written_gives_is_a_copy():
    """Editing what `written` gave leads into no state."""
    with ps.record(ps.State({"a": jnp.zeros(2)})) as live:
        live.value = {"a": jnp.ones(2)}
        ps.written(live)[()]["a"] = jnp.full(2, 7.0)
        np.testing.assert_array_equal(live.value["a"], [1, 1])


# Traces and threads -------------------------------------------------------------------------------


def test_a_recording_inside_each_transform():
    """A recording belongs to the trace that opened it, whichever that is."""

    def body(x):
        with ps.record(counter()) as live:
            live(x)
            live(x)
        return ps.freeze(live).count.value

    assert jax.jit(body)(1.0) == 2
    assert jax.grad(body)(1.0) == 2
    np.testing.assert_array_equal(jax.vmap(body)(jnp.arange(3.0)), [0, 2, 4])
    assert jax.lax.scan(lambda c, x: (c + body(x), None), 0.0, jnp.ones(3))[0] == 6
    assert jax.jvp(body, (1.0,), (1.0,))[1] == 2


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.vmap(f)(jnp.ones(2)),
        lambda f: jax.jit(f)(1.0),
        lambda f: jax.grad(lambda x: f(x) or x)(1.0),
        lambda f: jax.lax.scan(lambda c, x: (c, f(x)), 0.0, jnp.ones(2)),
        lambda f: jax.lax.cond(True, f, lambda x: None, 1.0),
        lambda f: jax.checkpoint(f)(1.0),
        lambda f: jax.eval_shape(f, 1.0),
    ],
    ids=["vmap", "jit", "grad", "scan", "cond", "checkpoint", "eval_shape"],
)
def test_closures_of_raw_transforms_are_refused(transform):
    """A write under another trace raises at the write, leaks nothing, and the recording goes on."""
    with jax.checking_leaks(), ps.record(counter()) as live:
        with pytest.raises(ps.TraceScopeError, match=r"`counter\.count`"):
            transform(lambda x: live(x))
        live(1.0)
    assert ps.freeze(live).count.value == 1


def test_other_threads_are_refused():
    """A write from another thread raises there; reading is allowed."""
    with ps.record(counter()) as live, concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: live.count.value.item()).result() == 0
        with pytest.raises(ps.TraceScopeError, match="thread"):
            pool.submit(live, 1.0).result()
    assert ps.freeze(live).count.value == 0


def test_recordings_in_many_threads():
    """L9: each thread has recordings of its own."""

    def work(n):
        with ps.record(counter(float(n))) as live:
            for _ in range(20):
                live(1.0)
        return ps.freeze(live).count.value.item()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == [n + 20 for n in range(16)]
