"""A forgotten `.value` is an error that says where it goes, and states stay what they are."""

import collections.abc
import copy
import math
import pickle
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


#: Each slip as code, by the value that makes it right once `.value` is there.
SLIPS = {
    "state + x": 3,
    "x + state": 3,
    "state - x": 3,
    "x - state": 3,
    "state * x": 3,
    "x * state": 3,
    "state / x": 3,
    "x / state": 3,
    "state // x": 3,
    "x // state": 3,
    "state % x": 3,
    "x % state": 3,
    "state ** x": 3,
    "x ** state": 3,
    "state << x": 3,
    "x << state": 3,
    "state >> x": 3,
    "x >> state": 3,
    "state & x": 3,
    "x & state": 3,
    "state | x": 3,
    "x | state": 3,
    "state ^ x": 3,
    "x ^ state": 3,
    "divmod(state, x)": 3,
    "divmod(x, state)": 3,
    "state @ x": [1, 2, 3],
    "x @ state": [1, 2, 3],
    "state == x": 3,
    "state != x": 3,
    "state < x": 3,
    "state <= x": 3,
    "state > x": 3,
    "state >= x": 3,
    "-state": 3,
    "+state": 3,
    "~state": 3,
    "abs(state)": 3,
    "round(state)": 3,
    "math.floor(state)": 3.0,
    "math.ceil(state)": 3.0,
    "if state: ...": 3,
    "int(state)": 3,
    "float(state)": 3,
    "complex(state)": 3,
    "len(state)": [1, 2, 3],
    "for x in state: ...": [1, 2, 3],
    "state[i]": [1, 2, 3],
    "state.shape": [1, 2, 3],
    "state.dtype": [1, 2, 3],
    "state.ndim": [1, 2, 3],
    "state.size": [1, 2, 3],
    "state.at": [1, 2, 3],
    "state.T": [1, 2, 3],
    "state.sum": [1, 2, 3],
    "state.astype": [1, 2, 3],
    "state.item": 3,
    "state.items": {"a": 3},
}

IN_PLACE = ["+", "-", "*", "/", "//", "%", "**", "<<", ">>", "&", "|", "^"]


def error_of(code: str, **names: Any) -> Exception:
    """The error that code raises, which is a `TypeError` or an `AttributeError`."""
    with pytest.raises((TypeError, AttributeError)) as caught:
        run(code, **names)
    return caught.value


def run(code: str, **names: Any) -> dict[str, Any]:
    names = {"np": np, "jnp": jnp, "math": math, **names}
    exec(code, names)
    return names


def advised(error: Exception) -> tuple[str, str]:
    """What a message says is right, and what it says was wrong."""
    right, wrong = re.findall(r"Write `(.*)`, not `(.*)`\.$", str(error))[0]
    return right, wrong


@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_is_an_error_whose_advice_runs(slip):
    """The message names the state, shows the slip, and the code in its place does what was meant."""
    value = SLIPS[slip]
    state = ps.HiddenState(jnp.array(value) if isinstance(value, list) else value)
    x = np.ones(3, np.int32) if "@" in slip else 2
    error = error_of(slip, state=state, x=x, i=1)
    assert str(error).startswith(f"`{state!r}` is a state, not the value that it holds. ")
    right, wrong = advised(error)
    assert (right, wrong) == (slip.replace("state", "state.value"), slip)
    run(right, state=state, x=x, i=1)


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_an_update_in_place_is_one_of_the_value(symbol):
    """`model.count += 1`, the forgotten `.value` itself, shows the line as it should be."""
    with ps.record({"n": ps.State(12)}) as live:
        error = error_of(f"tree['n'] {symbol}= x", tree=live, x=2)
        right, _ = advised(error)
        assert str(error).startswith("`tree['n']` (State) is a state") or "live" in str(error)
        assert right.endswith(f".value {symbol}= x")


def test_the_message_names_the_place_of_a_live_state():
    """A live state knows where it stands, and the advice is code with that place."""

    class Counter(eqx.Module):
        count: ps.ShortTermState

        def __call__(self, by):
            return self.count + by

    counter = Counter(ps.ShortTermState(1.0))
    with pytest.raises(TypeError) as caught:
        ps.pure(counter)(2.0)
    assert str(caught.value) == (
        "`counter.count` (ShortTermState) is a state, not the value that it holds. "
        "Write `counter.count.value + x`, not `counter.count + x`."
    )
    assert run("y = counter.count.value + x", counter=counter, x=2.0)["y"] == 3


@pytest.mark.parametrize(
    "other", [3, 2.5, True, 1j, np.ones(2), np.float32(1), jnp.ones(2), [1], (1,), {}]
)
def test_no_value_equals_a_state(other):
    """A comparison with anything that a value may be raises, whichever side the state is on."""
    state = ps.State(3)
    for code in ("state == x", "x == state", "state != x", "x != state"):
        assert ".value" in str(error_of(code, state=state, x=other))


def test_states_compare_by_identity():
    """With other states, with `None` and with names `==` is what it was; states are keys and members."""
    a, b = ps.State(0), ps.State(0)
    assert a == a
    assert a != b
    assert a != None  # noqa: E711
    assert a != "a"
    assert a in [b, a]
    assert {a: 1, b: 2}[b] == 2
    assert len({a, b, a}) == 2


@pytest.mark.parametrize("array", [np.arange(3.0), np.float32(1), jnp.arange(3.0)], ids=str)
@pytest.mark.parametrize("code", ["x + state", "x * state", "x - state", "x ** state", "x < state"])
def test_an_array_on_the_left_leaves_it_to_the_state(array, code):
    """NumPy and JAX do not get hold of the state: the message has the operation that was written."""
    error = error_of(code, x=array, state=ps.State(1.0))
    right, _ = advised(error)
    expected = run("y = " + code.replace("state", "state.value"), x=array, state=ps.State(1.0))["y"]
    assert np.array_equal(run(f"y = {right}", x=array, state=ps.State(1.0))["y"], expected)


@pytest.mark.parametrize(
    "code",
    [
        "np.asarray(state)",
        "np.array([state, 1])",
        "np.sin(state)",
        "np.add(1, state)",
        "np.mean(state)",
        "np.dot(state, state)",
        "np.concatenate([state, state])",
        "np.shape(state)",
        "math.sqrt(state)",
        "range(state)",
        "[1, 2][state]",
        "1 in state",
        "f'{state:.2f}'",
        "list(state)",
        "a, b = state",
        "del state[0]",
        "not state",
    ],
)
def test_functions_of_arrays_and_numbers_do_not_take_states(code):
    """What would read the state as an object, or fail without a word of `.value`, says it."""
    assert ".value" in str(error_of(code, state=ps.State(jnp.ones(2))))


@pytest.mark.parametrize(
    "code", ["jnp.sin(state)", "jnp.asarray(state)", "jnp.add(1, state)", "jnp.ones(3).at[0].set(state)"]
)
def test_functions_of_jax_name_the_state(code):
    """JAX says itself that it got a state, or the state says what to write."""
    error = error_of(code, state=ps.ParamState(1.0))
    assert "pstate.ParamState" in str(error) or "Write `state.value`" in str(error)


def test_items_are_set_in_the_value():
    """The line that is advised for `state[i] = x` is the one that JAX's arrays want."""
    with ps.record({"h": ps.State(jnp.zeros(3))}) as live:
        error = error_of("tree['h'][i] = x", tree=live, i=1, x=5.0)
        right, _ = advised(error)
        run(right, live=live, tree=live, i=1, x=5.0)
    assert ps.freeze(live)["h"].value.tolist() == [0, 5, 0]


def test_items_are_deleted_in_the_value():
    """The lines that are advised for `del state[i]` change a copy and write it."""
    with ps.record({"h": ps.State({"a": 1, "b": 2})}) as live:
        right, _ = advised(error_of("del tree['h'][i]", tree=live, i="a"))
        run(right, live=live, tree=live, i="a")
    assert list(ps.freeze(live)["h"].value) == ["b"]


@pytest.mark.parametrize(
    "name", ["shape", "dtype", "aval", "at", "keys", "_repr_html_", "__array_interface__", "__wrapped__"]
)
def test_probes_find_nothing(name):
    """JAX, Equinox, NumPy and notebooks ask states for attributes, and are told that there are none."""
    state = ps.HiddenState(1.0)
    assert not hasattr(state, name)
    assert not hasattr(ps.HiddenState, name)
    assert getattr(state, name, "none") == "none"
    assert name not in dir(state)


def test_states_are_what_they_were():
    """Not callable, hashable, copied and pickled, printed, and leaves of nothing but themselves."""
    state = ps.State(jnp.arange(2.0), tag="a")
    assert not callable(state)
    assert isinstance(state, collections.abc.Hashable)
    assert f"{state}" == repr(state) == "State(f32[2], tag='a')"
    for again in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert again.tag == ("a",)
        assert again.value.tolist() == [0, 1]
    assert not eqx.is_array(state)
    assert not eqx.is_array_like(state)
    assert eqx.tree_equal(state, copy.copy(state))
    assert jtu.tree_structure(state) == jtu.tree_structure(copy.copy(state))
    assert jax.jit(lambda s: s.value.sum())(state) == 1


def test_kinds_may_have_operators_and_attributes_of_their_own():
    """What a kind defines, in its body or by a class beside `State`, is what it has."""

    class Mean:
        def mean(self):
            return "mean"

        def __mul__(self, other):
            return "product"

        def __lt__(self, other):
            return "less"

    class Level(ps.State, Mean):
        @property
        def shape(self):
            return "shape"

        def __add__(self, other):
            return "sum"

        def __eq__(self, other):
            return other == 1

        __hash__ = ps.State.__hash__

        def __len__(self):
            return 0

        def __iter__(self):
            return iter([1, 2])

    level: Any = Level(1.0)
    assert (level.shape, level + 1, level * 1, level.mean(), level < 1) == (
        "shape",
        "sum",
        "product",
        "mean",
        "less",
    )
    assert "shape" in dir(level)
    assert "mean" in dir(level)
    assert level == 1
    assert (level != 1) is False
    assert level != 2
    assert not level
    assert 2 in level
    level += 1
    assert level == "sum"


def test_a_filter_beside_a_state_says_that_a_state_is_none():
    """`|` and `&` combine filters too, and there the state is no forgotten value."""
    for code in ("state | x", "x | state", "state & x", "x & state"):
        error = error_of(code, state=ps.State(1.0), x=ps.filter.WithTag("a"))
        assert "filter" in str(error)
        assert "Write `" not in str(error)
