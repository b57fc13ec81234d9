"""Messages about shards: specs, meshes, and values that differ between shards."""

import functools as ft
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import pstate as ps
from shard_map.meshes import mesh
from whole.messages import case, option, run, tree


X = jnp.arange(8.0)
HERE = mesh(4)
over = ft.partial(ps.shard_map2, mesh=HERE, in_specs=(P(), P("data")), out_specs=P("data"))


def last(t, x):
    t["s"].value = x.sum()
    return x


# Values that differ between shards ------------------------------------------------------------------


@case(
    ps.BatchAxisError,
    "`t['s']` (State) leaves by P() (as it came in), so as the same in all shards along the mesh axis "
    "'data', but its value differs between them.",
)
def a_state_that_differs():
    text = yield lambda: ps.pure(over(last))(tree(0.0), X)
    [line] = re.findall(r"function: (value = .*?);", text)
    # In the function, by a rule, and as a part for each shard: the three ways that the message names.
    pattern = jax.shard_map(
        lambda value: run(line, value=value).value, mesh=HERE, in_specs=P("data"), out_specs=P("data")
    )
    np.testing.assert_array_equal(pattern(X[:4]), np.full(4, 1.5))
    _, new = ps.pure(over(last, **option(text, "state_out_specs")))(tree(0.0), X)
    assert new["s"].value == X.sum() / 4

    def own(t, x):
        t["s"].value = x.sum()[None]
        return x

    _, new = ps.pure(over(own, **option(text, "state_in_specs")))(tree(jnp.zeros(4)), X)
    np.testing.assert_array_equal(new["s"].value, X.reshape(4, 2).sum(axis=1))


@case(ps.BatchAxisError, "`t['s']` (State)", "jax.lax.pmax(value, 'data')")
def an_integer_that_differs():
    count = lambda t, x: setattr(t["s"], "value", x.argmax().astype(jnp.int32)) or x
    text = yield lambda: ps.pure(over(count))(tree(0), X)
    assert ps.pure(over(count, **option(text, "state_out_specs")))(tree(0), X)[1]["s"].value == 1


@case(ps.BatchAxisError, "`rng` (RandomState) leaves by P()", "Or rather give each shard a part of it")
def a_key_that_differs():
    def reseed(rng, x):
        rng.value = jax.random.fold_in(rng.value, jax.lax.axis_index("data"))
        return x

    text = yield lambda: ps.pure(over(reseed, state_in_specs={P(): ps.RandomState}))(
        ps.RandomState(0), X
    )
    assert option(text, "state_in_specs") == {"state_in_specs": {P("data"): ps.RandomState}}


@case(ps.BatchAxisError, "`out['n']` leaves by P() (out_specs=P())", "differs between them")
def an_output_that_differs():
    f = lambda t, x: {"n": x.sum(), "x": x}
    text = yield lambda: over(f, out_specs={"n": P(), "x": P("data")})(tree(), X)
    assert "return value[None], with out_specs=P('data')." in text
    g = lambda t, x: {"n": x.sum()[None], "x": x}
    assert over(g)(tree(), X)["n"].shape == (4,)
    h = lambda t, x: {"n": jax.lax.pmean(x.sum(), "data"), "x": x}
    assert over(h, out_specs={"n": P(), "x": P("data")})(tree(), X)["n"] == 7


@case(ps.BatchAxisError, "`out` (State) leaves by P()", "state_out_specs={P('data'): ps.State}")
def a_state_in_the_output_that_differs():
    f = lambda t, x: ps.State(x)
    text = yield lambda: over(f, out_specs=P())(tree(), X)
    out = over(f, out_specs=P(), **option(text, "state_out_specs", 1))(tree(), X)
    np.testing.assert_array_equal(out.value, X)


@case(ps.BatchAxisError, "along the mesh axis 'model'")
def a_value_that_differs_along_the_other_axis():
    f = lambda t, x: jax.lax.psum(x, "data")
    go = ft.partial(ps.shard_map2, mesh=mesh(2, 2), in_specs=(P(), P("data", "model")))
    x = jnp.arange(16.0).reshape(4, 4)
    yield lambda: go(f, out_specs=P())(tree(), x)
    np.testing.assert_array_equal(go(f, out_specs=P(None, "model"))(tree(), x), x[:2] + x[2:])


@case(ps.UnmatchedFilterWarning, "state_in_specs={P('data'): OfType(HiddenState)}", "matches no state")
def a_filter_of_shards_that_matches_nothing():
    f = lambda t, x: x
    yield lambda: over(f, state_in_specs={P("data"): ps.HiddenState})(tree(), X)


# Shapes -------------------------------------------------------------------------------------------


@case(ps.BatchAxisError, "`x`", "(7,)", "axis 0", "4 shards")
def an_axis_that_does_not_divide():
    f = lambda t, x: x
    yield lambda: over(f)(tree(), X[:7])
    np.testing.assert_array_equal(over(f)(tree(), X), X)


@case(ps.BatchAxisError, "`t['s']`", "(6, 2)", "axis 0", "4 shards")
def a_state_that_does_not_divide():
    f = lambda t, x: x
    yield lambda: over(f, state_in_specs={P("data"): ps.State})(tree(jnp.ones((6, 2))), X)


@case(
    ps.BatchAxisError, "`out` leaves by P('data')", "a shard's value has shape ()", "value = value[None]"
)
def a_scalar_that_is_put_together():
    f = lambda t, x: x.sum()
    yield lambda: over(f)(tree(), X)
    assert over(lambda t, x: x.sum()[None])(tree(), X).shape == (4,)


@case(ps.BatchAxisError, "came in by P('data') with shape (2,) in each shard", "with shape (2, 3)")
def a_block_of_another_shape():
    def grow(t, x):
        t["s"].value = jnp.zeros((2, 3))
        return x

    go = ft.partial(over, state_in_specs={P("data"): ps.State})
    text = yield lambda: ps.pure(go(grow))(tree(jnp.zeros(8)), X)
    _, new = ps.pure(go(grow, **option(text, "state_out_specs")))(tree(jnp.zeros(8)), X)
    assert new["s"].value.shape == (8, 3)


# Meshes and their axes ------------------------------------------------------------------------------


@case(ValueError, "needs a mesh", "none was passed", "jax.make_mesh")
def no_mesh():
    f = lambda t, x: x
    text = yield lambda: ps.shard_map2(f, in_specs=(P(), P("data")), out_specs=P("data"))(tree(), X)
    [line] = re.findall(r"(mesh = jax.make_mesh\(.*?\('data',\)\))", text)
    made = run(line).mesh
    np.testing.assert_array_equal(over(f, mesh=made)(tree(), X), X)


@case(ValueError, "names the axis 'batch'", "in_specs=P('batch') for `x`")
def an_axis_that_the_mesh_lacks():
    yield lambda: over(lambda t, x: x, in_specs=(P(), P("batch")))(tree(), X)


@case(ValueError, "names the axis 'batch'", "out_specs of ps.shard_map2(")
def an_axis_that_the_mesh_lacks_in_out_specs():
    yield lambda: over(lambda t, x: x, out_specs=P("batch"))(tree(), X)


@case(ValueError, "axis_names=('batch',) of", "names 'batch'", "are ('data',)")
def axis_names_that_the_mesh_lacks():
    f = lambda t, x: x
    text = yield lambda: over(f, axis_names="batch")(tree(), X)
    np.testing.assert_array_equal(over(f, **option(text, "axis_names", 2))(tree(), X), X)


@case(ValueError, "names the mesh axis 'model'", "maps over ('data',) only")
def an_axis_that_is_not_mapped():
    f = lambda t, x: x
    go = ft.partial(over, f, mesh=mesh(2, 2), in_specs=(P(), P("model")), out_specs=P("model"))
    text = yield lambda: go(axis_names="data")(tree(), X)
    np.testing.assert_array_equal(go(**option(text, "axis_names"))(tree(), X), X)


@case(ValueError, "is called in the body of another mapping over shards, which takes all axes")
def a_mapping_over_shards_in_another():
    inner = ps.shard_map2(lambda x: x, in_specs=P("model"), out_specs=P("model"))
    outer = ft.partial(over, lambda t, x: inner(x), mesh=mesh(2, 2))
    yield lambda: outer()(tree(), X)
    np.testing.assert_array_equal(outer(axis_names="data")(tree(), X), X)


@case(ValueError, "names another mesh", "Leave mesh out")
def a_mapping_over_the_shards_of_another_mesh():
    go = ft.partial(ps.shard_map2, lambda x: x, in_specs=P("data"), out_specs=P("data"))
    inner = go(mesh=mesh(2))
    outer = ft.partial(over, mesh=mesh(2, 2), axis_names="model", in_specs=(P(), P()), out_specs=P())
    yield lambda: outer(lambda t, x: inner(x))(tree(), X)
    np.testing.assert_array_equal(outer(lambda t, x: go()(x))(tree(), X), X)


@case(NotImplementedError, "JAX cannot run jax.pmap inside jax.shard_map")
def a_mapping_over_devices_in_shards():
    yield lambda: over(lambda t, x: ps.pmap2(lambda x: x)(x))(tree(), X)
    np.testing.assert_array_equal(over(lambda t, x: ps.vmap2(lambda x: x)(x))(tree(), X), X)


@case(NotImplementedError, "JAX cannot run jax.shard_map inside jax.pmap")
def a_mapping_over_shards_in_devices():
    yield lambda: ps.pmap2(lambda x: over(lambda t, x: x)(tree(), x))(X[None])


# Specs that do not fit ------------------------------------------------------------------------------


@case(ValueError, "in_specs=(P(), P('data'), P()) has 3 entries", "with 2 positional arguments")
def in_specs_of_the_wrong_length():
    f = lambda t, x: x
    text = yield lambda: over(f, in_specs=(P(), P("data"), P()))(tree(), X)
    np.testing.assert_array_equal(over(f, **option(text, "in_specs", 2))(tree(), X), X)


@case(ValueError, "in_specs names ['z']", "its arguments are ['t', 'x']")
def in_specs_by_a_wrong_name():
    yield lambda: over(lambda t, x: x, in_specs={"z": P("data")})(tree(), X)


@case(ValueError, "is not a prefix of its structure")
def in_specs_that_are_no_prefix():
    f = lambda t, x: x
    text = yield lambda: over(f, in_specs=(P(), {"a": P("data")}))(tree(), X)
    np.testing.assert_array_equal(over(f, **option(text, "in_specs", 1))(tree(), X), X)


@case(ValueError, "is not a prefix of the output's structure")
def out_specs_that_are_no_prefix():
    f = lambda t, x: x
    text = yield lambda: over(f, out_specs={"a": P("data")})(tree(), X)
    np.testing.assert_array_equal(over(f, **option(text, "out_specs", 1))(tree(), X), X)


@case(TypeError, "in_specs are specs, jax.sharding.PartitionSpec; got 0")
def in_specs_that_are_axes():
    f = lambda x: x
    text = yield lambda: over(f, in_specs=0)
    np.testing.assert_array_equal(over(f, **option(text, "in_specs"))(X), X)


@case(TypeError, "The keys of state_in_specs are specs", "got 0")
def rules_that_are_axes():
    yield lambda: over(lambda x: x, state_in_specs={0: ps.State})


@case(TypeError, "a dict of filters by spec; got <class")
def rules_that_are_a_filter():
    yield lambda: over(lambda x: x, state_in_specs=ps.State)


@case(TypeError, "mesh is a jax.sharding.Mesh; got 4 of type int")
def a_mesh_that_is_a_number():
    f = lambda t, x: x
    text = yield lambda: over(f, mesh=4)
    np.testing.assert_array_equal(over(f, **option(text, "mesh"))(tree(), X), X)


@case(TypeError, "The specs of `x` in in_specs", "got 'data'")
def a_function_of_the_leaf_that_gives_no_spec():
    yield lambda: over(lambda t, x: x, in_specs=(P(), lambda leaf: "data"))(tree(), X)


@case(ps.FrozenStateError, "`t['s']` (State) was written, but the new value would be lost")
def a_write_in_shards_that_nobody_takes():
    def count(t, x):
        t["s"].value = t["s"].value + 1
        return x

    yield lambda: over(count)(tree(0.0), X)
    assert ps.pure(over(count))(tree(0.0), X)[1]["s"].value == 1
