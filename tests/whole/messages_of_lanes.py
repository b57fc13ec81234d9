"""Messages about lanes: axes in and out, options and static leaves."""

import functools as ft
import re

import jax.numpy as jnp
import pytest

import pstate as ps
from whole.messages import XS, Membrane, add, case, counter, option, run, step, tree


# Axes going in ------------------------------------------------------------------------------------


@case(ValueError, "in_axes=0 maps axis 0 of `b`, which has shape ()", "in_axes=(0, None)")
def an_axis_that_an_array_does_not_have():
    text = yield lambda: ps.vmap2(add)(XS, jnp.float32(1))
    assert ps.vmap2(add, **option(text, "in_axes", 1))(XS, jnp.float32(1)).shape == (3,)


@case(ValueError, "axis 0 of `gain`")
def an_axis_that_a_keyword_argument_does_not_have():
    f = lambda x, *, gain: x * gain
    text = yield lambda: ps.vmap2(f)(XS, gain=jnp.float32(2))
    assert ps.vmap2(f, **option(text, "in_axes", 1))(XS, gain=jnp.float32(2))[2] == 4


@case(ps.BatchAxisError, "maps axis 0 of `t['s']` (State), which has shape ()")
def an_axis_that_a_state_does_not_have():
    text = yield lambda: ps.vmap2(lambda t, x: t["s"].value + x)(tree(1.0), XS)
    read = lambda t, x: t["s"].value + x
    assert ps.vmap2(read, **option(text, "state_in_axes"))(tree(1.0), XS).shape == (3,)
    wide = run(re.findall(r"t = ps\.broadcast\(.*\)", text)[0], t=tree(1.0)).t
    assert ps.pure(ps.vmap2(step))(wide, XS)[1]["s"].value.shape == (3,)


@case(ps.BatchAxisError, "of `rng` (RandomState), which has shape (): one key, not a batch")
def an_axis_of_one_key():
    draw = lambda rng, x: rng.normal() + x
    text = yield lambda: ps.vmap2(draw, state_in_axes={0: ps.RandomState})(ps.RandomState(0), XS)
    assert ps.pure(ps.vmap2(draw, **option(text, "state_in_axes")))(ps.RandomState(0), XS)[0].shape == (
        3,
    )
    assert ps.pure(ps.vmap2(draw))(ps.RandomState(0), XS)[0].shape == (3,)


@case(ValueError, "in_axes=(0, 0, None) has 3 entries, but ps.vmap2(", "with 2 positional arguments")
def in_axes_of_the_wrong_length():
    text = yield lambda: ps.vmap2(step, in_axes=(0, 0, None))(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes", -1)))(tree(XS), XS)[0].shape == (3,)


@case(
    ValueError,
    "Leave out the module that the function is bound to.",
)
def in_axes_that_count_the_bound_module():
    text = yield lambda: ps.vmap2(counter().__call__, in_axes=(None, 0))(XS)
    fixed = ps.vmap2(counter(XS).__call__, state_in_axes=ps.State, **option(text, "in_axes", -1))
    assert ps.pure(fixed)(XS)[0].shape == (3,)


@case(ValueError, "in_axes names ['y'], which ps.vmap2(", "its arguments are ['t', 'x']")
def in_axes_by_a_wrong_name():
    text = yield lambda: ps.vmap2(step, in_axes={"y": 0})(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes", -1)))(tree(XS), XS)[0].shape == (3,)


@case(TypeError, "in_axes is an integer, None, a function of the leaf, a tuple", "got 'x'")
def in_axes_of_a_wrong_type():
    text = yield lambda: ps.vmap2(step, in_axes="x")(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes")))(tree(XS), XS)[0].shape == (3,)


@case(TypeError, "The axes of `x` in in_axes are integers, None and functions of the leaf; got 1.5")
def an_axis_of_a_wrong_type():
    text = yield lambda: ps.vmap2(step, in_axes=(0, 1.5))(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes")))(tree(XS), XS)[0].shape == (3,)


@case(ValueError, "in_axes={'wrong': 0} for `t` is not a prefix of its structure")
def in_axes_that_are_no_prefix():
    text = yield lambda: ps.vmap2(step, in_axes=({"wrong": 0}, 0))(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes", -1)))(tree(XS), XS)[0].shape == (3,)
    axes = run("axes = " + re.findall(r"ps\.axes\(.*\)", text)[0], tree=tree(XS)).axes
    assert ps.pure(ps.vmap2(step, in_axes=(axes, 0)))(tree(XS), XS)[0].shape == (3,)


@case(ValueError, "maps no array, so there is nothing to take the number of lanes from", "1 arguments")
def nothing_to_infer_a_size_from():
    text = yield lambda: ps.vmap2(jnp.sin, in_axes=None)(XS)
    assert ps.vmap2(jnp.sin, in_axes=None, **option(text, "axis_size"))(XS).shape == (4, 3)


@case(
    ValueError,
    "got arrays whose mapped axes differ in size",
    "model.count: shape (4,), axis 0 of size 4",
    "x['a']: shape (2, 3), axis 1 of size 3",
    "x['b']: shape (5,), axis 0 of size 5",
)
def sizes_that_disagree_with_a_module_first():
    f, x = (lambda model, x: model.count.value + x["a"].sum()), {"a": jnp.ones((2, 3)), "b": jnp.ones(5)}
    text = yield lambda: ps.vmap2(f, in_axes=(0, {"a": 1, "b": 0}))(counter(jnp.ones(4)), x)
    x["b"] = jnp.ones(2)
    assert ps.vmap2(f, **option(text, "in_axes", -1))(counter(), x).shape == (2,)
    mapped = run("mapped = " + re.findall(r"ps\.vmap2\(model\)", text)[0], model=counter()).mapped
    assert mapped.in_axes == 0


@case(ValueError, "ps.vmap2(")
def sizes_that_disagree_with_a_container_first():
    read = lambda t, x: t["s"].value + x
    text = yield lambda: ps.vmap2(read)(tree(jnp.ones(4)), XS)
    assert ps.vmap2(read, **option(text, "in_axes", -1))(tree(1.0), XS).shape == (3,)
    assert "ps.vmap2(t)" not in text


@case(ValueError, "a: shape (3,)", "b: shape (2,)", "in_axes=(None, 0)")
def sizes_of_arrays_that_disagree():
    text = yield lambda: ps.vmap2(add)(XS, jnp.ones(2))
    assert ps.vmap2(add, **option(text, "in_axes", -1))(XS, jnp.ones(2)).shape == (2, 3)


@case(ValueError, "axis_size=4", "x: shape (3,)", "Leave axis_size out")
def a_size_that_disagrees_with_axis_size():
    yield lambda: ps.vmap2(jnp.sin, axis_size=4)(XS)
    assert ps.vmap2(jnp.sin)(XS).shape == (3,)


# Axes coming out ----------------------------------------------------------------------------------

shared = ft.partial(ps.vmap2, step, in_axes=(None, 0))


@case(
    ps.BatchAxisError,
    "`t['s']` (State) came in without an axis (in_axes=None) and was written with a value that differs",
    "with a leading axis of 3",
)
def an_undeclared_write():
    text = yield lambda: ps.pure(shared())(tree(), XS)
    first = shared(**option(text, "state_in_axes"))
    assert ps.pure(first)(tree(jnp.zeros(3)), XS)[1]["s"].value[2] == 2
    stacked, reduced = (shared(**option(text, "state_out_axes", i)) for i in (0, 1))
    with pytest.warns(ps.BatchAxisWarning):
        assert ps.pure(stacked)(tree(), XS)[1]["s"].value.shape == (3,)
    assert ps.pure(reduced)(tree(), XS)[1]["s"].value == 1


@case(ps.BatchAxisError, "came in empty")
def an_undeclared_write_to_an_empty_state():
    put = lambda t, x: setattr(t["s"], "value", x)
    text = yield lambda: ps.pure(ps.vmap2(put, in_axes=(None, 0)))(tree(None), XS)
    for name in ("state_out_axes", "state_in_axes"):
        if f"{name}=" in text:
            fixed = ps.vmap2(put, in_axes=(None, 0), **option(text, name))
            assert ps.pure(fixed)(tree(None), XS)[1]["s"].value.shape == (3,)


@case(ps.BatchAxisError, "(Membrane)")
def an_undeclared_write_to_a_users_kind():
    text = yield lambda: ps.pure(shared())(tree(kind=Membrane), XS)
    first = shared(**option(text, "state_in_axes"))
    assert ps.pure(first)(tree(jnp.zeros(3), Membrane), XS)[1]["s"].value[2] == 2


@case(ps.BatchAxisWarning, "no axis is declared for it")
def an_undeclared_write_under_warn():
    mine = ps.vmap2(lambda t, x: step(t, x), in_axes=(None, 0), unexpected_out_state_mapping="warn")
    yield lambda: ps.pure(mine)(tree(), XS)


@case(ps.BatchAxisWarning, "comes in without a lane axis", "so it grows by an axis on each call")
def a_state_that_grows():

    mine = ft.partial(ps.vmap2, lambda t, x: step(t, x), in_axes=(None, 0))  # no cache knows it
    text = yield lambda: ps.pure(mine(state_out_axes={0: ps.State}))(tree(), XS)
    fixed = mine(**option(text, "state_in_axes"))
    assert ps.pure(fixed)(tree(XS), XS)[1]["s"].value.shape == (3,)


@case(ps.BatchAxisError, "` (State) says that it is the same in all lanes, but the value differs")
def lanes_that_differ_in_a_state():
    text = yield lambda: ps.pure(shared(state_out_axes={None: ps.State}))(tree(), XS)
    code = text.split("with axis_name='batch' and ")[1][:-1]

    def reduced(t, x):
        t["s"].value = run(code, value=x).value

    fixed = ps.vmap2(
        reduced, in_axes=(None, 0), state_out_axes={None: ps.State}, **option(text, "axis_name")
    )
    assert ps.pure(fixed)(tree(), XS)[1]["s"].value == 1


@case(ValueError, "out_axes=None for `out[1]` says that it is the same in all lanes")
def lanes_that_differ_in_an_output():
    yield lambda: ps.vmap2(lambda x: (x, x), out_axes=(0, None))(XS)


@case(ps.BatchAxisError, "The kind of `out` (NonBatchState) says")
def lanes_that_differ_in_a_state_that_is_never_batched():
    text = yield lambda: ps.vmap2(ps.NonBatchState)(XS)
    code = re.findall(r"ps\.State\(value\)", text)[0]
    assert ps.vmap2(lambda x: run(f"s = {code}", value=x).s)(XS).value.shape == (3,)


@case(ps.BatchAxisError, "`out` leaves along axis 2 (out_axes=2)", "from -1 to 0")
def an_output_axis_that_is_not_there():
    text = yield lambda: ps.vmap2(jnp.sin, out_axes=2)(XS)
    for axis in re.findall(r"from (-?\d+) to (-?\d+)", text)[0]:
        assert ps.vmap2(jnp.sin, out_axes=int(axis))(XS).shape == (3,)


@case(TypeError, "out_axes are integers and None; got 'x'")
def out_axes_of_a_wrong_type():
    text = yield lambda: ps.vmap2(jnp.sin, out_axes="x")(XS)
    assert ps.vmap2(jnp.sin, **option(text, "out_axes"))(XS).shape == (3,)


@case(ValueError, "out_axes=(0, 0) is not a prefix of the output's structure")
def out_axes_that_are_no_prefix():
    text = yield lambda: ps.vmap2(jnp.sin, out_axes=(0, 0))(XS)
    assert ps.vmap2(jnp.sin, **option(text, "out_axes", -1))(XS).shape == (3,)


@case(ps.UnmatchedFilterWarning, "{0: OfType(HiddenState)}", "kinds State", "Leave the filter out")
def a_filter_that_matches_nothing():
    mine = lambda t, x: step(t, x)
    yield lambda: ps.pure(ps.vmap2(mine, state_in_axes=ps.HiddenState))(tree(XS), XS)


# Options and static leaves ------------------------------------------------------------------------


@case(ValueError, "unexpected_out_state_mapping is one of 'raise', 'warn', 'ignore'; got 'drop'")
def an_unknown_policy():
    text = yield lambda: ps.vmap2(step, unexpected_out_state_mapping="drop")
    ps.vmap2(step, **option(text, "unexpected_out_state_mapping"))


@case(ValueError, "axis_size is the number of lanes", "got -1")
def an_axis_size_that_is_none():
    text = yield lambda: ps.vmap2(jnp.sin, axis_size=-1)
    assert ps.vmap2(jnp.cos, in_axes=None, **option(text, "axis_size"))(1.0).shape == (4,)


@case(ValueError, "static_argnums=(2,) counts the arguments that the caller passes, and 2 were passed")
def static_argnums_out_of_range():
    f = lambda x, n: x * n
    text = yield lambda: ps.StatefulMapping(f, static_argnums=2)(XS, 2)
    assert ps.StatefulMapping(f, **option(text, "static_argnums", -1))(XS, 2)[2] == 4


@case(TypeError, "`args[1]` is static", "must be hashable; got [1, 2] of type list", "Pass a tuple")
def an_unhashable_static_argument():
    mapped = ps.StatefulMapping(lambda x, n: x * sum(n), static_argnums=1, in_axes=(0, None))
    yield lambda: mapped(XS, [1, 2])
    assert mapped(XS, (1, 2))[1] == 3


@case(TypeError, "`x['n'][0]` is a set, neither an array nor hashable", "jnp.asarray(...)")
def an_unhashable_leaf():
    mapped = ps.vmap2(lambda x: x["x"])
    yield lambda: mapped({"x": XS, "n": [{1}]})
    assert mapped({"x": XS, "n": [frozenset({1})]}).shape == (3,)


@case(ps.RecompilationWarning, "`n` is a Python number and has had 5 values", "jnp.asarray(4)")
def a_number_that_keeps_changing():
    f = lambda x, n: x * n
    text = yield lambda: [ps.vmap2(f, in_axes=(0, None))(XS, n) for n in range(5)]
    array = run("n = " + re.findall(r"jnp\.asarray\(4\)", text)[0]).n
    assert ps.vmap2(f, in_axes=(0, None))(XS, array)[1] == 4


@case(
    ps.CapturedStateWarning,
    "reads the state `State(f32[])`, which is not an argument",
    "runs uncompiled",
)
def a_captured_state():
    state = ps.State(2.0)
    text = yield lambda: ps.vmap2(lambda x: state.value * x)(XS)
    passed = ps.vmap2(lambda state, x: state.value * x, **option(text, "in_axes"))
    assert passed(state, XS)[2] == 4


@case(IndexError, "has 3 lanes in this call; got lane(3). Choose one from 0 to 2.")
def a_lane_that_is_not_there():
    yield lambda: ps.vmap2(jnp.sin).lane(3)(XS)
    assert ps.vmap2(jnp.sin).lane(2)(XS) == jnp.sin(2.0)
