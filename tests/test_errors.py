"""Every message: who raises it, what it says, and that the code which it recommends is right.

Each case is a generator. It yields the slip, is sent the message, and then runs the message's own
advice: lines are cut out of the text and executed, options are parsed out of it and used.
"""

import ast
import concurrent.futures
import contextlib
import dataclasses
import functools as ft
import re
import textwrap
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import pytest

import pstate as ps


XS = jnp.arange(3.0)


class Counter(eqx.Module):
    count: ps.ShortTermState

    def __call__(self, by):
        self.count.value = self.count.value + by
        return by

    def feed(self, other):
        other["s"].value = self.count.value


class Membrane(ps.HiddenState):
    pass


def counter(value=0.0):
    return Counter(ps.ShortTermState(value))


def step(t, x):
    t["s"].value = t["s"].value + x
    return x


def add(a, b):
    return a + b


def tree(value=0.0, kind=ps.State):
    return {"s": kind(value)}


# Running advice -----------------------------------------------------------------------------------


def run(code: str, **names: Any) -> types.SimpleNamespace:
    """Execute code that a message recommends; its names afterwards."""
    names = {"ps": ps, "jax": jax, "jnp": jnp, "eqx": eqx, "ft": ft, **names}
    exec(textwrap.dedent(code), names)
    return types.SimpleNamespace(**{k: v for k, v in names.items() if k.isidentifier()})


def block(text: str) -> str:
    """The indented lines of a message."""
    return "\n".join(line for line in text.splitlines() if line.startswith("    "))


def option(text: str, name: str, which: int = 0) -> dict[str, Any]:
    """`{name: value}` from the `name=value` that a message recommends."""
    start = [m.start() for m in re.finditer(rf"(?<![\w.(]){name}=", text)][which]
    for end in range(len(text), start, -1):
        if text[end - 1] == ".":
            continue
        try:
            call: Any = ast.parse(f"f({text[start:end]})", mode="eval").body
        except SyntaxError:
            continue
        if len(call.keywords) == 1 and not call.args:
            with contextlib.suppress(NameError):
                value = ast.unparse(call.keywords[0].value)
                return {name: run(f"option = {value}", Membrane=Membrane).option}
    raise AssertionError(f"no {name}=... in: {text}")


@dataclasses.dataclass
class Case:
    error: type
    says: tuple[str, ...]
    body: Callable[[], Any]


CASES: list[Any] = []


def case(error: type, *says: str) -> Callable[[Any], Any]:
    """Put a case into the table."""

    def add(body: Any) -> Any:
        CASES.append(pytest.param(Case(error, says, body), id=body.__name__))

    return add


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


@case(ps.FrozenStateError, "`Membrane` has one attribute to write, `value`; got 'threshold'")
def another_attribute():
    state = Membrane(1.0)
    yield lambda: setattr(state, "threshold", 2.0)
    assert state.value == 1


@case(ps.FrozenStateError, "Attribute 'value' of `HiddenState` cannot be deleted")
def a_deleted_attribute():
    text = yield lambda: delattr(ps.HiddenState(1.0), "value")
    assert jax.tree.leaves(run("s = " + text.split("made by ")[1][:-1]).s) == []


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


@case(TypeError, "A state is no filter", "got State(f32[])")
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
    raw, own = re.findall(r"^    (.*)$", text, re.MULTILINE)
    assert run(raw, f=Counter.__call__, tree=counter(), x=2.0).tree.count.value == 2
    with ps.record(counter()) as live:
        run(own, f=Counter.__call__, tree=live, xs=jnp.ones(3), ft=ft)
    assert ps.freeze(live).count.value == 3


@case(ps.TraceScopeError, "`counter.count` (ShortTermState) was written from another thread")
def a_write_from_another_thread():
    with ps.record(counter()) as live, concurrent.futures.ThreadPoolExecutor(1) as pool:
        text = yield lambda: pool.submit(live, 1.0).result()
        code = text.split("results: ")[1][:-1]
        work = ft.partial(run, code, f=lambda m: m(1.0), tree=counter())
        assert pool.submit(work).result().tree.count.value == 1


@case(ps.FrozenStateError, "`counter.count` (ShortTermState)", "writes=OfType(ParamState)")
def a_write_outside_the_contract():
    text = yield lambda: ps.pure(Counter.__call__, writes=ps.ParamState)(counter(), 1.0)
    writes = {"writes": run("w = " + re.findall(r"ps\.\w+", text)[-1]).w}
    assert ps.pure(Counter.__call__, **writes)(counter(), 1.0)[1].count.value == 1


@case(ps.FrozenStateError, "`tree['s']` (State) was written, which the contract")
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


@case(TypeError, "ps.pure(step) is pure already")
def pure_of_pure():
    yield lambda: ps.pure(ps.pure(step))


@case(TypeError, "A function, a bound method or a callable module was expected; got 1 of type int")
def what_cannot_be_called():
    text = yield lambda: ps.vmap2(1)
    made = run(
        f"{text.split('keyword: ')[1][:-1]}\ndef f(x): return 2 * x\ny = f(xs)", xs=jnp.ones((2, 3))
    )
    assert made.y.shape == (3, 2)


@case(ps.FrozenStateError, "`m.count` (ShortTermState) was written, and nobody takes the new value")
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


@case(ps.AliasedStateError, "came in as `t['s']` and also stands in the output as `out[0]`")
def a_state_that_comes_back_twice():
    text = yield lambda: ps.pure(lambda t: [t["s"]])(tree(2.0))
    made = re.findall(r"state\.replace\(state\.value\)", text)[0]
    copied = lambda t: run(f"out = {made}", state=t["s"]).out
    assert ps.pure(copied)(tree(2.0))[0].value == 2


@case(ps.AliasedStateError, "`out[0]` and `out[1]` are one state object")
def an_aliased_state_is_made_in_lanes():
    yield lambda: ps.vmap2(lambda x: [ps.State(x)] * 2)(XS)


@case(KeyError, "No state stands at ('gone',)", "The tree has states at ('s',)", "strict=False")
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
    code = re.findall(r"state\.replace\(jnp.*\)\)\)", text)[0]
    state = run(f"new = {code}", state=ps.State(1.0), n=3).new
    assert ps.pure(ps.vmap2(step))({"s": state}, XS)[1]["s"].value.shape == (3,)


@case(ps.BatchAxisError, "of `rng` (RandomState), which has shape (): one key, not a batch")
def an_axis_of_one_key():
    draw = lambda rng, x: rng.normal() + x
    text = yield lambda: ps.vmap2(draw, state_in_axes={0: ps.RandomState})(ps.RandomState(0), XS)
    assert ps.pure(ps.vmap2(draw, **option(text, "state_in_axes")))(ps.RandomState(0), XS)[0].shape == (
        3,
    )
    assert ps.pure(ps.vmap2(draw))(ps.RandomState(0), XS)[0].shape == (3,)


@case(ValueError, "in_axes=(0, 0, None) has 3 entries, and ps.vmap2(", "with 2 positional arguments")
def in_axes_of_the_wrong_length():
    text = yield lambda: ps.vmap2(step, in_axes=(0, 0, None))(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes", -1)))(tree(XS), XS)[0].shape == (3,)


@case(
    ValueError,
    "The module that the function is bound to is not counted.",
)
def in_axes_that_count_the_bound_module():
    text = yield lambda: ps.vmap2(counter().__call__, in_axes=(None, 0))(XS)
    fixed = ps.vmap2(counter(XS).__call__, state_in_axes=ps.State, **option(text, "in_axes", -1))
    assert ps.pure(fixed)(XS)[0].shape == (3,)


@case(ValueError, "in_axes names ['y'], which ps.vmap2(", "its arguments are ['t', 'x']")
def in_axes_by_a_wrong_name():
    text = yield lambda: ps.vmap2(step, in_axes={"y": 0})(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes", -1)))(tree(XS), XS)[0].shape == (3,)


@case(TypeError, "in_axes is an integer, None, a tuple", "got 'x'")
def in_axes_of_a_wrong_type():
    text = yield lambda: ps.vmap2(step, in_axes="x")(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes")))(tree(XS), XS)[0].shape == (3,)


@case(TypeError, "The axes of `x` in in_axes are integers and None; got 1.5")
def an_axis_of_a_wrong_type():
    text = yield lambda: ps.vmap2(step, in_axes=(0, 1.5))(tree(XS), XS)
    assert ps.pure(ps.vmap2(step, **option(text, "in_axes")))(tree(XS), XS)[0].shape == (3,)


@case(ValueError, "in_axes={'wrong': 0} for `t` is no prefix of its structure")
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


@case(ps.BatchAxisError, "(State)` says that it is the same in all lanes, and the value differs")
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


@case(ps.BatchAxisError, "The kind of `out (NonBatchState)` says")
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


@case(ValueError, "out_axes=(0, 0) is no prefix of the output's structure")
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


@case(ps.CapturedStateWarning, "reads the state `State(f32[])`, which is no argument", "runs uncompiled")
def a_captured_state():
    state = ps.State(2.0)
    text = yield lambda: ps.vmap2(lambda x: state.value * x)(XS)
    passed = ps.vmap2(lambda state, x: state.value * x, **option(text, "in_axes"))
    assert passed(state, XS)[2] == 4


@case(IndexError, "has 3 lanes in this call; got lane(3). Choose one from 0 to 2.")
def a_lane_that_is_not_there():
    yield lambda: ps.vmap2(jnp.sin).lane(3)(XS)
    assert ps.vmap2(jnp.sin).lane(2)(XS) == jnp.sin(2.0)


# All of them --------------------------------------------------------------------------------------


@pytest.fixture
def as_users_run_it():
    """Without the type checker of the test run, which would speak before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("case", CASES)
def test_messages(case: Case):
    """The message says what it must, and its advice runs and helps."""
    generator = case.body()
    slip = next(generator)
    if issubclass(case.error, Warning):
        with pytest.warns(case.error) as caught:
            slip()
        text = str(next(w.message for w in caught if isinstance(w.message, case.error)))
    else:
        with pytest.raises(case.error) as error:
            slip()
        text = error.value.args[0]
    for part in case.says:
        assert part in text
    with contextlib.suppress(StopIteration):
        generator.send(text)
        raise AssertionError("a case yields once")


def test_errors_are_of_one_family():
    """Each error is a `StateError` and of the fitting builtin, each warning a `StateWarning`."""
    builtins = {
        ps.FrozenStateError: dataclasses.FrozenInstanceError,
        ps.TraceScopeError: RuntimeError,
        ps.CapturedStateError: RuntimeError,
        ps.AliasedStateError: ValueError,
        ps.UninitializedStateError: ValueError,
        ps.BatchAxisError: ValueError,
    }
    assert all(issubclass(error, (ps.StateError, builtin)) for error, builtin in builtins.items())
    assert all(issubclass(error, builtin) for error, builtin in builtins.items())
    named = [getattr(ps, name) for name in dir(ps) if name.endswith("Warning")]
    assert all(issubclass(warning, ps.StateWarning) for warning in named)
