"""`vmap2` and `StatefulMapping`: axes in and out, policies, and what a mapping shows of itself."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


same = np.testing.assert_array_equal
XS = jnp.arange(3.0)


def write(tree, x):
    tree["s"].value = tree["s"].value + x
    return x


def tree(value=0.0, kind=ps.State):
    return {"s": kind(value)}


class Scaled(eqx.Module):
    gain: ps.ParamState
    seen: ps.HiddenState

    def __call__(self, x):
        self.seen.value = self.seen.value + x
        return self.gain.value * x

    @ps.vmap2(state_in_axes={0: ps.HiddenState})
    def each(self, x):
        return self(x)

    @ps.vmap2
    def read(self, x):
        return self.gain.value * x


def scaled(*lanes):
    return Scaled(ps.ParamState(2.0), ps.HiddenState(jnp.zeros(lanes)))


# Axes in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "in_axes",
    [(0, None), [0, None], {"x": 0, "pair": None}, (0, (None, None)), (-1, {"a": None})],
    ids=str,
)
def test_forms_of_in_axes(in_axes):
    """Integers, prefixes, lists and dicts by argument name mean the same."""
    pair = {"a": jnp.ones(2)} if isinstance(in_axes, tuple) and in_axes[0] == -1 else (jnp.ones(2), XS)
    out = ps.vmap2(lambda x, pair: x + jtu.tree_leaves(pair)[0].sum(), in_axes=in_axes)(XS, pair)
    same(out, XS + 2)


def test_what_is_no_array_is_broadcast():
    """Numbers, strings, functions and `None` are the same in all lanes, whatever `in_axes` says."""
    out = ps.vmap2(lambda x, n, f, none: f(x) * n)(XS, 2, jnp.square, None)
    same(out, 2 * XS**2)
    same(ps.vmap2(lambda d: d["x"] if d["go"] else 0)({"x": np.arange(3), "go": True}), [0, 1, 2])


def test_defaults_of_kinds():
    """A `NonBatchState` is broadcast and others go along their argument's axis; rules come first."""

    def f(t):
        return t["non"].value.shape, t["s"].value.shape, t["raw"].shape

    t = {
        "non": ps.NonBatchState(jnp.ones((3, 2))),
        "s": ps.State(jnp.ones((3, 2))),
        "raw": jnp.ones((3, 2)),
    }

    def shapes(**options):
        seen = []
        ps.vmap2(lambda t, x: seen.append(f(t)) or x, **options)(t, XS)
        return seen[0]

    assert shapes() == ((3, 2), (2,), (2,))
    assert shapes(in_axes=(None, 0)) == ((3, 2), (3, 2), (3, 2))
    assert shapes(state_in_axes={0: ps.NonBatchState}) == ((2,), (2,), (2,))
    assert shapes(state_in_axes={None: ...}) == ((3, 2), (3, 2), (2,))
    first = {None: ps.filter.PathContains("s"), 0: ...}
    assert shapes(in_axes=(None, 0), state_in_axes=first) == ((2,), (3, 2), (3, 2))
    assert shapes(in_axes=(None, 0), state_in_axes=ps.NonBatchState) == ((2,), (3, 2), (3, 2))


def test_axis_size_and_zero_lanes():
    """The number of lanes may be named; no lanes at all work as in `jax.vmap`."""
    same(ps.vmap2(lambda x: x, in_axes=None, axis_size=2)(1.0), [1, 1])
    out, new = ps.pure(ps.vmap2(write))(tree(jnp.zeros((0, 2))), jnp.zeros((0, 2)))
    assert (out.shape, new["s"].value.shape) == ((0, 2), (0, 2))
    assert ps.vmap2(jnp.sum)(jnp.ones((0, 4))).shape == jax.vmap(jnp.sum)(jnp.ones((0, 4))).shape
    out, rng = ps.pure(ps.vmap2(lambda rng, x: rng.normal() + x))(ps.RandomState(0), jnp.zeros(0))
    assert (out.shape, rng.value.shape) == ((0,), ())


# Axes out -----------------------------------------------------------------------------------------


def test_out_axes_prefixes():
    """`out_axes` is a prefix of the output; numbers, `None` and strings may stand in it."""

    def f(x):
        return {"a": jnp.stack([x, x]), "b": (x, 1, None)}, "name", 2.5

    out, name, number = ps.vmap2(f, out_axes=({"a": 1, "b": 0}, None, None))(XS)
    assert (out["a"].shape, out["b"][0].shape, out["b"][2], name) == ((2, 3), (3,), None, "name")
    same(out["b"][1], [1, 1, 1])
    assert (number.shape, number) == ((), 2.5)


def test_policies():
    """An undeclared write that differs raises, warns, or is stacked silently."""
    mapped = ft.partial(ps.vmap2, write, in_axes=(None, 0))
    with pytest.raises(ps.BatchAxisError):
        ps.pure(mapped())(tree(), XS)
    with pytest.warns(ps.BatchAxisWarning, match="no axis is declared"):
        _, new = ps.pure(mapped(unexpected_out_state_mapping="warn"))(tree(), XS)
    same(new["s"].value, XS)
    _, new = ps.pure(mapped(unexpected_out_state_mapping="ignore"))(tree(), XS)
    same(new["s"].value, XS)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_state_moves_to_another_axis(axis):
    """A state may come in along one axis and go out along another."""
    mapped = ps.vmap2(write, state_out_axes={axis: ps.State})
    value = jnp.arange(6.0).reshape(3, 2)
    _, new = ps.pure(mapped)(tree(value), XS)
    same(new["s"].value, jnp.moveaxis(value + XS[:, None], 0, axis))


def test_none_and_reducers_as_keys():
    """`None` asserts that lanes agree; a callable takes the stacked lanes to one value."""
    mapped = ft.partial(ps.vmap2, write, in_axes=(None, 0))
    agree = ps.vmap2(lambda t, x: write(t, 1.0), in_axes=(None, 0), state_out_axes={None: ps.State})
    assert ps.pure(agree)(tree(), XS)[1]["s"].value == 1
    for reducer in (ft.partial(jnp.mean, axis=0), lambda lanes: lanes[0] * 0 + 1, jnp.median):
        assert ps.pure(mapped(state_out_axes={reducer: ps.State}))(tree(), XS)[1]["s"].value == 1
    first = {jnp.sum: ps.ShortTermState, jnp.max: ps.State}
    t = {"s": ps.State(0.0), "h": ps.HiddenState(0.0)}
    both = ps.vmap2(
        lambda t, x: [write({"s": s}, x) for s in t.values()], in_axes=(None, 0), state_out_axes=first
    )
    _, new = ps.pure(both)(t, XS)
    assert (new["s"].value, new["h"].value) == (2, 3)


def test_states_in_outputs():
    """States made in lanes take `state_out_axes`, then their kind, then `out_axes`."""

    def make(x):
        return [ps.ParamState(jnp.full(2, x)), ps.NonBatchState(jnp.ones(2)), ps.State(jnp.full(2, x))]

    param, non, other = ps.vmap2(make, out_axes=1, state_out_axes={0: ps.ParamState})(XS)
    assert (param.value.shape, non.value.shape, other.value.shape) == ((3, 2), (2,), (2, 3))


@pytest.mark.parametrize("out_axes", [0, 1])
def test_a_mapped_constructor_keeps_configuration(out_axes):
    """Numbers, functions and static fields inside modules stay what they are."""
    keys = jax.random.split(jax.random.key(0), 5)
    mlp = ps.vmap2(lambda key: eqx.nn.MLP(2, 3, 4, 1, key=key), out_axes=out_axes)(keys)
    mlp = jtu.tree_map(lambda x: jnp.moveaxis(x, out_axes, 0) if eqx.is_array(x) else x, mlp)
    assert mlp.layers[0].weight.shape == (5, 4, 2)
    assert mlp.depth == 1
    assert mlp.activation.__name__ == "relu"


# Callables ----------------------------------------------------------------------------------------


def test_methods_and_decorators():
    """A bound module is not counted and is broadcast; decorated methods map their own arguments."""
    model = scaled(3)
    for mapped in (
        ps.vmap2(model, state_in_axes={0: ps.HiddenState}),
        ps.vmap2(model.__call__, in_axes=(0,), state_in_axes=ps.HiddenState),
        model.each,
    ):
        out, new = ps.pure(mapped)(XS)
        same(out, 2 * XS)
        same(new.seen.value, XS)
        assert new.gain.value is model.gain.value
    same(model.read(XS), 2 * XS)

    @ps.vmap2
    def double(x):
        return 2 * x

    @ps.vmap2(in_axes=1, out_axes=1)
    def first(x):
        return x[:1]

    same(double(XS), 2 * XS)
    assert first(jnp.ones((2, 3))).shape == (1, 3)


def test_writes_inside_a_recording():
    """Called inside a recording a mapping writes into the live states."""
    with ps.record(scaled(3)) as live:
        live.each(XS)
        live.each(XS)
    same(ps.freeze(live).seen.value, 2 * XS)


@pytest.mark.parametrize("fn", [jnp.sin, jnp.add, jax.nn.relu, jnp.linalg.norm, abs])
def test_other_peoples_functions(fn):
    """Library functions, ufuncs and builtins map like one's own."""
    args = (jnp.ones((3, 2)),) * (2 if fn is jnp.add else 1)
    same(ps.vmap2(fn)(*args), jax.vmap(fn)(*args))


def test_classes_static_and_class_methods():
    """Constructors, static and class methods map."""

    class Made(eqx.Module):
        s: ps.State

        @classmethod
        def of(cls, x):
            return cls(ps.State(x))

        @staticmethod
        @ps.vmap2
        def twice(x):
            return 2 * x

    same(ps.vmap2(Made.of)(XS).s.value, XS)
    same(ps.vmap2(Made)(ps.State(XS)).s.value, XS)
    same(Made.twice(XS), 2 * XS)


# StatefulMapping ----------------------------------------------------------------------------------


def test_static_arguments():
    """Static arguments reach the body as they are, from either end and by name."""

    def f(x, mode, *, n=1):
        return x * {"a": 2, "b": 3}[mode] * n

    for number in (1, -1, (1,)):
        mapped = ps.StatefulMapping(f, in_axes=(0, None), static_argnums=number, static_argnames="n")
        same(mapped(XS, "a", n=2), 4 * XS)
        same(mapped(XS, "b"), 3 * XS)


def test_a_static_argument_given_back():
    """What `pure` gives back of a static argument is that argument."""
    mapped = ps.StatefulMapping(lambda n, t, x: write(t, n * x), (None, 0, 0), static_argnums=0)
    out = ps.pure(mapped, argnums=(0, 1))(2, tree(XS), XS)
    assert out[1][0] == 2


def test_other_mapping_functions():
    """A partial of `jax.vmap` is `jax.vmap`; of an unknown function nothing is inferred."""

    def mine(fun, **options):
        return jax.vmap(fun, **options)

    partial = ps.StatefulMapping(write, (None, 0), mapping_fn=ft.partial(jax.vmap, spmd_axis_name=None))
    one = ps.vmap2(lambda t, x: write(t, 1.0), in_axes=(None, 0), spmd_axis_name="lanes")
    assert ps.pure(one)(tree(), XS)[1]["s"].value == 1
    with pytest.raises(ps.BatchAxisError, match="differs between lanes"):
        ps.pure(partial)(tree(), XS)
    unknown = ps.StatefulMapping(lambda t, x: write(t, 1.0), (None, 0), mapping_fn=mine)
    with pytest.raises(ps.BatchAxisError, match="may differ between lanes"):
        ps.pure(unknown)(tree(), XS)
    declared = ps.StatefulMapping(write, mapping_fn=mine)
    same(ps.pure(declared)(tree(jnp.zeros(3)), XS)[1]["s"].value, XS)


def test_a_mapping_is_a_module():
    """Its dynamic part is the callable it wraps; two made alike have one structure."""
    model, options = scaled(3), {"state_in_axes": {0: ps.HiddenState}}
    mapped = ps.vmap2(model, **options)
    leaves = zip(jtu.tree_leaves(mapped), jtu.tree_leaves(model), strict=True)
    assert all(a is b for a, b in leaves)
    assert jtu.tree_structure(mapped) == jtu.tree_structure(ps.vmap2(model, **options))
    assert jtu.tree_structure(mapped) != jtu.tree_structure(ps.vmap2(model))
    _, new = eqx.filter_jit(lambda m, xs: ps.pure(m)(xs))(mapped, XS)
    same(new.seen.value, XS)
    doubled = eqx.tree_at(lambda m: m.fun.gain.value, mapped, jnp.float32(4))
    same(ps.pure(doubled)(XS)[0], 4 * XS)


def test_shown_attributes():
    """A mapping shows what it was made with."""
    mapped = ps.vmap2(
        write, in_axes=[0, None], out_axes=1, state_in_axes=ps.State, axis_name="i", axis_size=3
    )
    assert mapped.origin_fun is write
    assert (mapped.in_axes, mapped.out_axes) == ((0, None), 1)
    assert (mapped.state_in_axes, mapped.state_out_axes) == ({0: ps.State}, {})
    assert (mapped.axis_name, mapped.axis_size, mapped.__name__) == ("i", 3, "write")


# Looking ------------------------------------------------------------------------------------------


def test_explain():
    """The plan of a call is a table of text and HTML; nothing runs, and shapes alone suffice."""
    mapped = ps.vmap2(Scaled.__call__, in_axes=(None, 0), state_in_axes={0: ps.HiddenState, 1: "absent"})
    shapes = jax.eval_shape(lambda: (scaled(3), XS))
    runs = []
    options = {"in_axes": (None, 0), "state_in_axes": {0: ps.HiddenState}}
    explained = ps.vmap2(lambda m, x: runs.append(x) or m(x), **options).explain(*shapes)
    assert str(mapped.explain(*shapes)) == str(mapped.explain(scaled(3), XS))
    assert len(runs) == 1
    assert isinstance(runs[0], jax.core.Tracer)
    rows = {row.place: row for row in explained.rows}
    assert (rows["m.gain"].axis_in, rows["m.gain"].use, rows["m.gain"].axis_out) == (
        "shared",
        "read",
        "shared",
    )
    assert (rows["m.seen"].axis_in, rows["m.seen"].use, rows["m.seen"].axis_out) == (
        "0",
        "read, written",
        "0",
    )
    assert (rows["x"].kind, rows["x"].shape) == ("array", "f32[]")
    assert (explained.axis_size, explained.bytes_mapped, explained.bytes_broadcast) == (3, 24, 4)
    text = str(mapped.explain(*shapes))
    assert "note: state_in_axes {1: WithTag('absent')} matches no state" in text
    assert "scaled.seen  HiddenState" in text
    html = mapped.explain(*shapes)._repr_html_()
    assert html.startswith("<table>")
    assert "<td>scaled.seen</td>" in html
    assert "&#x27;absent&#x27;" in html


def test_explain_tells_splits_reductions_and_shadows():
    """Random states, reduced states and filters behind earlier ones are told."""
    mapped = ps.vmap2(
        lambda rng, t, x: write(t, rng.normal()),
        in_axes=(0, None, 0),
        state_in_axes={None: ps.filter.PathContains("s"), 1: ps.filter.WithTag("t")},
        state_out_axes={jnp.sum: ps.filter.PathContains("s")},
    )
    explained = mapped.explain(ps.RandomState(0), {"s": ps.State(0.0, tag="t")}, XS)
    rng, state, _ = explained.rows
    assert (rng.axis_in, rng.use, rng.axis_out) == ("split", "read, split, written", "shared")
    assert (state.axis_in, state.axis_out) == ("shared", "reduced")
    assert explained.notes == ("state_in_axes {1: WithTag('t')} is shadowed by an earlier filter",)


def test_lanes():
    """A lane runs eagerly, with the values and draws it has in the mapping."""
    seen = []

    def body(rng, t, x):
        seen.append(x.item() if not isinstance(x, jax.core.Tracer) else None)
        return write(t, x) + rng.normal()

    mapped, args = ps.vmap2(body), (ps.RandomState(0), tree(XS), XS)
    out, _ = ps.pure(mapped, argnums=(0, 1))(*args)
    for i in (0, 2, -1):
        one, (_, new) = ps.pure(mapped.lane(i), argnums=(0, 1))(*args)
        assert (one, new["s"].value) == (out[i], 2 * XS[i])
    assert seen == [None, 0, 2, 2]


def test_a_number_where_an_array_was():
    """The same argument may be an array in one call and a number in another."""
    mapped = ps.vmap2(lambda x, n: x * n, in_axes=(0, None))
    same(mapped(XS, jnp.float32(2)), 2 * XS)
    same(mapped(XS, 2.0), 2 * XS)
