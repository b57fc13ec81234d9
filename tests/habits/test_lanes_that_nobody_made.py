"""States that are mapped and have no lanes: messages lead to code that runs, and nothing wrong does."""

import functools as ft
import re
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps


XS = jnp.arange(12.0).reshape(4, 3)


class Rnn(eqx.Module):
    h: ps.HiddenState
    w: ps.ParamState

    def __call__(self, x):
        self.h.value = jnp.tanh(self.w.value * self.h.value + x)
        return self.h.value


def make(shape: Any = 3) -> Rnn:
    return Rnn(ps.HiddenState(jnp.zeros(shape)), ps.ParamState(jnp.ones(3)))


def advised(text: str, **names: Any) -> dict[str, Any]:
    """What the `tree = ps....(...)` of a message makes."""
    (code,) = re.findall(r"\w+ = ps\.(?:broadcast|update)\(.*?\}, \d+\)|\w+ = ps\.update\(.*?\}\)", text)
    names = {"ps": ps, "jnp": jnp, **names}
    exec(code, names)
    return names


def option(text: str, name: str) -> Any:
    """The last `name={...}` or `name=(...)` of a message."""
    code = re.findall(rf"{name}=(\{{.*?\}}|\(.*?,\))", text)[-1]
    return eval(code, {"ps": ps, "ft": ft, "jnp": jnp})


# The way from error to error ----------------------------------------------------------------------


def test_from_the_first_error_to_the_right_shapes():
    """Whichever error comes first, the line that it advises gives each lane a state of its own."""
    expected = jax.vmap(lambda x: jnp.tanh(x))(XS)
    with pytest.raises(ps.BatchAxisError) as undeclared:
        ps.pure(ps.vmap2(make()))(XS)
    rnn = advised(str(undeclared.value), rnn=make())["rnn"]
    axes = option(str(undeclared.value), "state_in_axes")
    out, after = ps.pure(ps.vmap2(rnn, state_in_axes=axes))(XS)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert after.h.value.shape == (4, 3)

    with pytest.raises(ValueError, match="whose mapped axes differ in size") as sizes:
        ps.pure(ps.vmap2(make(), state_in_axes={0: ps.HiddenState}))(XS)
    assert "To give each lane its own `rnn.h`, make its lane axis first" in str(sizes.value)
    rnn = advised(str(sizes.value), rnn=make())["rnn"]
    assert ps.pure(ps.vmap2(rnn, state_in_axes={0: ps.HiddenState}))(XS)[0].shape == (4, 3)

    with pytest.raises(ps.BatchAxisError) as absent:
        ps.pure(ps.vmap2(make(()), state_in_axes={0: ps.HiddenState}))(XS)
    rnn = advised(str(absent.value), rnn=make(()))["rnn"]
    assert rnn.h.value.shape == (4,)


def test_a_state_that_is_cut_along_an_axis_of_its_own():
    """What once ran and gave `(3, 4, 3)` is refused, with both shapes and the call that is right."""
    with pytest.raises(ps.BatchAxisError) as error:
        ps.pure(ps.vmap2(make(), in_axes=(None,), state_in_axes={0: ps.HiddenState}))(XS)
    text = str(error.value)
    assert "with shape () in each lane, but was written with shape (4, 3)" in text
    rnn = advised(text, rnn=make())["rnn"]
    mapped = ps.vmap2(rnn, in_axes=option(text, "in_axes"), state_in_axes={0: ps.HiddenState})
    out, after = ps.pure(mapped)(XS)
    assert (out.shape, after.h.value.shape) == ((4, 3), (4, 3))
    # As many lanes as the state has entries, by chance.
    with pytest.raises(ps.BatchAxisError, match=r"with shape \(\) .* with shape \(3,\)") as error:
        ps.pure(ps.vmap2(make(), state_in_axes={0: ps.HiddenState}))(XS[:3])
    rnn = advised(str(error.value), rnn=make())["rnn"]
    out, after = ps.pure(ps.vmap2(rnn, state_in_axes={0: ps.HiddenState}))(XS[:3])
    assert (out.shape, after.h.value.shape) == ((3, 3), (3, 3))


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"out": True}])
def test_a_lane_keeps_the_shape_of_its_state(options):
    """A value of another rank is refused by every engine, declared or not, and advice gives it room."""
    if options.pop("out", False):
        options["state_out_axes"] = {0: ps.State}
    put = lambda s, x: setattr(s, "value", jnp.stack([x, x]))
    mapped = ps.vmap2(put, **options)
    with pytest.raises(
        ps.BatchAxisError, match=r"with shape \(\) .* written with shape \(2,\)"
    ) as error:
        ps.pure(mapped)(ps.State(jnp.zeros(4)), jnp.arange(4.0))
    s = advised(str(error.value), s=ps.State(jnp.zeros(4)))["s"]
    _, after = ps.pure(mapped)(s, jnp.arange(4.0))
    assert after.value.shape == (4, 2)
    assert "written with shape (2,)" in mapped.explain(ps.State(jnp.zeros(4)), XS[:, 0]).notes[-1]


def test_a_buffer_may_grow_where_it_is_declared():
    """A change of size is refused, and the declaration that the message names allows it."""
    push = lambda s, x: setattr(s, "value", jnp.append(s.value, x))
    buffer = ps.State(jnp.zeros((4, 2)))
    with pytest.raises(ps.BatchAxisError, match="declare that the change is intended") as error:
        ps.pure(ps.vmap2(push))(buffer, jnp.arange(4.0))
    axes = option(str(error.value), "state_out_axes")
    _, after = ps.pure(ps.vmap2(push, state_out_axes=axes))(buffer, jnp.arange(4.0))
    assert after.value.shape == (4, 3)


def test_what_may_change_still_may():
    """An empty state is filled, another structure is written, and outside lanes any shape is."""
    put = lambda s, x: setattr(s, "value", jnp.stack([x, x]))
    _, filled = ps.pure(ps.vmap2(put, state_out_axes={0: ps.State}))(ps.State(), jnp.arange(4.0))
    assert filled.value.shape == (4, 2)
    turn = lambda s, x: setattr(s, "value", {"a": jnp.stack([x, x])})
    _, turned = ps.pure(ps.vmap2(turn))(ps.State(jnp.zeros(4)), jnp.arange(4.0))
    assert turned.value["a"].shape == (4, 2)
    assert ps.pure(put)(ps.State(jnp.zeros(4)), 1.0)[1].value.shape == (2,)


def test_advice_for_other_calls():
    """States in arguments, by keyword, in partials, of users' kinds, and beside others of their kind."""

    class Membrane(ps.HiddenState):
        pass

    def step(t, x):
        t["v"].value = t["v"].value + x
        return x

    t = {"v": Membrane(jnp.zeros(3)), "other": Membrane(jnp.ones((4, 2)))}
    rules = {0: Membrane}
    for mapped, args, kwargs in (
        (ps.vmap2(step, in_axes=(None, 0), state_in_axes=rules), (t, XS), {}),
        (ps.vmap2(step, in_axes={"t": None}, state_in_axes=rules), (), {"t": t, "x": XS}),
        (ps.vmap2(ft.partial(step, t), state_in_axes=rules), (XS,), {}),
    ):
        with pytest.raises(ValueError, match="make its lane axis first") as error:
            mapped(*args, **kwargs)
        assert "lambda path, state: path == ('v',)" in str(error.value)
        made = advised(str(error.value), t=t, Membrane=Membrane)["t"]
        assert (made["v"].value.shape, made["other"].value.shape) == ((4, 3), (4, 2))
        assert ps.pure(ps.vmap2(step, in_axes=(None, 0), state_in_axes=rules))(made, XS)[0].shape == (
            4,
            3,
        )
    alone = {"v": t["v"]}
    with pytest.raises(ps.BatchAxisError) as error:
        ps.pure(ps.vmap2(step, in_axes=(None, 0)))(alone, XS)
    assert "t = ps.broadcast(t, {0: Membrane}, 4) and state_in_axes={0: Membrane}" in str(error.value)
    # No array says how many lanes there are: the number is an example.
    with pytest.raises(ps.BatchAxisError, match=r"ps\.broadcast\(s, \{0: ps\.State\}, 4\)") as error:
        ps.vmap2(lambda s: s.value)(ps.State(0.0))
    s = advised(str(error.value), s=ps.State(0.0))["s"]
    assert ps.vmap2(lambda s: s.value)(s).shape == (4,)


# `broadcast` --------------------------------------------------------------------------------------


def test_broadcast():
    """Selected states get the axis, in order of the filters; others stay the same objects."""
    net = {
        "h": ps.HiddenState({"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}),
        "w": ps.ParamState(jnp.ones(3)),
    }
    made = ps.broadcast(net, {-1: lambda path, _: path == ("w",), 0: ...}, np.int32(4))
    assert made["h"].value["b"].shape == (4, 2, 2)
    np.testing.assert_array_equal(made["h"].value["a"], np.tile(np.arange(3.0), (4, 1)))
    assert made["w"].value.shape == (3, 4)
    some = ps.broadcast(net, {None: ps.HiddenState, 1: ...}, 4)
    assert some["h"] is net["h"]
    assert some["w"].value.shape == (3, 4)
    assert ps.broadcast(net, ps.HiddenState, 0)["h"].value["a"].shape == (0, 3)
    empty = {"h": ps.HiddenState()}
    assert ps.broadcast(empty, ps.HiddenState, 4)["h"] is empty["h"]
    packed = ps.broadcast(ps.pack(net), ps.ParamState, 4)
    assert packed.unpack()["w"].value.shape == (4, 3)


@pytest.mark.parametrize(
    "key", [jr.key(0), jr.PRNGKey(0), jr.key(0, impl="rbg")], ids=["typed", "raw", "rbg"]
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_broadcast_splits_random_states(key, batch):
    """Lanes draw differently, and with the keys that a mapping gives them."""
    keys = key if batch == () else jr.split(key, 2)
    draw = lambda s: jr.normal(s.value if batch == () else s.value[0])
    made = ps.broadcast(ps.RandomState(keys), {0: ps.RandomState}, 4)
    out = ps.vmap2(draw)(made)
    assert len(set(out.tolist())) == 4
    n = jnp.arange(4.0)
    shared = ps.vmap2(lambda s, x: s.value, in_axes=(None, 0))(ps.RandomState(keys), n)
    as_data = lambda k: np.asarray(jr.key_data(k))
    np.testing.assert_array_equal(as_data(made.value), as_data(shared))
    if batch:
        moved = ps.broadcast(ps.RandomState(keys), {1: ps.RandomState}, 4)
        np.testing.assert_array_equal(as_data(moved.value).swapaxes(0, 1), as_data(made.value))


def test_broadcast_where_states_are_live():
    """Live states are written; under jit too."""

    def widen(net, x):
        same = ps.broadcast(net, ps.HiddenState, 4)
        assert same is net
        return net.h.value.shape, x

    (shape, _), net = ps.pure(ps.jit(widen))(make(), 1.0)
    assert net.h.value.shape == (4, 3)
    assert tuple(int(n) for n in shape) == (4, 3)
    assert jax.jit(lambda net: ps.broadcast(net, ps.HiddenState, 4))(make()).h.value.shape == (4, 3)


def test_broadcast_refuses():
    """Slips in the filter, the axis, the size, and one state at two places are named."""
    with pytest.warns(ps.UnmatchedFilterWarning, match="of ps.broadcast matches no state of the tree"):
        ps.broadcast(make(), {0: ps.BatchState}, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ps.broadcast(make(), {0: ps.HiddenState, None: ps.BatchState}, 4)
    with pytest.raises(
        ps.BatchAxisError, match=re.escape("The state at ('h',) (HiddenState) has a value")
    ):
        ps.broadcast(make(), {2: ps.HiddenState}, 4)
    with pytest.raises(ps.BatchAxisError, match="a lane axis -1 does not fit"):
        ps.broadcast(ps.RandomState(jr.PRNGKey(0)), {-1: ps.RandomState}, 4)
    with pytest.raises(
        ValueError, match=re.escape("axis_size is the number of lanes, an integer of at")
    ):
        ps.broadcast(make(), ps.HiddenState, -1)
    with pytest.raises(TypeError, match="The keys of state_axes are axes"):
        ps.broadcast(make(), {"h": ps.HiddenState}, 4)
    one = ps.HiddenState(jnp.zeros(3))
    with pytest.raises(ps.AliasedStateError, match="one state object at two places"):
        ps.broadcast([one, one], ps.HiddenState, 4)


def test_afresh_in_one_line():
    """What `broadcast` made is what a sequence starts from, again and again."""
    fresh = net = ps.broadcast(make(), {0: ps.HiddenState}, 4)
    step = ps.pure(ps.vmap2(Rnn.__call__, in_axes=(None, 0), state_in_axes={0: ps.HiddenState}))
    first, net = step(net, XS)
    second, net = step(net, XS)
    net = ps.update(net, ps.states(fresh, ps.HiddenState))
    again, net = step(net, XS)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


def test_draws_with_keys_of_other_implementations():
    """What `RandomState` says: lanes with rbg keys draw other numbers together than one by one."""
    same = {}
    for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
        keys = jr.split(jr.key(0, impl=impl), 5)[1:]
        together = jax.vmap(lambda key: jr.bits(jr.split(key)[1], (3,)))(keys)
        alone = jnp.stack([jr.bits(jr.split(key)[1], (3,)) for key in keys])
        same[impl] = bool(jnp.array_equal(together, alone))
        draw = ps.vmap2(lambda rng, x: jr.bits(rng.key(), (3,)), in_axes=(None, 0))
        args = ps.RandomState(jr.key(0, impl=impl)), jnp.arange(4.0)
        np.testing.assert_array_equal(ps.pure(draw)(*args)[0], together)
        lanes = jnp.stack([ps.pure(draw.lane(i))(*args)[0] for i in range(4)])
        np.testing.assert_array_equal(lanes, alone)
    assert same == {"threefry2x32": True, "rbg": False, "unsafe_rbg": False}


# What grows, and what reduces -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reducer"),
    [
        (0.0, "ft.partial(jnp.mean, axis=0)"),
        (jnp.zeros((), jnp.bfloat16), "ft.partial(jnp.mean, axis=0)"),
        (1j, "ft.partial(jnp.mean, axis=0)"),
        (0, "ft.partial(jnp.max, axis=0)"),
        (jnp.zeros((), jnp.uint8), "ft.partial(jnp.max, axis=0)"),
        (False, "ft.partial(jnp.any, axis=0)"),
        ({"n": 0, "m": 0.0}, "ft.partial(jnp.max, axis=0)"),
        (jr.key(0), ""),
    ],
)
def test_a_reducer_keeps_the_dtype(value, reducer):
    """The reducer of the advice fits the value: run, it gives back the shape and dtype that came in."""

    def write(s, x):
        s.value = jax.tree.map(
            lambda old: (
                jr.fold_in(old, x)
                if jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
                else x.astype(old.dtype)
            ),
            s.value,
        )

    state, xs = ps.State(value), jnp.arange(3)
    with pytest.raises(ps.BatchAxisError, match="no axis is declared for it") as error:
        ps.pure(ps.vmap2(write, in_axes=(None, 0)))(state, xs)
    text = str(error.value)
    assert ("or reduce them" in text) == bool(reducer)
    if reducer:
        assert f"or reduce them: state_out_axes={{{reducer}: ps.State}}." in text
        mapped = ps.vmap2(write, in_axes=(None, 0), state_out_axes=option(text, "state_out_axes"))
        _, after = ps.pure(mapped)(state, xs)
        types = lambda s: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)]
        assert types(after) == types(state)


def test_no_reducer_for_keys_that_lanes_write():
    """The mean of random keys is nothing, of raw ones neither."""

    def write(rng, x):
        rng.value = jr.fold_in(rng.value, x)

    for key in (jr.key(0), jr.PRNGKey(0)):
        mapped = ps.vmap2(write, in_axes=(None, 0), state_in_axes={None: ps.RandomState})
        with pytest.raises(ps.BatchAxisError) as error:
            ps.pure(mapped)(ps.RandomState(key), jnp.arange(3))
        assert "reduce" not in str(error.value)
        rng = advised(str(error.value), rng=ps.RandomState(key))["rng"]
        mapped = ps.vmap2(
            write, in_axes=(None, 0), state_in_axes=option(str(error.value), "state_in_axes")
        )
        assert ps.pure(mapped)(rng, jnp.arange(3))[1].value.shape == rng.value.shape


def test_grows_is_said_of_what_grows():
    """A state of more axes going out than coming in warns, and the advised lines end it."""
    with pytest.warns(ps.BatchAxisWarning, match="grows by an axis on each call") as caught:
        ps.pure(ps.vmap2(make(), state_out_axes={0: ps.HiddenState}))(XS)
    text = str(caught[0].message)
    rnn = advised(text, rnn=make())["rnn"]
    mapped = ps.vmap2(
        rnn, state_in_axes=option(text, "state_in_axes"), state_out_axes={0: ps.HiddenState}
    )
    assert ps.pure(mapped)(XS)[1].h.value.shape == (4, 3)

    put = lambda s, x: setattr(s, "value", x)
    for state, axes in ((ps.State(jnp.zeros((4, 3))), (None, 0)), (ps.State(jnp.zeros((4, 3))), 0)):
        _, after = ps.pure(ps.vmap2(put, in_axes=axes, state_out_axes={0: ps.State}))(state, XS)
        np.testing.assert_array_equal(after.value, XS)
