"""`summary`: a row for each state and each array outside states, and totals by kind."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import pstate as ps
from states.cells import cell, net


def test_summary_prints():
    """A row for each state and array outside states, totals beside their kind, and columns aligned."""
    assert (
        str(ps.summary(net()))
        == repr(ps.summary(net()))
        == """\
net
place                kind         shape     dtype     elements  bytes
---------------------------------------------------------------------
net.cells[0].weight  ParamState   (3, 3)    f32              9     36
net.cells[0].hidden  HiddenState  (3,)      f32              3     12
net.cells[0].scale   array        ()        f16              1      2
net.cells[1].weight  ParamState   (3, 3)    f32              9     36
net.cells[1].hidden  HiddenState  (3,)      f32              3     12
net.cells[1].scale   array        ()        f16              1      2
net.rng              RandomState  ()        key<fry>         1      8
---------------------------------------------------------------------
                     ParamState   2 states                  18     72
                     HiddenState  2 states                   6     24
                     array        2 arrays                   2      4
                     RandomState  1 state                    1      8
                     total        7                         27    108"""
    )


def test_summary_is_data():
    """Rows have paths that `states` knows, places that are code, tags, and shapes as they are."""
    tree = net()
    summed = ps.summary(tree)
    first = summed.rows[0]
    assert (first.path, first.place) == (("cells", 0, "weight"), "net.cells[0].weight")
    assert eval(first.place, {"net": tree}) is tree.cells[0].weight
    assert (first.kind, first.tag, first.shape, first.dtype) == (
        "ParamState",
        ("slow",),
        (3, 3),
        "float32",
    )
    assert (first.size, first.nbytes) == (9, 36)
    states = [row.path for row in summed.rows if row.kind != "array"]
    assert states == list(ps.states(tree))
    total = summed.totals["HiddenState"]
    assert (total.count, total.size, total.nbytes) == (2, 6, 24)
    assert list(summed.totals) == ["ParamState", "HiddenState", "array", "RandomState"]
    assert (summed.total.count, summed.total.size, summed.total.nbytes) == (7, 27, 108)


def test_summary_filters():
    """Filters select states and arrays outside states, as everywhere."""
    places = lambda f: [row.place for row in ps.summary(cell(), f).rows]
    assert places(ps.HiddenState) == ["cell.hidden"]
    assert places("slow") == ["cell.weight"]
    assert places(ps.filter.Trainable) == ["cell.weight", "cell.scale"]
    assert places(None) == []
    assert ps.summary(cell(), None).total.nbytes == 0


def test_summary_of_shapes():
    """The summary of a tree of shapes is that of the tree."""
    assert str(ps.summary(eqx.filter_eval_shape(net))) == str(ps.summary(net()))


def test_summary_of_containers_and_what_is_empty():
    """Arrays of a container have a row each and are one state; an empty state has one without shape."""
    tree = {
        "c": ps.State({"a": jnp.ones((2, 0)), "b": [jnp.arange(3)]}),
        "e": ps.ParamState(),
        "m": None,
    }
    rows = ps.summary(tree).rows
    assert [row.path for row in rows] == [("c",), ("c",), ("e",)]
    assert [row.place for row in rows] == [
        "tree['c'].value['a']",
        "tree['c'].value['b'][0]",
        "tree['e']",
    ]
    assert (rows[2].shape, rows[2].dtype, rows[2].size, rows[2].nbytes) == (None, None, 0, 0)
    assert "tree['e']                ParamState  no array\n" in str(ps.summary(tree))
    assert ps.summary(tree).totals["State"].count == 1
    assert ps.summary(ps.State({})).rows[0].shape is None


def test_summary_of_masked_trees_and_masks():
    """What a mask takes out leaves empty states; the booleans of a mask are no arrays."""
    dynamic, static = eqx.partition(cell(), ps.select(cell()))
    assert [row.shape for row in ps.summary(dynamic).rows] == [(3, 3), None, ()]
    assert [row.shape for row in ps.summary(static).rows] == [None, (3,)]
    assert ps.summary(ps.select(cell())).total.size == 0


def test_summary_counts_keys_with_their_data():
    """Typed keys count their data; raw keys and NumPy arrays are arrays, Python numbers are not."""
    rbg = ps.RandomState(jr.split(jr.key(0, impl="rbg"), 3))
    tree = [rbg, ps.RandomState(jr.PRNGKey(0)), np.ones(2), np.float32(1), 3, 2.5, True, "text"]
    rows = ps.summary(tree).rows
    assert [row.nbytes for row in rows] == [jr.key_data(rbg.value).nbytes, 8, 16, 4]
    assert [row.kind for row in rows] == ["RandomState", "RandomState", "array", "array"]


def test_summary_does_not_read():
    """Looking at a live state leaves it unread, unsplit and writable, in lanes and under `jit`."""
    seen = []

    def step(rng, total, x):
        seen.append(ps.summary({"rng": rng, "total": total}))
        total.value += x

    rng, total = ps.RandomState(0), ps.State(0.0)
    mapped = ps.vmap2(step, in_axes=(None, None, 0), state_out_axes={0: ps.State})
    row = mapped.explain(rng, total, jnp.ones(2)).rows[0]
    assert (row.axis_in, row.use) == ("split", "unused")
    jax.jit(ps.pure(step, argnums=(0, 1)))(rng, total, 1.0)
    with ps.record((rng, total)) as live:
        step(*live, 1.0)
        live[1].value = jnp.ones(2)
        assert ps.summary(live).rows[1].shape == (2,)
    assert len(seen) >= 3
    for summed in seen:
        assert [row.nbytes for row in summed.rows] == [8, 4]


def test_summary_in_notebooks():
    """HTML has the rows, escaped, numbers to the right, and the totals as the foot."""
    html = ps.summary({"<w>": ps.ParamState(jnp.ones((100, 300)))})._repr_html_()
    assert html.startswith("<table><caption>tree</caption><thead><tr><th>place</th>")
    assert "<td>tree[&#x27;&lt;w&gt;&#x27;]</td><td>ParamState</td><td>(100, 300)</td>" in html
    assert '<td style="text-align: right">120,000</td></tr></tfoot></table>' in html
