"""Filters and paths with a slip are named wherever they have an effect."""

import functools as ft
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import pstate as ps


class Layer(eqx.Module):
    h: ps.HiddenState


class Net(eqx.Module):
    layers: list[Layer]
    w: ps.ParamState
    bias: jax.Array

    def __call__(self, x):
        self.layers[0].h.value += x
        return x


def net(**kwargs: Any) -> Net:
    state = ps.HiddenState(jnp.zeros(()), **kwargs)
    return Net([Layer(state)], ps.ParamState(jnp.ones(2)), jnp.ones(3))


XS = jnp.arange(3.0)
KINDS = "HiddenState, ParamState"
THERE = f"which has states of the kinds {KINDS}. Leave the filter out, or select states that exist."

#: Filters that select nothing of the net, and how messages show them.
SLIPS: dict[str, Any] = {
    "WithTag('typo')": "typo",
    "OfType(BatchState)": ps.BatchState,
    "PathContains('layer')": ps.filter.PathContains("layer"),
    "Any(WithTag('a'), WithTag('b'))": ["a", "b"],
}


@pytest.mark.parametrize("shown", SLIPS)
@pytest.mark.parametrize("function", [ps.states, ps.select, ps.summary])
def test_a_filter_that_selects_nothing_of_a_tree(function, shown):
    """It is named, with what is there."""
    with pytest.warns(ps.UnmatchedFilterWarning) as caught:
        function(net(), SLIPS[shown])
    name = function.__name__
    assert [str(w.message) for w in caught] == [
        f"filter={shown} of ps.{name} matches no state of the tree, {THERE}"
    ]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("function", [ps.states, ps.select, ps.summary])
def test_filters_that_may_select_nothing(function):
    """Everything, nothing and the default of `select` name nothing, and so nothing is missing."""
    named = ps.filter.Everything, ps.filter.Nothing, ps.filter.Trainable, ~ps.filter.Everything
    for filter_ in (..., None, True, False, [], [None, False], *named):
        function({}, filter_)
        function({"n": ps.State(1), "s": "text"}, filter_)
    function({})
    function(net(tag="slow"), "slow")
    function({"n": ps.State(1)})
    function({"n": ps.BatchState()}, ps.BatchState)  # empty, and there


def test_an_array_is_a_match_for_select():
    """`select` asks about arrays too."""
    mask = ps.select(net(), ps.filter.PathContains("bias"))
    assert jax.tree.leaves(mask) == [False, False, True]


def test_a_filter_of_axes_that_selects_nothing():
    """`axes` warns as a mapping does: of what stands under an axis."""
    with pytest.warns(ps.UnmatchedFilterWarning) as caught:
        ps.axes(net(), {0: "typo"})
    expected = "state_axes={0: WithTag('typo')} of ps.axes matches no state of the tree, "
    assert str(caught[0].message) == expected + THERE
    ps.axes(net(), {None: "typo", 0: ...})
    ps.axes(net(), {0: jax.Array})


MAPPED = "matches no state of the call, " + THERE

#: Calls that a typo makes fail: options, and the beginning of the error.
FAILING: dict[str, tuple[dict[str, Any], type, str]] = {
    "in": (
        {"state_in_axes": {0: "typo"}},
        ps.BatchAxisError,
        r"`net\.layers\[0\]\.h` \(HiddenState\) came in without an axis",
    ),
    "out": (
        {"state_out_axes": {0: "typo"}},
        ps.BatchAxisError,
        r"`net\.layers\[0\]\.h` \(HiddenState\) came in without an axis",
    ),
    "reducer": (
        {"state_out_axes": {ft.partial(jnp.mean, axis=0): "typo"}},
        ps.BatchAxisError,
        r"`net\.layers\[0\]\.h` \(HiddenState\) came in without an axis",
    ),
    "declared": (
        {"state_in_axes": {0: "typo"}, "state_out_axes": {None: ps.HiddenState}},
        ps.BatchAxisError,
        r"state_out_axes=.* says that it is the same in all lanes",
    ),
    "no such axis": (
        {"state_in_axes": {1: "typo", 0: ps.HiddenState}},
        ps.BatchAxisError,
        r"state_in_axes .* maps axis 0 of `net\.layers\[0\]\.h`",
    ),
    "sizes": (
        {"in_axes": 0, "state_in_axes": {None: ps.HiddenState, 1: "typo"}},
        ValueError,
        r"ps\.vmap2\(.*\) got arrays whose mapped axes differ in size",
    ),
    "no such place": (
        {"state_in_axes": {0: "typo"}, "state_out_axes": {5: ps.HiddenState}},
        ps.BatchAxisError,
        r"`net\.layers\[0\]\.h` \(HiddenState\) leaves along axis 5",
    ),
}


@pytest.mark.parametrize("case", FAILING.values(), ids=FAILING)
def test_an_error_of_axes_names_the_typo(case):
    """The error that the typo leads to would hide the warning, so it has the sentence itself."""
    given, error, begins = case
    mapped = ps.vmap2(Net.__call__, **{"in_axes": (None, 0), **given})
    with pytest.raises(error) as caught:
        ps.pure(mapped)(net(), XS)
    message = str(caught.value)
    assert type(caught.value) is error
    assert re.match(begins, message), message
    assert re.search(r"state_(in|out)_axes=\{[^{}]*: WithTag\('typo'\)\} of ps\.vmap2\(", message)
    assert message.endswith(MAPPED)


def test_without_a_typo_errors_of_axes_are_what_they_were():
    """No word of filters where all of them match."""
    with pytest.raises(ps.BatchAxisError) as caught:
        ps.pure(ps.vmap2(Net.__call__, in_axes=(None, 0)))(net(), XS)
    assert "matches no state" not in str(caught.value)


def test_the_advice_for_a_typo_is_right():
    """Naming a filter that is there, or leaving it out, is what works."""
    model = Net(
        [Layer(ps.HiddenState(jnp.zeros(3), tag="slow"))], ps.ParamState(jnp.ones(2)), jnp.ones(3)
    )
    mapped = ps.vmap2(Net.__call__, in_axes=(None, 0), state_in_axes={0: "slow"})
    assert ps.pure(mapped)(model, XS)[1].layers[0].h.value.tolist() == [0, 1, 2]


@pytest.fixture
def as_users_run_it():
    """Without the type checker of the test run, which would raise before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "use",
    [
        ps.filter.to_predicate,
        lambda f: ps.states(net(), f),
        lambda f: ps.select(net(), f),
        lambda f: ps.vmap2(Net.__call__, state_in_axes={0: f}),
        lambda f: ps.grad(lambda n: 1.0, wrt=f),
        lambda f: ps.jit(lambda n: 1.0, donate=f),
        lambda f: ps.pure(lambda n: 1.0, writes=f),
        lambda f: ps.filter.Not(f),
        lambda f: ps.states(net(), [ps.ParamState, f]),
    ],
)
def test_a_predicate_of_leaves_is_no_filter(use):
    """`eqx.is_array` takes one argument, and a filter is asked with two; the message shows both."""
    with pytest.raises(
        TypeError, match=r"^A callable filter takes \(path, leaf\); got is_array"
    ) as caught:
        use(eqx.is_array)
    (code,) = re.findall(r"Write a function of both: (.*)\.$", str(caught.value))
    right = eval(code, {"is_array": eqx.is_array})
    assert jax.tree.leaves(ps.select(net(), right)) == [False, False, True]
    ps.filter.to_predicate(right)


def test_a_lambda_of_one_argument_is_no_filter():
    """It has no name to show."""
    with pytest.raises(TypeError, match=r"got f\(leaf\), which .* lambda path, leaf: f\(leaf\)\.$"):
        ps.states(net(), lambda leaf: True)


def test_callables_of_two_arguments_are_filters():
    """However they come by them."""

    class Asked:
        def __call__(self, path, leaf):
            return True

        def method(self, *both):
            return True

    for good in (
        Asked(),
        Asked().method,
        lambda path, leaf, extra=0: True,
        ft.partial(lambda extra, path, leaf: True, 1),
        ft.lru_cache(lambda path, leaf: True),
    ):
        assert ps.filter.to_predicate(good) is good
        assert len(ps.states(net(), good)) == 2


@pytest.mark.parametrize("path", [("layers", 0, "h"), "layers.0.h"], ids=["tuple", "dotted"])
def test_paths_of_update(path):
    """A path is a tuple, or the same as one string."""
    assert ps.update(net(), {path: 5.0}).layers[0].h.value == 5
    with ps.record(net()) as live:
        ps.update(live, {path: 6.0})
    assert ps.freeze(live).layers[0].h.value == 6
    assert ps.update(ps.pack(net()), {path: 7.0}).unpack().layers[0].h.value == 7
    assert ps.update(net(), {path: 5.0, ("w",): jnp.zeros(2)}).w.value.tolist() == [0, 0]


def test_a_name_is_the_path_of_one_field():
    """`"w"` is `("w",)`, and digits may be the names of a dict."""
    assert ps.update(net(), {"w": jnp.zeros(2)}).w.value.tolist() == [0, 0]
    assert ps.update([ps.State(1)], {"0": 2})[0].value == 2
    assert ps.update({"0": ps.State(1)}, {"0": 2})["0"].value == 2
    assert ps.update({"a.b": ps.State(1)}, {"a.b": 2})["a.b"].value == 2


@pytest.mark.parametrize("path", ["h", 0, "layers.h"])
def test_a_name_that_is_no_path_says_what_paths_look_like(path):
    """The message has the paths that are there, and one of them as a string."""
    with pytest.raises(KeyError) as caught:
        ps.update(net(), {path: 5.0})
    message = caught.value.args[0]
    assert message.startswith(f"There is no state at {path!r}. The tree has states at (")
    (dotted,) = re.findall(r"as a tuple, or as one string, ('.*?')", message)
    ps.update(net(), {eval(dotted): 5.0})
    with pytest.warns(ps.UnmatchedPathWarning, match=re.escape(repr(path))):
        ps.update(net(), {path: 5.0}, strict=False)


def test_a_name_that_could_be_two_paths():
    """Neither is guessed; the tuple says which."""
    tree = {"a.b": ps.State(1), "a": {"b": ps.State(2)}}
    with pytest.raises(KeyError, match=r"'a\.b' is each of the states at") as caught:
        ps.update(tree, {"a.b": 5})
    (code,) = re.findall(r"once: (ps\.update\(.*?\}\))", caught.value.args[0])
    new = eval(code, {"ps": ps, "tree": tree, "value": 5})
    assert sorted([new["a.b"].value.item(), new["a"]["b"].value.item()]) in ([1, 5], [2, 5])


def test_one_state_has_one_value():
    """The same path in both writings is refused."""
    with pytest.raises(KeyError, match=r"a second value for the state at \('w',\)"):
        ps.update(net(), {"w": jnp.ones(2), ("w",): jnp.zeros(2)})


def test_everything_and_nothing_are_called():
    """Elsewhere they are classes; here they give themselves, and are asked as before."""
    assert ps.filter.Everything() is ps.filter.Everything
    assert ps.filter.Nothing() is ps.filter.Nothing
    assert ps.filter.Everything((), None) is True
    assert ps.filter.Nothing((), None) is False
    assert ps.states(net(), ps.filter.Everything()).keys() == ps.states(net()).keys()
    assert ps.states(net(), ps.filter.Nothing() | ps.ParamState).keys() == {("w",)}
    assert ps.states(net(), ~ps.filter.Everything()) == {}


# Options of functions that map, compile and make ----------------------------------------------------


class Weighted(ps.nn.Module):
    w: ps.ParamState = ps.ParamState()

    def init_state(self):
        self.w.value = jnp.ones(3)


class Plain(ps.nn.Module):
    pass


MADE: dict[str, Any] = {
    "state_out_axes={axis: WithTag('typo')} of ps.vmap2_new_states": lambda module, axes: (
        ps.vmap2_new_states(module, {}, axis_size=2, state_out_axes=axes)
    ),
    "state_out_axes={axis: WithTag('typo')} of ps.pmap2_new_states": lambda module, axes: (
        ps.pmap2_new_states(module, {}, axis_size=1, state_out_axes=axes)
    ),
    "init_state_axes={axis: WithTag('typo')} of ps.nn.Map": lambda module, axes: ps.nn.Map(
        module, 2, init_state_axes=axes
    ).init_all_states(),
}


@pytest.mark.parametrize("given", MADE)
def test_a_filter_of_new_states(given):
    """It is named by its own option, once, and in the words of the module; the default is none."""
    make = MADE[given]
    kinds = {Weighted: "states of the kinds ParamState", Plain: "none"}
    for cls, there in kinds.items():
        with pytest.warns(ps.UnmatchedFilterWarning) as caught:
            make(cls(), {1: "typo"})
        assert [str(w.message) for w in caught] == [
            given.replace("axis:", "1:")
            + f" matches no state of the module, which has {there}. "
            + "Leave the filter out, or select states that exist."
        ]
        make(cls(), None)
        make(cls(), {None: "typo", 0: ...})
    make(Weighted(), {0: ps.ParamState})


@pytest.mark.parametrize("mapping", [ps.jit, ps.pmap2])
def test_a_donation_that_selects_nothing(mapping):
    """A filter of `donate` that selects no written state is named, and the advice donates."""
    n = jax.local_device_count()

    def count(tree, x):
        tree["n"].value = tree["n"].value + x

    def tree():
        return {"n": ps.State(jnp.zeros(n))}

    message = (
        r"gives up nothing: it selects none of the states that the function writes, which are "
        r"`tree\['n'\]`"
    )
    with pytest.warns(ps.UnmatchedFilterWarning, match=message) as caught:
        _, new = ps.pure(mapping(count, donate="typo"))(tree(), jnp.ones(n))
    assert len(caught) == 1
    assert jnp.all(new["n"].value == 1)
    ps.pure(mapping(count, donate=ps.State))(tree(), jnp.ones(n))


@pytest.mark.parametrize("name", [["a"], 3, ("a",)], ids=str)
def test_the_name_of_a_mapping_is_a_string(name):
    """What else is passed is named, before anything runs."""
    with pytest.raises(TypeError, match=re.escape(f"a string; got {name!r} of type")):
        ps.StatefulMapping(lambda x: x, name=name)
    assert ps.StatefulMapping(lambda x: x, name="step")(XS).tolist() == XS.tolist()
