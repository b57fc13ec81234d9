"""`in_shardings` and `out_shardings` of `ps.jit`."""

import functools as ft
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import pstate as ps
from sharding.devices import AUTO, EXPLICIT, compiled, in_context, mesh, spec_of


def model() -> dict[str, ps.State]:
    return {"rng": ps.RandomState(0), "w": ps.ParamState(jnp.ones((8, 4)))}


def shift(model, x):
    model["w"].value = model["w"].value + 1
    return 2 * x, jnp.sum(x)


X = np.ones((8, 3), np.float32)
KINDS = pytest.mark.parametrize("kind", [AUTO, EXPLICIT])


@KINDS
def test_one_spec_for_all(kind: Any):
    """A spec alone is for all arguments, as in `jax.jit`; it is one on the mesh of the context."""
    with in_context(mesh(kind)):
        out = ps.jit(lambda x, y: (x + 1, y), in_shardings=P("data"))(X, X)
    assert spec_of(out[0]) == ("data",)


@KINDS
def test_a_tuple_with_rules(kind: Any):
    """An entry for each argument: rules by filter for a model, a spec for a batch."""
    rules, tree = {ps.largest("data"): ps.ParamState, P(): ...}, model()
    with in_context(mesh(kind)):
        f = ps.pure(ps.jit(shift, in_shardings=(rules, P("data"))))
        _, new = f(tree, X)
    assert spec_of(new["w"].value) == ("data",)


@KINDS
def test_trees_of_shardings(kind: Any):
    """What `ps.shardings` gives is an entry; no mesh is needed in the context then."""
    devices = mesh(kind)
    where = ps.shardings(model(), {P("data"): ps.ParamState}, devices)
    batch = NamedSharding(devices, P("data"))
    f = ps.pure(ps.jit(shift, in_shardings=(where, batch), out_shardings=(batch, None)))
    with compiled("shift") as programs:
        (y, _), tree = f(model(), X)
        for _ in range(2):
            (y, _), tree = f(tree, X)
    assert len(programs) == 1
    assert spec_of(y) == ("data",)
    assert spec_of(tree["w"].value) == ("data",)


@KINDS
def test_rules_for_the_whole(kind: Any):
    """Rules alone are for every state and array of the call, a bound module's too."""

    class Net(eqx.Module):
        w: ps.ParamState

        def __call__(self, x):
            self.w.value = self.w.value + 1
            return x

    devices = mesh(kind)
    net = Net(ps.ParamState(jnp.ones((8, 4))))
    f = ps.jit(net.__call__, in_shardings={P("data"): ps.ParamState})
    with in_context(devices), ps.record(net) as live:
        ps.jit(live.__call__, in_shardings={P("data"): ps.ParamState})(X)
        new = ps.freeze(live)
    assert spec_of(new.w.value) == ("data",)
    assert "in_shardings={P('data'): " in repr(f)


@KINDS
def test_rules_for_results(kind: Any):
    """Rules of `out_shardings` are for arrays and states of the output, and for written states."""

    def f(model, x):
        model["w"].value = model["w"].value + 1
        return {"h": ps.HiddenState(2 * x), "x": x}

    devices = mesh(kind)
    rules = {P(None, "data"): ps.ParamState, P("data"): ps.HiddenState}
    with in_context(devices):
        tree = ps.shard(model(), P())
        out, new = ps.pure(ps.jit(f, out_shardings=rules))(tree, ps.shard(X, P()))
    assert spec_of(new["w"].value) == (None, "data")
    assert spec_of(out["h"].value) == ("data",)


@KINDS
def test_what_passes_through_is_put_too(kind: Any):
    """An argument that the function returns as it came is brought to its place in the output."""
    devices = mesh(kind)
    with in_context(devices):
        x = ps.shard(X, P())
        out = ps.jit(lambda x: x, out_shardings=P("data"))(x)
    assert spec_of(out) == ("data",)


@pytest.mark.parametrize("options", [{"donate": ...}, {"donate_argnums": 0}], ids=str)
def test_with_donation(options: Any):
    """Buffers are given up where the state stays, and nothing warns where it moves."""
    devices = mesh()
    with in_context(devices):
        rules = {P("data"): ps.ParamState}
        tree = ps.shard(model(), rules)
        stays = ps.jit(shift, in_shardings=(rules, P("data")), **options)
        _, new = ps.pure(stays)(tree, X)
        assert tree["w"].value.is_deleted()
        moves = ps.jit(shift, out_shardings={P(None, "data"): ps.ParamState}, **options)
        _, moved = ps.pure(moves)(new, X)
    assert spec_of(moved["w"].value) == (None, "data")


@KINDS
def test_inside_another_program(kind: Any):
    """Under a trace arrays are constrained to be there."""
    devices = mesh(kind)
    inner = ps.jit(lambda x: 2 * x, in_shardings=P("data"), out_shardings=P(None, "data"))
    with in_context(devices):
        out = jax.jit(lambda x: inner(x) + 0)(ps.shard(np.ones((8, 8), np.float32), P()))
        assert spec_of(out) == (None, "data")
        grads = jax.grad(lambda x: inner(x).sum())(ps.shard(np.ones((8, 8), np.float32), P()))
    np.testing.assert_array_equal(grads, 2 * np.ones((8, 8)))


def test_keys():
    """Typed keys and raw ones are taken where they are wanted."""
    keys = jr.split(jr.key(0), 8)
    with in_context(mesh()):
        out = ps.jit(lambda k: jr.key_data(k), in_shardings=P("data"))(keys)
    assert spec_of(out) == ("data",)


def test_ahead():
    """`lower().compile()` has the shardings; it takes what it gives."""
    tree = model()
    with in_context(mesh()):
        f = ps.pure(ps.jit(shift, in_shardings=({P("data"): ps.ParamState}, P("data"))))
        run = f.lower(tree, jax.ShapeDtypeStruct(X.shape, X.dtype)).compile()
        _, new = run(tree, X)
        _, new = run(new, X)
    assert spec_of(new["w"].value) == ("data",)


def test_as_an_object():
    """Options are told apart by value, shown as code, and pickled."""
    made = ps.jit(shift, in_shardings=({P("data"): ps.ParamState}, None), out_shardings=P())
    assert "out_shardings=P()" in repr(made)
    assert repr(pickle.loads(pickle.dumps(made))) == repr(made)
    with in_context(mesh()), compiled("shift") as programs:
        tree = ps.shard(model(), P())
        for _ in range(3):
            again = ps.jit(shift, in_shardings=({P("data"): ps.HiddenState}, None))
            ps.pure(again)(tree, X)
    assert len(programs) == 1


# Bad input ------------------------------------------------------------------------------------------


def refused(call: Any, error: type, *parts: str) -> None:
    with pytest.raises(error) as found:
        call()
    assert [part for part in parts if part not in str(found.value)] == []


def test_what_is_no_sharding():
    """An entry that is none is refused where the transform is made."""
    refused(
        lambda: ps.jit(shift, in_shardings="data"), TypeError, "got 'data'", "in_shardings=P('data')"
    )
    refused(lambda: ps.jit(shift, out_shardings=(3, None)), TypeError, "got 3 of type int")
    wrong: Any = {P("data"): P("data")}
    refused(
        lambda: ps.jit(shift, out_shardings=wrong), TypeError, "values of the rules of out_shardings"
    )


def test_what_does_not_fit():
    """The array, its shape and what to do are named; the inputs are usable after it."""
    devices, tree = mesh(), model()
    f = ft.partial(ps.jit, shift)
    with in_context(devices):
        call = lambda **options: ps.pure(f(**options))(tree, X)
        refused(lambda: call(in_shardings=(None, P("model"))), ValueError, "`x`", "'model'", "P('data')")
        refused(lambda: call(in_shardings=(None, P(None, "data"))), ps.BatchAxisError, "`x`", "(8, 3)")
        rules = {P(None, None, "data"): ps.ParamState}
        refused(lambda: call(in_shardings=(rules, None)), ps.BatchAxisError, "`model['w']` (ParamState)")
        refused(lambda: call(in_shardings=(None,)), ValueError, "has 1 entries", "(None, None, )")
        refused(
            lambda: call(in_shardings=(None, (P(), P()))),
            ValueError,
            "in_shardings for `x` of ps.jit(shift",
        )
        refused(
            lambda: call(out_shardings=(P(),) * 3), ValueError, "not a prefix of the structure of its"
        )
        refused(lambda: call(out_shardings=(P(None, "data"), None)), ps.BatchAxisError, "`out[0]`")
        refused(
            lambda: call(out_shardings={P("x"): ps.ParamState}), ValueError, "`model['w']` (ParamState)"
        )
        placed = ps.shard(X, P("data"))
        elsewhere = lambda: f(in_shardings=P())(tree, placed)
        refused(
            elsewhere, ValueError, "`x` was put by P('data')", "wants P()", "ps.shard(tree, {P(): ...}"
        )
        _, new = call(in_shardings=(None, P("data")))
    assert float(new["w"].value[0, 0]) == 2


def test_no_mesh():
    """A spec without a mesh anywhere is refused, with the right code."""
    call = lambda: ps.jit(lambda x: x, in_shardings=P("data"))(X)
    refused(call, ValueError, "in_shardings of", "set_mesh" if hasattr(jax, "set_mesh") else "use_mesh")
