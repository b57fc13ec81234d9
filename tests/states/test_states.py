"""States: what they hold, that they are immutable, and that they are ordinary pytree nodes."""

import contextlib
import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


KINDS = [
    ps.State,
    ps.ShortTermState,
    ps.LongTermState,
    ps.HiddenState,
    ps.ParamState,
    ps.BatchState,
    ps.NonBatchState,
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


class Membrane(ps.HiddenState):
    """A user's kind, at module level so that it can be pickled."""


class Zeros(ps.HiddenState):
    """A user's kind with a constructor of its own."""

    def __init__(self, n: int):
        super().__init__(jnp.zeros(n), tag="zeros")


def data(state):
    """Leaves as NumPy arrays, keys by their data."""
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jtu.tree_leaves(state)]
    leaves = zip(jtu.tree_leaves(state), keys, strict=True)
    return [np.asarray(jr.key_data(leaf) if is_key else leaf) for leaf, is_key in leaves]


# Kinds and tags -----------------------------------------------------------------------------------


def test_kinds_are_a_family():
    """Filters by a kind select its subclasses, so who descends from whom is a promise."""
    parents = {
        ps.ShortTermState: ps.State,
        ps.LongTermState: ps.State,
        ps.HiddenState: ps.ShortTermState,
        ps.ParamState: ps.LongTermState,
        ps.BatchState: ps.LongTermState,
        ps.NonBatchState: ps.State,
        ps.RandomState: ps.State,
    }
    assert {kind: kind.__bases__[0] for kind in parents} == parents


@every_kind
def test_a_state_is_a_node_with_one_child(kind):
    """Flattening gives the array itself, at the key path `.value`, and unflattening the kind."""
    array = jnp.arange(3.0)
    state = kind(array, tag="a")
    [(path, leaf)], treedef = jtu.tree_flatten_with_path(state)
    assert leaf is array
    assert jtu.keystr(path) == ".value"
    rebuilt = treedef.unflatten([leaf])
    assert type(rebuilt) is kind
    assert (rebuilt.tag, rebuilt.value) == (("a",), array)


def test_tags():
    """A tag is a string or several; repeated ones count once, and they are part of the structure."""
    assert ps.State(0.0).tag == ()
    assert ps.State(0.0, tag="a").tag == ("a",)
    assert ps.State(0.0, tag=["a", "b", "a"]).tag == ("a", "b")
    assert jtu.tree_structure(ps.State(0.0, tag="a")) != jtu.tree_structure(ps.State(0.0))


@every_kind
def test_kinds_differ_in_structure(kind):
    """Two kinds never look like one another to JAX."""
    others = [jtu.tree_structure(other(0.0)) for other in KINDS if other is not kind]
    assert jtu.tree_structure(kind(0.0)) not in others


def test_subclasses_are_nodes_at_once():
    """A user's kind needs no registration, whatever its constructor takes."""
    doubled = jax.jit(lambda tree: jtu.tree_map(lambda x: x + 1, tree))([Membrane(1.0), Zeros(2)])
    assert [type(state) for state in doubled] == [Membrane, Zeros]
    np.testing.assert_array_equal(doubled[1].value, [1.0, 1.0])
    assert doubled[1].tag == ("zeros",)


def test_kinds_of_two_parents():
    """A user's kind may descend from two kinds, and filters see both."""

    class Adaptive(ps.HiddenState, ps.ParamState):
        pass

    tree = {"a": Adaptive(1.0)}
    assert ps.states(tree, ps.HiddenState) == ps.states(tree, ps.ParamState) == {("a",): tree["a"]}


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(True, "bool"), (3, "int32"), (2.5, "float32"), (1j, "complex64"), (np.float64(1), "float32")],
)
def test_numbers_become_strongly_typed_arrays(value, dtype):
    """Python and NumPy numbers are arrays in a state, and promote as arrays do."""
    array = ps.State(value).value
    assert isinstance(array, jax.Array)
    assert (array.dtype, array.weak_type, array.shape) == (dtype, False, ())


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "complex64", "int8", "uint32", "bool", "float32"]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (4,)])
def test_arrays_of_any_dtype_and_shape(dtype, shape):
    """Arrays are kept as they are; NumPy's become JAX's."""
    array = jnp.ones(shape, dtype)
    assert ps.State(array).value is array
    of_numpy = ps.State(np.ones(shape, "bool")).value
    assert isinstance(of_numpy, jax.Array)
    assert of_numpy.shape == shape


def test_a_state_does_not_follow_its_numpy_array():
    """Editing the NumPy array that a state was made of leaves the state alone."""
    source = np.zeros(2)
    state = ps.State(source)
    source[:] = 7
    np.testing.assert_array_equal(state.value, [0, 0])


def test_containers_are_copied_in_and_out():
    """Neither the container that went in nor the one that came out leads into the state."""
    source = {"a": jnp.zeros(2), "b": [1, 2.0]}
    state = ps.State(source)
    source["b"].append(3)
    read = state.value
    read["a"] = None
    read["b"].clear()
    assert jtu.tree_structure(state.value) == jtu.tree_structure({"a": 0, "b": [0, 0]})
    assert state.value["a"] is source["a"]
    assert state.value["b"][0].dtype == "int32"


def test_a_module_as_a_value():
    """Any pytree of arrays is a value, an Equinox layer too."""
    linear = eqx.nn.Linear(2, 3, key=jr.key(0))
    assert ps.State(linear).value.weight is linear.weight


def test_replace():
    """`replace` keeps kind and tags, leaves the old state, and gives a number the old dtype."""
    state = Membrane(jnp.zeros((), "bfloat16"), tag="v")
    new = state.replace(2)
    assert (type(new), new.tag, new.value.dtype) == (Membrane, ("v",), "bfloat16")
    assert (state.value.item(), new.value.item()) == (0, 2)


@pytest.mark.parametrize("old", ["bfloat16", "float16", "complex64", "int8", "uint32", "bool"])
def test_a_written_number_takes_the_old_dtype(old):
    """A number written over an array does not change its dtype; an array does."""
    with ps.record(ps.State(jnp.zeros((), old))) as live:
        live.value = 1
        assert live.value.dtype == old
        live.value = jnp.float32(1)
        assert live.value.dtype == "float32"


def test_written_numbers_inside_containers():
    """The rule about dtypes holds leaf by leaf where the structure stays."""
    with ps.record(ps.State({"a": jnp.int8(1), "b": jnp.float16(1)})) as live:
        live.value = {"a": 2, "b": 2}
        assert [x.dtype for x in (live.value["a"], live.value["b"])] == ["int8", "float16"]
        live.value = [2]
        assert live.value[0].dtype == "int32"


# Empty states -------------------------------------------------------------------------------------


def test_empty_states_have_no_leaves():
    """An empty state is a filled one whose child is `None`."""
    assert jtu.tree_leaves(ps.State()) == []
    assert jtu.tree_structure(ps.State(tag="a")) == jtu.tree_structure(ps.State(None, tag="a"))
    masked = jtu.tree_map(lambda _: None, ps.ParamState(1.0, tag="a"))
    assert jtu.tree_structure(masked) == jtu.tree_structure(ps.ParamState(tag="a"))


def test_masked_trees_line_up():
    """What `eqx.partition` and `eqx.filter` leave are trees of empty states that combine again."""
    tree = {"w": ps.ParamState(1.0), "h": ps.HiddenState({"a": jnp.ones(2), "b": jnp.ones(3)})}
    dynamic, static = eqx.partition(tree, ps.select(tree))
    assert jtu.tree_structure(dynamic["h"]) == jtu.tree_structure(
        ps.HiddenState(jtu.tree_map(lambda _: None, tree["h"].value))
    )
    assert jtu.tree_leaves(static["w"]) == []
    combined = eqx.combine(dynamic, static)
    assert all(a is b for a, b in zip(jtu.tree_leaves(combined), jtu.tree_leaves(tree), strict=True))
    assert jtu.tree_structure(combined) == jtu.tree_structure(tree)
    assert jtu.tree_leaves(eqx.filter(tree, lambda _: False)) == []


# Immutability -------------------------------------------------------------------------------------


def test_states_have_no_attributes_to_set_or_delete():
    """Neither the value, nor the tags, nor anything new can be put on a frozen state."""
    state = Membrane(1.0, tag="a")
    for name in ("value", "tag", "note", "_child"):
        with pytest.raises(ps.FrozenStateError):
            setattr(state, name, 2.0)
        with pytest.raises(ps.FrozenStateError):
            delattr(state, name)
    assert (state.value.item(), state.tag) == (1.0, ("a",))


def test_frozen_errors_are_the_builtin_kind():
    """Code that catches the errors of frozen dataclasses catches ours."""
    with pytest.raises(AttributeError):
        ps.State(0.0).value = 1.0


# Copying ------------------------------------------------------------------------------------------

ORIGINALS = [
    ps.State(),
    Membrane(jnp.arange(2.0), tag=("a", "b")),
    Zeros(2),
    ps.State({"a": [jnp.ones(2), jnp.zeros(())]}),
    ps.RandomState(0),
    ps.RandomState(jr.PRNGKey(0)),
    ps.RandomState(jr.split(jr.key(0), 3)),
]


@pytest.mark.parametrize("original", ORIGINALS, ids=repr)
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies(original, duplicate):
    """Copies by any protocol have the kind, the tags and the value, typed keys included."""
    made = duplicate(original)
    assert made is not original
    assert jtu.tree_structure(made) == jtu.tree_structure(original)
    for a, b in zip(data(made), data(original), strict=True):
        np.testing.assert_array_equal(a, b)


def test_copies_of_live_states_are_frozen():
    """A copy of a live state keeps its value of that moment and takes no writes."""
    with ps.record(ps.State(1.0)) as live:
        live.value = 2.0
        for made in (copy.copy(live), copy.deepcopy(live), pickle.loads(pickle.dumps(live))):
            assert made.value.item() == 2.0
            with pytest.raises(ps.FrozenStateError):
                made.value = 3.0


# Structure ----------------------------------------------------------------------------------------


def test_unflatten_never_validates():
    """JAX and Equinox put placeholders into trees: anything may stand in a state for a while."""
    treedef = jtu.tree_structure(Zeros(2))
    for placeholder in (object(), "text", ps.State(1.0), None, 0):
        state = treedef.unflatten([placeholder])
        assert type(state) is Zeros
        assert repr(state).startswith("Zeros(")
    assert eqx.tree_at(lambda s: s.value, Zeros(2), "text").value == "text"


def test_live_and_frozen_trees_have_one_structure():
    """A jitted function is not traced again because a tree is live."""
    traces = []

    @jax.jit
    def total(tree):
        traces.append(None)
        return tree["a"].value + tree["b"].value

    tree = {"a": ps.State(1.0, tag="t"), "b": Membrane(2.0)}
    total(tree)
    with ps.record(tree) as live:
        assert jtu.tree_structure(live) == jtu.tree_structure(tree)
        assert hash(jtu.tree_structure(live)) == hash(jtu.tree_structure(tree))
        total(live)
        live["a"].value = 5.0
        total(jtu.tree_map(lambda x: x * 2, live))
    total(live)
    total(ps.freeze(live))
    assert len(traces) == 1


def test_repr():
    """States show their kind, shapes and tags, inside Equinox's printing too."""
    assert repr(ps.HiddenState(jnp.zeros((2, 3)))) == "HiddenState(f32[2,3])"
    assert repr(ps.State({"a": jnp.zeros(2, bool)}, tag="t")) == "State({'a': bool[2]}, tag='t')"
    assert repr(ps.State(1, tag=("a", "b"))) == "State(i32[], tag=('a', 'b'))"
    assert repr(ps.State()) == "State()"

    class Net(eqx.Module):
        v: ps.State

    assert "v=HiddenState(f32[2])" in eqx.tree_pformat(Net(ps.HiddenState(jnp.zeros(2))))


def test_no_cycles_and_no_identity_magic():
    """Two equal-looking states are two; a state is found by identity, as any object."""
    a, b = ps.State(1.0), ps.State(1.0)
    assert a != b
    assert len({a, b, a}) == 2


# Catching -----------------------------------------------------------------------------------------


def test_catch_new_states():
    """The states created inside are collected, in order, and get the tag in addition to their own."""
    before = ps.State(0.0)
    with ps.catch_new_states("fresh") as caught:
        made = [ps.State(1.0, tag="own"), Zeros(2), ps.RandomState(0)]
    after = ps.State(0.0)
    assert caught == made
    assert [state.tag for state in made] == [("own", "fresh"), ("zeros", "fresh"), ("fresh",)]
    assert before not in caught
    assert after not in caught


def test_catching_nests_and_survives_exceptions():
    """Each context collects what is made inside it, and lets go even after an exception."""
    with ps.catch_new_states("outer") as outer:
        first = ps.State(0.0)
        with contextlib.suppress(KeyError), ps.catch_new_states(["inner", "outer"]) as inner:
            second = ps.State(0.0)
            raise KeyError
    assert (outer, inner) == ([first, second], [second])
    assert second.tag == ("outer", "inner")
    assert ps.State(0.0).tag == ()
    with ps.catch_new_states() as untagged:
        assert ps.State(0.0) in untagged
