"""Messages about states by themselves: values, filters, writes, `pure`, aliases and random states."""

import concurrent.futures
import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import pstate as ps
from whole.messages import XS, Counter, Membrane, block, case, counter, option, run, step, tree


# Values -------------------------------------------------------------------------------------------


@case(TypeError, "got 'text' of type str at `.value['b'][0]`", "eqx.field(static=True)")
def a_state_that_holds_a_string():
    text = yield lambda: ps.State({"a": 1, "b": ["text"]})
    assert run("state = " + re.findall(r"ps\.State\(.*\)", text)[-1]).state.tag == ("encoder",)


@case(TypeError, "A state cannot hold a state; got State(f32[])")
def a_state_that_holds_a_state():
    text = yield lambda: ps.HiddenState(ps.State(2.0))
    assert run("s = " + text.split("Take its value: ")[1][:-1], other=ps.State(2.0)).s.value == 2


@case(TypeError, "The number 1.5 was written where a state holds int32")
def a_number_that_does_not_fit():
    with ps.record(ps.State(0)) as live:
        text = yield lambda: setattr(live, "value", 1.5)
        assert live.value == 0
        run(text.split("on purpose: ")[1][:-1], state=live)
        assert live.value == 1.5


@case(TypeError, "A tag is a string, or several; got (1,)")
def a_tag_that_is_none():
    text = yield lambda: ps.State(0.0, tag=(1,))
    assert ps.State(0.0, **option(text, "tag")).tag == ("name",)


@case(
    ps.FrozenStateError,
    "The only attribute of `Membrane` that can be assigned is `value`; got 'threshold'",
)
def another_attribute():
    state = Membrane(1.0)
    yield lambda: setattr(state, "threshold", 2.0)
    assert state.value == 1


@case(ps.FrozenStateError, "Attribute 'value' of `HiddenState` cannot be deleted")
def a_deleted_attribute():
    text = yield lambda: delattr(ps.HiddenState(1.0), "value")
    assert jax.tree.leaves(run("s = " + text.split("write ")[1][:-1]).s) == []


@case(AttributeError, "`Membrane`", "Membrane(value")
def another_attribute_of_a_users_kind():
    text = yield lambda: setattr(Membrane(1.0), "threshold", 2.0)
    assert "ps.Membrane" not in text


@case(ps.UninitializedStateError, "`counter.count` (ShortTermState) is empty and was read")
def an_empty_state_is_read():
    with ps.record(counter(None)) as live:
        text = yield lambda: live.count.value
    code = re.findall(r"tree = ps\.update\(.*?\}\)", text)[0]
    assert run(code, tree=counter(None), path=("count",), value=2.0).tree.count.value == 2
    dynamic, static = eqx.partition(counter(3.0), eqx.is_array)
    code = "tree = " + re.findall(r"eqx\.combine\(.*\)", text)[0]
    assert run(code, dynamic=dynamic, static=static).tree.count.value == 3


# Filters ------------------------------------------------------------------------------------------


@case(TypeError, "A state is not a filter", "got State(f32[])")
def a_state_as_a_filter():
    text = yield lambda: ps.vmap2(step, state_in_axes={0: ps.State(1.0)})
    lines = block(text).splitlines()
    assert run("s = " + lines[0].strip(), value=1.0).s.tag == ("mine",)
    path = run("f = " + lines[1].strip()).f
    assert ps.states(counter(), path).keys() == {("count",)}


@case(TypeError, "A filter is a type, a tag, a callable", "got 3 of type int")
def a_filter_of_an_unusable_type():
    text = yield lambda: ps.filter.to_predicate(3)
    assert ps.filter.to_predicate(run("f = " + re.findall(r"ps\.\w+", text)[-1]).f)((), ps.ParamState(1))
    assert ps.filter.to_predicate(run("f = " + re.findall(r"'\w+'", text)[-1]).f) is not None


@case(TypeError, "The keys of state_in_axes are axes", "got 'batch'")
def an_axis_that_is_none():
    text = yield lambda: ps.vmap2(step, state_in_axes={"batch": ps.State})
    assert ps.vmap2(step, **option(text, "state_in_axes")).state_in_axes == {0: ps.HiddenState}


@case(TypeError, "The keys of state_in_axes", "or None; got <function")
def a_reducer_on_the_way_in():
    yield lambda: ps.vmap2(step, state_in_axes={jnp.mean: ps.State})


# Writes that nobody would see ---------------------------------------------------------------------


@case(ps.FrozenStateError, "`ShortTermState(f32[])` was written outside a recording")
def a_write_to_a_frozen_state():
    model = counter()
    text = yield lambda: model(1.0)
    pure, *context = block(text).splitlines()
    assert run(pure, f=Counter.__call__, tree=model, x=2.0).tree.count.value == 2
    assert run("\n".join(context), tree=model).tree.count.value == 1
    assert model.count.value == 0


@case(ps.FrozenStateError, "`counter.count` (ShortTermState) was written on the original", "live copy")
def a_write_to_the_original_of_a_recording():
    model = counter()
    with ps.record(model):
        text = yield lambda: model(1.0)
    code = block(text).replace("...", "5.0")
    assert ps.freeze(run(code, counter=model).live).count.value == 5


@case(ps.FrozenStateError, "`t['s']` (State) was written on the original", "its argument `t['s']`")
def a_write_to_the_original_of_a_pure_call():
    outer = tree()
    text = yield lambda: ps.pure(lambda t: setattr(outer["s"], "value", 1.0))(outer)
    assert "received" in text


@case(ps.FrozenStateError, "`counter.count` (ShortTermState) was written through a changed copy")
def a_write_to_a_changed_copy():
    with ps.record(counter(1.0)) as live:
        copied = jax.tree.map(lambda x: 2 * x, live)
        text = yield lambda: copied(1.0)
        new = run(block(text), f=lambda m: m(1.0), copied=copied).copied
    assert (new.count.value, ps.freeze(live).count.value) == (3, 1)


@case(ps.FrozenStateError, "`counter.count` (ShortTermState) was written after ps.record(counter) ended")
def a_write_after_the_end():
    with ps.record(counter()) as live:
        pass
    text = yield lambda: live(1.0)
    assert run(block(text), tree=counter(4.0)).tree.count.value == 4


@case(ps.FrozenStateError, "The container read from `tree` was edited in place")
def a_container_edited_in_place():
    def slip(write_back):
        with ps.record(ps.State({"a": 1})) as state:
            if write_back:
                code = block(write_back).replace("[...]", "['a']").replace("...", "2")
                run(code, state=state)
            else:
                state.value["a"] = 2
        return ps.freeze(state).value["a"]

    text = yield lambda: slip("")
    assert slip(text) == 2


@case(
    ps.TraceScopeError, "`counter.count` (ShortTermState) was written under a JAX trace inside ps.record"
)
def a_write_inside_a_raw_transform():
    with ps.record(counter()) as live:
        text = yield lambda: jax.jit(lambda x: live(x))(1.0)
    (line,) = re.findall(r"^    (.*)$", text, re.MULTILINE)
    with ps.record(counter()) as live:
        run(line, f=Counter.__call__, counter=live, x=2.0)
    assert ps.freeze(live).count.value == 2


@case(ps.TraceScopeError, "`counter.count` (ShortTermState) was written from another thread")
def a_write_from_another_thread():
    with ps.record(counter()) as live, concurrent.futures.ThreadPoolExecutor(1) as pool:
        text = yield lambda: pool.submit(live, 1.0).result()
        code = text.split("results: ")[1][:-1]
        work = ft.partial(run, code, f=lambda m: m(1.0), tree=counter())
        assert pool.submit(work).result().tree.count.value == 1


@case(ps.FrozenStateError, "`counter.count` (ShortTermState)", "but writes=ps.ParamState does")
def a_write_outside_the_contract():
    text = yield lambda: ps.pure(Counter.__call__, writes=ps.ParamState)(counter(), 1.0)
    writes = run("w = " + re.findall(r"writes=(\(.+\))", text)[0]).w
    assert writes == (ps.ParamState, ps.ShortTermState)
    assert ps.pure(Counter.__call__, writes=writes)(counter(), 1.0)[1].count.value == 1


@case(ps.FrozenStateError, "`tree['s']` (State) was written, but writes=")
def a_write_outside_the_contract_of_a_record():
    with ps.record(tree(), writes=None) as live:
        yield lambda: step(live, 1.0)
        assert ps.written(live) == {}


# `pure` -------------------------------------------------------------------------------------------


@case(TypeError, "pure(f) threads the states of argument 0")
def nothing_to_give_back():
    f = lambda *trees: len(trees)
    text = yield lambda: ps.pure(f)()
    assert run(text.split("first: ")[1][:-1], f=f, tree=tree()).out == 1


@case(ValueError, "argnums=(2,) of pure(step) counts", "2 were passed: positions [0, 1]")
def argnums_out_of_range():
    text = yield lambda: ps.pure(step, argnums=(2,))(tree(), 1.0)
    assert ps.pure(step, **option(text, "argnums", 1))(tree(), 1.0)[1][0]["s"].value == 1


@case(ps.FrozenStateError, "`t['s']` (State) was written, but it came in the keyword argument 't'")
def a_write_in_a_keyword_argument():
    f = lambda x, t: step(t, x)
    text = yield lambda: ps.pure(f)(1.0, t=tree())
    assert ps.pure(f, **option(text, "argnums"))(1.0, tree())[1][0]["s"].value == 1


@case(ps.FrozenStateError, "`t['s']` (State) was written, but argument 1 is not among those")
def a_write_outside_argnums():
    f = lambda x, t: step(t, x)
    text = yield lambda: ps.pure(ps.vmap2(f))(XS, tree(XS))
    assert ps.pure(f, **option(text, "argnums"))(1.0, tree())[1][1]["s"].value == 1


@case(
    ps.FrozenStateError,
    "`counter.count` (ShortTermState)",
    "gives back that argument alone",
)
def a_write_to_the_bound_module():
    model = counter()
    text = yield lambda: ps.pure(model, argnums=0)(1.0)
    assert ps.pure(model, **option(text, "argnums"))(1.0)[1][0].count.value == 1


@case(TypeError, "ps.pure(step) is already pure")
def pure_of_pure():
    yield lambda: ps.pure(ps.pure(step))


@case(TypeError, "A function, a bound method or a callable module was expected; got 1 of type int")
def what_cannot_be_called():
    text = yield lambda: ps.vmap2(1)
    made = run(
        f"{text.split('keyword: ')[1][:-1]}\ndef f(x): return 2 * x\ny = f(xs)", xs=jnp.ones((2, 3))
    )
    assert made.y.shape == (3, 2)


@case(ps.FrozenStateError, "`m.count` (ShortTermState) was written, but the new value would be lost")
def a_mapping_without_pure():
    f = lambda m, x: m(x)
    text = yield lambda: ps.vmap2(
        f, state_out_axes={ft.partial(jnp.sum, axis=0): ps.State}, in_axes=(None, 0)
    )(counter(), XS)
    assert run(block(text), f=f, m=counter(), x=XS).m.count.value == 3


@ps.vmap2
def decorated(t, x):
    return step(t, x)


@case(ps.FrozenStateError, "`t['s']` (State)")
def a_decorated_mapping_without_pure():
    text = yield lambda: decorated(tree(XS), XS)
    assert run(block(text), decorated=decorated, t=tree(XS), x=XS).t["s"].value[2] == 4


@case(
    ps.FrozenStateError,
    "state_in_axes={0: ps.filter",
)
def a_mapping_by_a_filter_without_pure():
    text = yield lambda: ps.vmap2(step, state_in_axes={0: ps.filter.PathContains("s")})(tree(XS), XS)
    assert run(block(text), step=step, t=tree(XS), x=XS).t["s"].value[2] == 4


# Aliases ------------------------------------------------------------------------------------------


@case(ps.AliasedStateError, "`tree[0].count` and `tree[1].count` are one state object at two places")
def an_aliased_state_is_written():
    one = counter()
    with ps.record([one, one]) as live:
        text = yield lambda: live[0](1.0)
    code = "tied = " + re.findall(r"eqx\.nn\.Shared\(.*\)", text)[0]
    names = {"tree": [one, counter()], "where": lambda t: t[1].count, "get": lambda t: t[0].count}
    with ps.record(run(code, **names).tied) as live:
        live()[1](1.0)
    assert ps.freeze(live)()[0].count.value == 1
    assert ps.pure(lambda a, b: a.count.value)(one, one)[0] == 0


@case(ps.AliasedStateError, "`tree['a']` and `tree['b']`")
def an_aliased_state_is_updated():
    one = ps.State(0.0)
    yield lambda: ps.update({"a": one, "b": one}, {("a",): 1.0, ("b",): 2.0})


@case(ps.AliasedStateError, "came in as `t['s']` and is also in the output as `out[0]`")
def a_state_that_comes_back_twice():
    text = yield lambda: ps.pure(lambda t: [t["s"]])(tree(2.0))
    made = re.findall(r"state\.replace\(state\.value\)", text)[0]
    copied = lambda t: run(f"out = {made}", state=t["s"]).out
    assert ps.pure(copied)(tree(2.0))[0].value == 2


@case(ps.AliasedStateError, "`out[0]` and `out[1]` are one state object")
def an_aliased_state_is_made_in_lanes():
    yield lambda: ps.vmap2(lambda x: [ps.State(x)] * 2)(XS)


@case(KeyError, "There is no state at ('gone',)", "The tree has states at ('s',)", "strict=False")
def an_update_of_an_unknown_path():
    text = yield lambda: ps.update(tree(), {("gone",): 1.0})
    code = "new = " + re.findall(r"ps\.update\(.*?\)", text)[0]
    with pytest.warns(ps.UnmatchedPathWarning):
        assert run(code, tree=tree(5.0), values={("gone",): 1.0}).new["s"].value == 5


# Random states ------------------------------------------------------------------------------------


@case(TypeError, "A RandomState holds an integer seed, a typed key or a raw uint32 key; got 1.5")
def a_seed_that_is_none():
    text = yield lambda: ps.RandomState(1.5)
    for code in re.findall(r"ps\.RandomState\((?:0\)|jax.*?\)\))", text):
        assert run(f"rng = {code}").rng.value.shape == ()


@case(ps.FrozenStateError, "was drawn from outside a recording")
def a_draw_outside_a_recording():
    text = yield lambda: ps.RandomState(0).normal()
    assert run(block(text), rng=ps.RandomState(0)).draw.shape == ()


@case(ValueError, "`rng` (RandomState) holds a batch of keys of shape (3,)")
def a_draw_from_a_batch_of_keys():
    batch, f = ps.RandomState(jr.split(jr.key(0), 3)), lambda rng: rng.normal()
    text = yield lambda: ps.pure(f)(batch)
    mapped = run("mapped = " + re.findall(r"ps\.vmap2\(.*\)", text)[0], f=f).mapped
    assert ps.pure(mapped)(batch)[0].shape == (3,)
