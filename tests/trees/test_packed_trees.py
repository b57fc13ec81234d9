"""`pack`: a tree kept flat, by itself, recorded and in bulk."""

import copy
import io
import pickle
import re

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from trees.packing import Net, act, add, net, tree, x


# A packed tree by itself ----------------------------------------------------------------------------


def test_it_is_the_tree():
    """Unpacked, it is the same tree, with the same arrays and static leaves."""
    model = net()
    packed = ps.pack(model)
    assert jtu.tree_structure(packed.unpack()) == jtu.tree_structure(model)
    assert all(a is b for a, b in zip(jtu.tree_leaves(packed), jtu.tree_leaves(model), strict=True))
    assert packed.unpack().act is act
    assert ps.pack(packed) is packed
    assert repr(packed) == "Packed(Net, 2 states, 4 leaves)"


def test_it_is_immutable_and_says_where_attributes_are():
    """No attribute is set or found; the advice runs."""
    packed = ps.pack(net())
    message = (
        "A packed tree has no attribute 'weight', because it is taken apart. Functions that pstate "
        "runs get the tree itself; elsewhere unpack it first: packed.unpack().weight."
    )
    with pytest.raises(AttributeError, match=f"^{re.escape(message)}$"):
        packed.weight
    assert eval(message.rpartition(": ")[2].rstrip("."), {"packed": packed}).value.shape == (2,)
    with pytest.raises(
        AttributeError, match=r"A packed tree is immutable; got 'leaves'\. Unpack it first"
    ):
        packed.leaves = ()
    assert not hasattr(packed, "__jax_array__")


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))]
)
def test_copies(duplicate):
    """Copied and pickled, it is packed and usable."""
    packed = ps.pack(net())
    again = duplicate(packed)
    assert type(again) is ps.Packed
    assert jtu.tree_structure(again) == jtu.tree_structure(packed)
    one, _ = ps.pure(ps.jit(Net.__call__))(packed, jnp.ones(2))
    two, _ = ps.pure(ps.jit(Net.__call__))(again, jnp.ones(2))
    np.testing.assert_array_equal(one, two)


def test_aliases():
    """One state at two places is refused, and the advice runs; one array at two places is not."""
    state = ps.State(x)
    message = (
        r"`tree\['a'\]` and `tree\['b'\]\[0\]` are one state object at two places, and a packed tree"
    )
    with pytest.raises(ps.AliasedStateError, match=message):
        ps.pack({"a": state, "b": [state]})
    _, new = ps.pure(lambda t: add({"s": t["a"]}, 1.0))(ps.pack({"a": state, "b": [ps.State(x)]}))
    np.testing.assert_array_equal(new.unpack()["a"].value, x + 1)
    np.testing.assert_array_equal(new.unpack()["b"][0].value, x)


def test_saved_leaf_by_leaf():
    """Equinox saves and loads its leaves."""
    file = io.BytesIO()
    spec = lambda f, leaf: eqx.default_serialise_filter_spec(f, leaf) if eqx.is_array(leaf) else None
    eqx.tree_serialise_leaves(file, ps.pack(net()), filter_spec=spec)
    file.seek(0)
    like = ps.pack(Net(ps.ParamState(jnp.zeros(2)), ps.State(7)))
    spec = lambda f, leaf: eqx.default_deserialise_filter_spec(f, leaf) if eqx.is_array(leaf) else leaf
    loaded = eqx.tree_deserialise_leaves(file, like, filter_spec=spec)
    assert type(loaded) is ps.Packed
    np.testing.assert_array_equal(loaded.unpack().weight.value, [1.0, 2.0])
    assert loaded.unpack().count.value == 0


def test_partition_and_combine():
    """Equinox's masks leave it packed, and a masked one is a tree of empty states."""
    packed = ps.pack(net())
    arrays, rest = eqx.partition(packed, eqx.is_array)
    assert type(arrays) is type(rest) is ps.Packed
    assert arrays.unpack().act is None
    with pytest.raises(ps.UninitializedStateError, match="empty and was read"):
        rest.unpack().weight.value
    again = eqx.combine(arrays, rest)
    assert all(a is b for a, b in zip(again.leaves, packed.leaves, strict=True))


# Recordings and bulk ---------------------------------------------------------------------------------


def test_recorded():
    """`record` gives the live tree itself."""
    packed = ps.pack(tree())
    with ps.record(packed) as live:
        add(live, x)
    np.testing.assert_array_equal(ps.freeze(live)["s"].value, x)
    np.testing.assert_array_equal(packed.unpack()["s"].value, 0 * x)
    assert ps.written(live).keys() == {("s",)}


def test_a_contract_of_a_recording():
    """`writes` sees the states of a packed tree: their kinds, each by itself."""
    packed = ps.pack({"a": ps.State(1.0), "b": ps.ParamState(2.0)})
    with ps.record(packed, writes=ps.ParamState) as live:
        live["b"].value = 3.0
        with pytest.raises(
            ps.FrozenStateError, match=r"\['a'\]` \(State\).*\(ps\.ParamState, ps\.State\)"
        ):
            live["a"].value = 3.0


def test_in_bulk():
    """`states`, `update`, `select`, `axes` and `summary` see the states of the tree."""
    packed = ps.pack({"a": ps.State(1.0), "b": ps.ParamState(2.0)})
    assert list(ps.states(packed, ps.ParamState)) == [("b",)]
    updated = ps.update(packed, {("a",): 5.0})
    assert type(updated) is ps.Packed
    assert updated.unpack()["a"].value == 5
    assert jtu.tree_leaves(ps.select(packed)) == [False, True]
    assert "ParamState" in str(ps.summary(packed))
