"""Saving and loading with Equinox, typed keys included: bit for bit, or an error that names the leaf."""

import io
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


def save(tree, file=None):
    file = io.BytesIO() if file is None else file
    eqx.tree_serialise_leaves(file, tree, filter_spec=ps.serialise_filter_spec)
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return file


def load(file, like):
    return eqx.tree_deserialise_leaves(file, like, filter_spec=ps.deserialise_filter_spec)


def assert_bitwise(got, expected):
    assert jtu.tree_structure(got) == jtu.tree_structure(expected)
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(expected), strict=True):
        assert type(a) is type(b)
        if not isinstance(a, jax.Array | np.ndarray | np.generic):
            assert a == b
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jr.key_data(a), jr.key_data(b)
        elif isinstance(a, jax.Array):
            assert a.weak_type == b.weak_type
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def blank(tree):
    """A tree of the same form with other data."""

    def other(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(jnp.zeros_like(jr.key_data(x)), impl=jr.key_impl(x))
        if isinstance(x, jax.Array):
            return jax.lax.full_like(x, 0)
        return type(x)(0) if isinstance(x, bool | int | float | complex) else x

    return jtu.tree_map(other, tree)


def batch_norm(mode="batch"):
    model = ps.nn.from_equinox(eqx.nn.BatchNorm, 3, axis_name="batch", mode=mode)
    return ps.pure(ps.vmap2(model, axis_name="batch"))(jr.normal(jr.key(0), (4, 3)))[1]


TREES = {
    "typed key": ps.RandomState(3),
    "raw key": ps.RandomState(jr.PRNGKey(3)),
    "batch of keys": ps.RandomState(jr.split(jr.key(3), (2, 3))),
    "batch of raw keys": ps.RandomState(jr.split(jr.PRNGKey(3), 3)),
    "no keys": ps.RandomState(jr.split(jr.key(3), 2)[:0]),
    "rbg": ps.RandomState(jr.key(3, impl="rbg")),
    "unsafe_rbg": ps.RandomState(jr.split(jr.key(3, impl="unsafe_rbg"), 2)),
    "bare keys": {"key": jr.key(3), "keys": jr.split(jr.key(4), 2)},
    "bfloat16": ps.State(jnp.array([1.5, -0.0, jnp.nan, jnp.inf], "bfloat16")),
    "float8": ps.State(jnp.array([[0.5], [2.0]], "float8_e4m3fn")),
    "int4": ps.State(jnp.array(-3, "int4")),
    "other types": [ps.State(jnp.ones((2, 0, 3), d)) for d in ("float16", "complex64", "bool", "uint8")],
    "specials": ps.State(jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45])),
    "weak": [ps.State(jnp.array(3)), ps.State(jnp.array(0.1)), ps.State(jnp.broadcast_to(2j, 3))],
    "containers": ps.HiddenState({"a": [jnp.ones(2)], "b": (jr.key(5), None)}, tag="c"),
    "empty": [ps.State(), ps.RandomState(), ps.State(1), ps.State({})],
    "numbers": [0.1, 2**40, True, 0.1j, -3],
    "numpy": [np.arange(3.0), np.float32(0.1), np.int64(2**40)],
    "dropout": ps.nn.Dropout(0.1, key=7),
    "batch norm": batch_norm("batch"),
    "ema": batch_norm("ema"),
    "sequence": eqx.nn.Sequential([eqx.nn.Linear(3, 3, key=jr.key(0)), batch_norm(), ps.nn.Dropout()]),
    "nothing": [],
    "text": ["a", None, jnp.tanh],
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_round_trip(tree, tmp_path):
    """What is loaded is what was saved, bit for bit and type for type, in memory and on disk."""
    assert_bitwise(load(save(tree), blank(tree)), tree)
    save(tree, tmp_path / "model")
    assert_bitwise(load(tmp_path / "model", blank(tree)), tree)


def test_a_trained_model_goes_on():
    """A loaded model, as in a fresh process, takes the same steps as the saved one."""

    def make(key):
        return eqx.nn.Sequential([eqx.nn.Linear(3, 3, key=key), ps.nn.Dropout(0.5, key=key)])

    runs = []

    @eqx.filter_jit
    @ps.pure
    def step(model, xs):
        runs.append(None)
        return ps.vmap2(model)(xs)

    xs = jnp.ones((4, 3))
    _, model = step(make(jr.key(0)), xs)
    loaded = load(save(model), make(jr.key(1)))
    (ys, model), (again, loaded) = step(model, xs), step(loaded, xs)
    np.testing.assert_array_equal(again, ys)
    assert_bitwise(loaded, model)
    assert len(runs) == 1


def test_a_layer_of_equinox_goes_on():
    """Equinox's states tell weak types apart, which no file keeps; a loaded layer trains on."""
    like = ps.nn.from_equinox(eqx.nn.BatchNorm, 3, axis_name="batch", mode="batch")
    loaded = load(save(batch_norm()), like)
    _, new = ps.pure(ps.vmap2(loaded, axis_name="batch"))(jnp.ones((4, 3)))
    assert new.state.value["BatchNorm.batch_counter"] == 2


def test_models_made_by_shape():
    """`eqx.filter_eval_shape` gives a `like` that costs no memory, where no typed key is in the tree."""
    like = eqx.filter_eval_shape(batch_norm)
    assert isinstance(jtu.tree_leaves(like.state)[0], jax.ShapeDtypeStruct)
    loaded = load(save(batch_norm()), like)
    assert eqx.tree_equal(loaded, batch_norm())


def test_files_of_equinox_are_read():
    """A file that Equinox's default saved loads, and without keys ours loads by its default too."""
    model = batch_norm()
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    assert_bitwise(load(file, blank(model)), model)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(save(model), blank(model)), model)


def test_keys_between_other_leaves():
    """Leaves after a key are read from the right place."""
    tree = [jnp.ones(2), jr.split(jr.key(0), 2), 0.5, ps.RandomState(1), "text", jnp.arange(3)]
    assert_bitwise(load(save(tree), blank(tree)), tree)


def test_a_spec_for_a_part_of_the_tree():
    """As Equinox's own specs they go into a prefix, and read nothing for what is not to be loaded."""
    tree = {"a": ps.RandomState(1), "b": jnp.ones(2)}
    file = io.BytesIO()
    nothing = lambda f, x: None
    eqx.tree_serialise_leaves(file, tree, {"a": ps.serialise_filter_spec, "b": nothing})
    file.seek(0)
    like = blank(tree)
    keep = lambda f, x: x
    loaded = eqx.tree_deserialise_leaves(file, like, {"a": ps.deserialise_filter_spec, "b": keep})
    assert_bitwise(loaded, {"a": tree["a"], "b": like["b"]})


# What does not fit --------------------------------------------------------------------------------

MISFITS = {
    "implementation": (jr.key(0), jr.key(0, impl="rbg"), "key<threefry2x32>[]", "key<rbg>[]"),
    "batch of keys": (jr.split(jr.key(0), 3), jr.key(0), "key<threefry2x32>[3]", "key<threefry2x32>[]"),
    "key for array": (jr.key(0), jnp.ones(2), "key<threefry2x32>[]", "float32[2]"),
    "array for key": (jnp.ones(2), jr.key(0), "float32[2]", "key<threefry2x32>[]"),
    "raw for typed": (jr.PRNGKey(0), jr.key(0), "uint32[2]", "key<threefry2x32>[]"),
    "key for raw": (jr.key(0), jr.PRNGKey(0), "key<threefry2x32>[]", "uint32[2]"),
    "key for number": (jr.key(0), 0.5, "key<threefry2x32>[]", "float[]"),
    "shape": (jnp.ones((2, 3)), jnp.ones(3), "float32[2, 3]", "float32[3]"),
    "dtype": (jnp.ones(3), jnp.ones(3, int), "float32[3]", "int32[3]"),
    "bfloat16": (jnp.ones(3, "bfloat16"), jnp.ones(3, "float16"), "bfloat16[3]", "float16[3]"),
    "float8": (
        jnp.ones(3, "float8_e4m3fn"),
        jnp.ones(3, "float8_e5m2"),
        "float8_e4m3fn[3]",
        "float8_e5m2[3]",
    ),
    "number": (True, 0.5, "bool[]", "float[]"),
    "array for number": (jnp.ones(3), 0.5, "float[3]", "float[]"),
    "number for array": (0.5, jnp.ones(3), "float64[]", "float32[3]"),
}


@pytest.mark.parametrize(("saved", "like", "held", "wanted"), MISFITS.values(), ids=MISFITS)
def test_leaves_that_do_not_fit(saved, like, held, wanted):
    """The first leaf that differs is named, with both sides and its path."""
    tree = {"first": jnp.zeros(2), "net": [saved], "z": jnp.ones(5)}
    with pytest.raises(RuntimeError, match=r"Error at leaf with path .*'net'.*idx=0") as caught:
        load(save(tree), {"first": jnp.zeros(2), "net": [like], "z": jnp.ones(6)})
    assert re.match(
        f"^The file holds {re.escape(held)} where `like` has {re.escape(wanted)}. Build `like` as the "
        "saved tree was built. To copy the states that fit into a model that is built differently:\n",
        str(_root(caught.value)),
    )


def _root(error):
    return error if error.__cause__ is None else _root(error.__cause__)


def test_files_that_end_early():
    """A tree with more leaves than the file has is refused at the first leaf that is missing."""
    with pytest.raises(RuntimeError, match=r"Error at leaf with path .*'b'") as caught:
        load(save({"a": jr.key(0)}), {"a": jr.key(0), "b": jr.key(1)})
    assert re.match(
        r"^The file ends where `like` has key<threefry2x32>\[\]. Build `like` as",
        str(_root(caught.value)),
    )


def test_keys_by_shape_are_refused():
    """Equinox does not load typed keys instead of shapes; the message says what works."""
    file = save(ps.RandomState(5))
    with pytest.raises(RuntimeError, match="Error at leaf with path") as caught:
        load(file, eqx.filter_eval_shape(ps.RandomState, 0))
    assert re.match(
        r"^`like` has a shape here, ShapeDtypeStruct\(shape=\(\), dtype=key<fry>\), but Equinox loads "
        r"typed keys only where `like` has keys. Build `like` with arrays: like = Model\(...\), not "
        r"eqx.filter_eval_shape\(Model, ...\)\.$",
        str(_root(caught.value)),
    )
    file.seek(0)
    assert load(file, ps.RandomState(0)).value == jr.key(5)


# Into another model -------------------------------------------------------------------------------


class Small(eqx.Module):
    linear: eqx.nn.Linear
    hidden: ps.HiddenState
    rng: ps.RandomState


class Grown(eqx.Module):
    linear: eqx.nn.Linear
    hidden: ps.HiddenState
    rng: ps.RandomState
    trace: ps.State


def test_into_a_model_built_otherwise():
    """A file of an older model gives a newer one the states that both have, and lists the others."""

    def small(seed):
        linear = eqx.nn.Linear(2, 2, key=jr.key(seed))
        return {"net": Small(linear, ps.HiddenState(jnp.full(2, 1.0 * seed)), ps.RandomState(seed))}

    def grown():
        linear = eqx.nn.Linear(2, 5, key=jr.key(0))
        return {"net": Grown(linear, ps.HiddenState(jnp.zeros(2)), ps.RandomState(0), ps.State(7.0))}

    old = {**small(3), "count": ps.State(4)}
    file = save(old)
    with pytest.raises(RuntimeError, match="Error at leaf with path"):
        load(file, grown())
    file.seek(0)
    saved = load(file, {**small(0), "count": ps.State(0)})
    with pytest.warns(
        ps.UnmatchedPathWarning,
        match=r"^update\(strict=False\): values without a state, which are skipped: \('count',\); "
        r"states without a value, which keep their own: \('net', 'trace'\)\.$",
    ):
        model = ps.update(grown(), ps.states(saved), strict=False)
    assert model["net"].hidden.value.tolist() == [3, 3]
    assert model["net"].rng.value == jr.key(3)
    assert model["net"].trace.value == 7
    assert model["net"].linear.weight.shape == (5, 2)
