"""`diff`: what differs between two trees, by place, and how far it is apart."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from states.cells import Cell, Net, cell, net


def only(difference):
    """The one change there is."""
    (row,) = difference.rows
    return row


def test_diff_prints():
    """What a call wrote is a row each, with norms; what stayed is counted only."""
    old = Net([cell(), cell()], ps.RandomState(0))
    _, new = ps.pure(lambda n, x: (n.cells[1](x), n.rng.split_key()))(old, jnp.ones(3))
    assert (
        str(ps.diff(old, new))
        == repr(ps.diff(old, new))
        == """\
net: 2 of 10 changed
place                kind         changed  old         new         |old|  |new|  |new - old|  differing
-------------------------------------------------------------------------------------------------------
net.cells[1].hidden  HiddenState  value    f32[3]      f32[3]      1.732   1.67      0.06231          3
net.rng              RandomState  value    key<fry>[]  key<fry>[]                                     1
-------------------------------------------------------------------------------------------------------"""
    )


def test_diff_is_true_when_something_changed():
    """Equal trees differ in nothing, the same objects and equal ones alike, and print a line."""
    old = net()
    assert not ps.diff(old, old)
    assert not ps.diff(old, net())
    assert str(ps.diff(old, old)) == "net: 0 of 10 changed"
    assert ps.diff(old, ps.update(old, {("rng",): 1}))
    assert not ps.diff({}, {})


def test_diff_is_data():
    """A row has the place, both sides with shape, dtype and norm, and how far they are apart."""
    old, new = cell(), cell()
    new = ps.update(new, {("weight",): jnp.eye(3).at[0, 0].set(4)})
    row = only(ps.diff(old, new))
    assert (row.path, row.place, row.kind, row.what) == (
        ("weight",),
        "cell.weight",
        "ParamState",
        ("value",),
    )
    assert (row.old.shape, row.new.dtype, row.old.tag) == ((3, 3), "float32", ("slow",))
    np.testing.assert_allclose([row.old.norm, row.new.norm], [3**0.5, 18**0.5])
    assert (row.distance, row.differing) == (3.0, 1)


def test_diff_of_shapes_and_dtypes():
    """Other shapes have no distance; another dtype is also compared by value."""
    row = only(ps.diff(ps.State(jnp.ones(4)), ps.State(jnp.ones(9))))
    assert (row.what, row.old.norm, row.new.norm) == (("shape",), 2.0, 3.0)
    assert (row.distance, row.differing) == (None, None)
    row = only(ps.diff(ps.State(jnp.ones(4)), ps.State(jnp.ones(4, jnp.bfloat16))))
    assert (row.what, row.distance, row.new.shown) == (("dtype",), 0.0, "bf16[4]")
    row = only(ps.diff([jnp.arange(3)], [jnp.array([0.0, 1.0, 4.0])]))
    assert (row.what, row.distance, row.differing) == (("dtype", "value"), 2.0, 1)
    row = only(ps.diff([jnp.arange(3)], [jnp.arange(4.0)]))
    assert row.what == ("shape", "dtype")


def test_diff_counts_integers():
    """Integers and booleans have no norm; the elements that differ are counted."""
    row = only(ps.diff([jnp.arange(4)], [jnp.array([0, 1, 3, 2])]))
    assert (row.differing, row.distance, row.old.norm) == (2, None, None)
    row = only(ps.diff([jnp.array([True, False])], [jnp.array([True, True])]))
    assert (row.differing, row.distance) == (1, None)
    row = only(ps.diff([np.int64(2**60)], [np.int64(2**60 + 1)]))
    assert row.differing == 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_diff_of_special_values(dtype):
    """`nan` equals `nan` and `inf` equals `inf`, whatever the dtype; nothing overflows or warns."""
    old = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3e4], dtype)
    assert not ps.diff([old], [old + 0])
    row = only(ps.diff([old], [old.at[3].set(-3e4)]))
    assert (row.what, row.differing) == (("value",), 1)
    np.testing.assert_allclose(row.distance, 6e4, rtol=1e-2)
    assert only(ps.diff([old], [-old])).differing == 3


def test_diff_of_keys():
    """Keys that changed are counted; keys of different sorts are not compared by value."""
    old = ps.RandomState(jr.split(jr.key(0), 3))
    row = only(ps.diff(old, old.replace(old.value.at[1].set(jr.key(7)))))
    assert (row.what, row.differing, row.old.norm) == (("value",), 1, None)
    assert not ps.diff(ps.RandomState(3), ps.RandomState(3))
    row = only(ps.diff(ps.RandomState(3), ps.RandomState(jr.key(3, impl="rbg"))))
    assert (row.what, row.differing) == (("dtype",), None)
    row = only(ps.diff([jr.key(0)], [jnp.float32(0)]))
    assert row.what == ("dtype",)
    with jax.debug_key_reuse(True):
        rng = ps.RandomState(1)
        assert ps.diff(rng, ps.RandomState(2))
        ps.pure(lambda rng: rng.normal())(rng)


def test_diff_of_what_came_and_went():
    """Paths in one tree only appeared or disappeared; states are filled and emptied."""
    old = {"a": ps.State(1.0), "b": ps.State(), "c": ps.State(2.0), "x": jnp.ones(2)}
    new = {"a": ps.State(), "b": ps.State({"k": 1, "l": 2.0}), "d": ps.State(), "x": jnp.ones(2)}
    found = {row.place: row for row in ps.diff(old, new).rows}
    assert {place: row.what for place, row in found.items()} == {
        "tree['a']": ("emptied",),
        "tree['b'].value['k']": ("filled",),
        "tree['b'].value['l']": ("filled",),
        "tree['c']": ("disappeared",),
        "tree['d']": ("appeared",),
    }
    assert (found["tree['a']"].old.shown, found["tree['a']"].new.shown) == ("f32[]", "empty")
    assert found["tree['b'].value['l']"].new.norm == 2.0
    assert found["tree['c']"].new is None
    assert found["tree['d']"].old is None
    assert not ps.diff({"s": ps.State()}, {"s": ps.State()})


def test_diff_of_kinds_and_tags():
    """Another kind or tag is a change, with equal values too, of empty states and of containers."""
    row = only(ps.diff(ps.State(1.0), ps.ParamState(1.0)))
    assert (row.kind, row.what, row.distance) == ("State -> ParamState", ("kind",), 0.0)
    row = only(ps.diff(ps.State(1.0), ps.State(2.0, tag="t")))
    assert (row.what, row.old.shown, row.new.shown) == (
        ("tag", "value"),
        "f32[] tag=()",
        "f32[] tag=('t',)",
    )
    assert only(ps.diff(ps.State(), ps.ParamState())).what == ("kind",)
    assert only(ps.diff({"w": ps.State(1.0)}, {"w": jnp.float32(1)})).kind == "State -> array"
    whole, taken_apart = ps.diff(ps.State(1.0), ps.ParamState([1.0])).rows
    assert (whole.what, taken_apart.what) == (("kind", "disappeared"), ("kind", "appeared"))
    assert (whole.new, taken_apart.old) == (None, None)


def test_diff_of_static_leaves():
    """Leaves that are no arrays are compared by type and value; functions are shown by name."""
    old = {"n": 1, "f": jnp.tanh, "s": "a", "nan": float("nan"), "set": {1}}
    assert not ps.diff(old, {"n": 1, "f": jnp.tanh, "s": "a", "nan": float("nan"), "set": {1}})
    new = {"n": 1.0, "f": jnp.sin, "s": "b", "nan": 0.0, "set": {2}}
    rows = {row.path[0]: row for row in ps.diff(old, new).rows}
    assert set(rows) == set(old)
    assert {(row.kind, row.what) for row in rows.values()} == {("static", ("value",))}
    assert (rows["n"].old.shown, rows["n"].new.shown) == ("1", "1.0")
    assert "tanh" in rows["f"].old.shown
    assert "0x" not in rows["f"].old.shown


def test_diff_of_static_fields():
    """A static field that differs is named; so is a node of another type, in values of states too."""
    row = only(
        ps.diff([cell()], [eqx.tree_at(lambda c: c.hidden, dataclass_with(cell(), 4), cell().hidden)])
    )
    assert (row.place, row.what, row.old.shown, row.new.shown) == ("tree[0].size", ("value",), "3", "4")
    row = only(ps.diff({"a": [jnp.ones(2)]}, {"a": (jnp.ones(2),)}))
    assert (row.place, row.what, row.old.shown, row.new.shown) == (
        "tree['a']",
        ("structure",),
        "list",
        "tuple",
    )
    row = only(ps.diff([ps.State([1, 2])], [ps.State((1, 2))]))
    assert (row.place, row.what) == ("tree[0].value", ("structure",))
    assert only(ps.diff({"a": None}, {"b": None})).what == ("structure",)
    assert [row.what for row in ps.diff([1], (2,)).rows] == [("value",), ("structure",)]


def dataclass_with(module, size):
    """The module with another size."""
    return Cell(module.weight, module.hidden, module.scale, size)


def test_diff_of_shapes_alone():
    """Shapes have no values: they are compared as shapes, and what could not be compared is listed."""
    shapes = eqx.filter_eval_shape(cell)
    same = ps.diff(cell(), shapes)
    assert not same
    assert same.unknown == ("cell.weight", "cell.hidden", "cell.scale")
    assert str(same) == (
        "cell: 0 of 4 changed\n"
        "note: values are not known, only shapes and dtypes: cell.weight, cell.hidden, cell.scale"
    )
    row = only(ps.diff(shapes, ps.update(cell(), {("hidden",): jnp.ones(4)})))
    assert (row.what, row.old.norm, row.new.norm) == (("shape",), None, 2.0)


def test_diff_under_a_trace():
    """Tracers have no values; concrete values inside a trace are compared, keys included."""
    old, new = cell(), ps.update(cell(), {("hidden",): jnp.zeros(3)})
    seen = []

    @jax.jit
    def f(weight):
        traced = ps.update(new, {("weight",): weight})
        seen.append(ps.diff(old, traced))
        seen.append(ps.diff(ps.RandomState(0), ps.RandomState(1)))
        return weight

    key = ps.RandomState(0), ps.RandomState(1)

    @jax.jit
    def g(x):
        seen.append(ps.diff(*key))
        return x

    f(jnp.eye(3))
    g(1.0)
    assert seen[0].unknown == ("cell.weight",)
    assert only(seen[0]).distance == pytest.approx(3**0.5)
    assert (seen[1].unknown, seen[1].rows) == (("tree",), ())
    assert only(seen[2]).differing == 1


def test_diff_of_arrays_that_were_given_up():
    """A donated array has no value any more, and is listed."""
    old = {"x": jnp.ones(3), "y": jnp.ones(2)}
    new = {"x": jax.jit(lambda x: x + 1, donate_argnums=0)(old["x"]), "y": jnp.zeros(2)}
    assert old["x"].is_deleted()
    difference = ps.diff(old, new)
    assert difference.unknown == ("tree['x']",)
    assert only(difference).place == "tree['y']"
    assert ps.diff(old, {"x": jnp.ones(4), "y": old["y"]}).rows[0].old.norm is None


def test_diff_of_live_trees():
    """A live tree is compared by what it holds now, which reads nothing and splits nothing."""
    old = net()
    with ps.record(old) as live:
        assert not ps.diff(old, live)
        live.cells[0].hidden.value = jnp.zeros(3)
        assert only(ps.diff(old, live)).place == "net.cells[0].hidden"
    seen = []

    def peek(rng, x):
        seen.append((ps.diff(rng, rng), ps.diff(rng, ps.RandomState(0))))
        return x

    mapped = ps.vmap2(peek, in_axes=(None, 0))
    assert mapped.explain(ps.RandomState(0), jnp.ones(2)).rows[0].use == "unused"
    assert [(bool(a), a.unknown, bool(b), b.unknown) for a, b in seen] == [
        (False, (), False, ("tree",))
    ] * len(seen)


def test_diff_of_many_unknown_places():
    """A long list of places is cut when printed."""
    many = [jax.ShapeDtypeStruct((), jnp.float32) for _ in range(12)]
    assert str(ps.diff(many, [jnp.ones(())] * 12)).endswith("tree[8], tree[9], and 2 more")


def test_diff_of_other_numpy_arrays():
    """Arrays that are no numbers are compared as they are, and with nothing else."""
    assert not ps.diff([np.array(["a", "b"])], [np.array(["a", "b"])])
    assert only(ps.diff([np.array(["a", "b"])], [np.array(["a", "c"])])).differing == 1
    assert only(ps.diff([np.array(["a"])], [np.array([1])])).what == ("dtype",)
    nothing = np.zeros(3, jax.dtypes.float0)
    assert not ps.diff([nothing], [nothing.copy()])


def test_diff_in_notebooks():
    """HTML has the changed rows and the notes."""
    html = ps.diff({"a": jnp.ones(2)}, {"a": jnp.zeros(2)})._repr_html_()
    assert "<caption>tree: 1 of 1 changed</caption>" in html
    assert '<th style="text-align: right">|new - old|</th>' in html
    unknown = ps.diff([jax.ShapeDtypeStruct((), jnp.float32)], [jnp.ones(())])._repr_html_()
    assert unknown.endswith("<ul><li>values are not known, only shapes and dtypes: tree[0]</li></ul>")
