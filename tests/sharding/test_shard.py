"""`ps.shardings`, `ps.shard` and `ps.largest`: where arrays live, by filter."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import pstate as ps
from sharding.devices import AUTO, EXPLICIT, in_context, mesh, same_bits, spec_of, specs_of


KINDS = pytest.mark.parametrize("kind", [AUTO, EXPLICIT])


class Net(eqx.Module):
    w: ps.ParamState
    h: ps.HiddenState
    rng: ps.RandomState
    raw: ps.RandomState
    keys: Any
    bias: Any
    act: Any = jnp.tanh
    size: int = 3


def net() -> Net:
    return Net(
        ps.ParamState({"a": jr.normal(jr.key(0), (8, 3)), "b": jnp.ones((4, 12))}, tag="big"),
        ps.HiddenState(jnp.arange(8.0)),
        ps.RandomState(0),
        ps.RandomState(jr.PRNGKey(0)),
        jr.split(jr.key(1), 4),
        np.ones(4, np.float32),
    )


RULES = {
    ps.largest("data"): "big",
    P("data"): (ps.HiddenState, ps.filter.PathContains("keys")),
    P(): ...,
}


@KINDS
def test_values_stay_and_places_change(kind: Any):
    """The same values bit for bit, structure, kinds and tags; each array where its rule says."""
    devices = mesh(kind)
    old = net()
    new = ps.shard(old, RULES, devices)
    arrays, where = eqx.filter(new, eqx.is_array), ps.shardings(old, RULES, devices)
    assert jax.tree.structure(new) == jax.tree.structure(old)
    assert same_bits(new.w, old.w)
    assert same_bits((new.h, new.rng, new.raw, new.keys), (old.h, old.rng, old.raw, old.keys))
    assert new.w.tag == ("big",)
    assert specs_of((new.w, new.h, new.rng)) == [("data",), (None, "data"), ("data",), ()]
    assert specs_of((new.raw, new.keys, new.bias)) == [(), ("data",), ()]
    agree = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), arrays, where)
    assert all(jax.tree.leaves(agree))
    assert (new.act, new.size) == (jnp.tanh, 3)


def test_what_shardings_give():
    """A sharding for every array, `None` for the rest; JAX and Equinox take it as it is."""
    devices, model = mesh(), eqx.tree_at(lambda n: n.bias, net(), jnp.ones(4))
    where = ps.shardings(model, RULES, devices)
    assert (where.act, where.size) == (None, None)
    assert isinstance(where.w, ps.ParamState)
    arrays, rest = eqx.partition(model, eqx.is_array)
    put = jax.device_put(arrays, where)
    assert specs_of(put.w) == [("data",), (None, "data")]
    assert specs_of(eqx.filter_shard(model, where).w) == [("data",), (None, "data")]
    out = jax.jit(lambda x: x, in_shardings=(where,), out_shardings=where)(arrays)
    assert specs_of(out.h) == [("data",)]
    assert eqx.combine(put, rest).size == 3


def test_shapes_instead_of_arrays():
    """A tree of shapes gives the same shardings, and `shard` writes them into it, as a restore wants."""
    devices, model = mesh(), net()
    shapes = eqx.filter_eval_shape(lambda: net())
    same = jax.tree.map(
        lambda a, b: a == b, *(ps.shardings(t, RULES, devices).w for t in (model, shapes))
    )
    assert all(jax.tree.leaves(same))
    put = ps.shard(shapes, RULES, devices)
    assert isinstance(put.h.value, jax.ShapeDtypeStruct)
    assert put.h.value.sharding == NamedSharding(devices, P("data"))


@KINDS
def test_inside_a_compiled_function(kind: Any):
    """Inside a program arrays are constrained to be there, keys too; also under `grad` and `vmap`."""

    def f(x, keys):
        return ps.shard({"x": 2 * x, "keys": keys}, {P("data"): ...})

    devices = mesh(kind)
    x, keys = jnp.ones((8, 2)), jr.split(jr.key(0), 8)
    with in_context(devices):
        out = jax.jit(f)(ps.shard(x, P()), ps.shard(keys, P()))
        assert specs_of(out) == [("data",), ("data",)]
        assert same_bits(out, {"x": 2 * x, "keys": keys})
        grad = jax.jit(jax.grad(lambda x: (ps.shard(x, P("data")) ** 2).sum()))(ps.shard(x, P()))
        np.testing.assert_array_equal(grad, 2 * x)
        lanes = jax.jit(jax.vmap(lambda x: ps.shard(x, P("data"))))(ps.shard(jnp.ones((3, 8)), P()))
    assert spec_of(lanes) == (None, "data")


def test_on_a_mesh_of_both_kinds():
    """Automatic axes are constrained and explicit ones resharded."""
    kinds: Any = (AUTO, EXPLICIT)
    devices = jax.make_mesh((2, 2), ("data", "model"), axis_types=kinds)
    with in_context(devices):
        out = jax.jit(lambda x: ps.shard(x * 2, P("data", "model")))(ps.shard(jnp.ones((4, 4)), P()))
    assert spec_of(out) == ("data", "model")


def test_the_mesh_of_the_context():
    """`jax.set_mesh`, and `with mesh:`, outside and inside a program."""
    devices = mesh()
    put = lambda x: ps.shard(x, P("data"))
    with in_context(devices):
        assert spec_of(put(jnp.ones(4))) == ("data",)
        assert spec_of(jax.jit(put)(ps.shard(jnp.ones(4), P()))) == ("data",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        devices.__enter__()
    try:
        assert spec_of(put(jnp.ones(4))) == ("data",)
        assert spec_of(jax.jit(put)(jnp.ones(4))) == ("data",)
    finally:
        devices.__exit__(None, None, None)


@KINDS
def test_live_states_are_written(kind: Any):
    """Where states are live the arrays are written into them, as `ps.update` does; a program too."""
    devices = mesh(kind)
    with ps.record(net()) as live:
        assert ps.shard(live.w, ps.largest("data"), devices) is live.w
        again = ps.shard(live, RULES, devices)
        assert again.h is live.h
        new = ps.freeze(live)
    assert specs_of(new.w) == [("data",), (None, "data")]

    def f(s):
        ps.shard(s, P("data"))

    with in_context(devices):
        _, put = ps.pure(ps.jit(f))(ps.shard(ps.State(jnp.ones(8)), P()))
    assert put.value.shape == (8,)


def test_one_state_at_two_places():
    """It stays one object; rules that put it apart are refused."""
    devices, shared = mesh(), ps.State(jnp.ones(4))
    new = ps.shard({"a": shared, "b": shared}, P("data"), devices)
    assert new["a"] is new["b"]
    with pytest.raises(
        ps.AliasedStateError, match="`tree\\['a'\\]` and `tree\\['b'\\]` are one state object"
    ):
        ps.shard({"a": shared, "b": shared}, {P("data"): ps.filter.PathContains("a")}, devices)


def test_packed_and_empty():
    """A packed tree stays packed, and an empty state empty."""
    packed = ps.shard(ps.pack({"w": ps.ParamState(jnp.ones(4)), "n": ps.State()}), P("data"), mesh())
    assert isinstance(packed, ps.Packed)
    assert spec_of(packed.unpack()["w"].value) == ("data",)


def test_priority_and_functions():
    """The first filter that selects decides; a function of the leaf is asked about each array."""
    devices = mesh(shape=(2, 2), names=("data", "model"))
    tree = {"w": ps.ParamState({"k": jnp.ones((4, 4)), "b": jnp.ones(4)}), "x": jnp.ones((4, 2))}
    by_rank = lambda leaf: P("data", "model") if leaf.ndim == 2 else None
    new = ps.shard(tree, {by_rank: ps.ParamState, P(("data", "model")): ...}, devices)
    assert specs_of(new) == [(), ("data", "model"), (("data", "model"),)]


def test_largest():
    """The largest axis that divides, by the mesh's size or by `n`; small arrays stay whole."""
    devices = mesh()
    tree = {name: jnp.ones(s) for name, s in (("a", (4, 8)), ("b", (8, 6)), ("c", (3,)), ("d", ()))}
    assert specs_of(ps.shard(tree, ps.largest("data"), devices)) == [(None, "data"), ("data",), (), ()]
    assert specs_of(ps.shard(tree, ps.largest("data", 8), devices)) == [
        (None, "data"),
        ("data",),
        (),
        (),
    ]
    assert specs_of(ps.shard(tree, ps.largest("data", min_size=40), devices)) == [(), ("data",), (), ()]
    both = mesh(shape=(2, 2), names=("data", "model"))
    assert specs_of(ps.shard(tree["b"], ps.largest(("data", "model")), both)) == [(("data", "model"),)]
    assert ps.largest("data", 4) == ps.largest("data", 4, 0)
    assert repr(ps.largest("data", 4, min_size=9)) == "ps.largest('data', 4, min_size=9)"


# Bad input ------------------------------------------------------------------------------------------


def lies(tree: Any, rules: Any, mesh: Any = None) -> Any:
    return lambda: ps.shard(tree, rules, mesh)


WRONG: dict[str, Any] = {
    "axis": (
        lies(jnp.ones(4), P("x"), mesh()),
        ValueError,
        "names the axis 'x', but the mesh has the axes {'data': 4}",
    ),
    "twice": (
        lies(jnp.ones((4, 4)), P("data", "data"), mesh()),
        ValueError,
        "names the axis 'data' twice",
    ),
    "divides": (
        lies({"a": ps.State(jnp.ones((6, 2)))}, P("data"), mesh()),
        ps.BatchAxisError,
        "`tree['a']` (State) has shape (6, 2), and the spec P('data') cuts its axis 0",
    ),
    "long": (lies(ps.State(1), P("data"), mesh()), ps.BatchAxisError, "has shape (), of 0 axes"),
    "no mesh": (lies(jnp.ones(4), P("data")), ValueError, "ps.shard needs a mesh, but none was passed"),
    "no mesh for largest": (lambda: ps.largest("data")(jnp.ones(4)), ValueError, "needs a mesh"),
    "mesh": (
        lies(jnp.ones(4), P("data"), 4),
        TypeError,
        "mesh is a jax.sharding.Mesh; got 4 of type int",
    ),
    "kind": (
        lies(jnp.ones(4), ps.ParamState, mesh()),
        TypeError,
        "The rules of ps.shard are {PartitionSpec",
    ),
    "turned": (
        lies(jnp.ones(4), {ps.ParamState: P("data")}, mesh()),
        TypeError,
        "Write {P('data'): ps.ParamState}.",
    ),
    "name": (lies(jnp.ones(4), {"data": ps.State}, mesh()), TypeError, "got 'data'. Write {P('data'): "),
    "specs": (
        lies(jnp.ones(4), {P(): P("data")}, mesh()),
        TypeError,
        "The values of the rules of ps.shard are",
    ),
    "sharding": (
        lies(jnp.ones(4), {NamedSharding(mesh(), P("data")): ...}),
        TypeError,
        "the mesh is a separate argument",
    ),
    "function": (lies(jnp.ones(4), lambda leaf: "data", mesh()), TypeError, "returned 'data' for"),
    "largest": (lambda: ps.largest(4), TypeError, "Write ps.largest('data')."),  # pyright: ignore
    "shards": (lambda: ps.largest("data", 0), ValueError, "n"),
    "unconstrained": (
        lies(jnp.ones(4), P(P.UNCONSTRAINED), mesh()),
        ValueError,
        "outside a compiled function",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_bad_input(call: Any, error: type, message: str):
    """Each is refused with its name, what was expected and the right code."""
    with pytest.raises(error) as found:
        call()
    assert message in str(found.value)


def test_the_advice_holds():
    """What the messages say to write works, on the inputs that were refused."""
    devices, odd = mesh(), ps.State(jnp.ones((6, 2)))
    with pytest.raises(
        ps.BatchAxisError, match="for example by padding it to 8; or leave it whole: P\\(None\\)"
    ):
        ps.shard(odd, P("data"), devices)
    assert spec_of(ps.shard(odd, P(None), devices).value) == ()
    padded = odd.replace(jnp.pad(odd.value, ((0, 2), (0, 0))))
    assert spec_of(ps.shard(padded, P("data"), devices).value) == ("data",)
    by_rank = lambda leaf: P("data") if leaf.ndim else P()
    assert spec_of(ps.shard(ps.State(1), by_rank, devices).value) == ()


def test_a_filter_that_selects_nothing():
    """A typo in a filter warns; one that is only passed over by an earlier rule does not."""
    with pytest.warns(ps.UnmatchedFilterWarning, match="of ps.shardings matches no state of the tree"):
        ps.shardings(ps.State(jnp.ones(4)), {P("data"): ps.ParamState}, mesh())
    ps.shard(ps.ParamState(jnp.ones(4)), {P("data"): ps.State, P(): ps.ParamState}, mesh())
