"""`jit`: donation, what comes back, what is static, staleness, captures, and what stays after errors."""

import functools as ft
import gc
import re
import threading
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from pstate._states.threads import local


scale = 2.0
held = ps.State(jnp.ones(3))


def add(state, x):
    state.value += x
    return state.value * 2


def zeros(kind=ps.State):
    return kind(jnp.zeros(3))


def deleted(tree):
    return [leaf.is_deleted() for leaf in jtu.tree_leaves(tree) if isinstance(leaf, jax.Array)]


def line_of(error):
    """The line of code at the end of a message."""
    return str(error.value).splitlines()[-1].strip()


@pytest.fixture(autouse=True)
def clean_thread():
    """Nothing of what pstate keeps in a thread is left over."""
    yield
    assert local.recordings == local.catchers == ()
    assert (local.watch, local.rebuild, local.collected, local.on_devices) == (None, None, None, False)


# Donation: exactly which buffers are deleted --------------------------------------------------------


def test_only_selected_written_states_are_donated():
    """Of four states the one that is selected and written is deleted, and nothing else."""

    def body(tree, x):
        tree["read"].value.sum()
        tree["other"].value += x
        tree["mine"].value += x

    tree = {
        "mine": zeros(ps.HiddenState),
        "other": zeros(ps.ParamState),
        "read": zeros(ps.HiddenState),
        "unused": zeros(ps.HiddenState),
    }
    x = jnp.ones(3)
    _, new = ps.pure(ps.jit(body, donate=ps.HiddenState))(tree, x)
    assert {name: deleted(state) for name, state in tree.items()} == {
        "mine": [True],
        "other": [False],
        "read": [False],
        "unused": [False],
    }
    assert not x.is_deleted()
    assert new["read"].value is tree["read"].value
    np.testing.assert_array_equal(new["mine"].value, np.ones(3))


@pytest.mark.parametrize(
    "write",
    [
        lambda value: jnp.zeros(4),
        lambda value: value.astype(jnp.int32),
        lambda value: None,
        lambda value: {"inner": [value + 1, value]},
    ],
    ids=["shape", "dtype", "emptied", "structure"],
)
def test_another_type_is_not_donated(write):
    """A value of another shape, dtype or structure leaves the old buffer alone."""

    def body(state):
        state.value = write(state.value)

    state = zeros()
    ps.pure(ps.jit(body, donate=...))(state)
    assert deleted(state) == [False]


def test_what_is_returned_as_it_came_in_is_kept():
    """The old value stands in the output, as the very array, and is therefore not given up."""

    def body(state):
        old = state.value
        state.value = old + 1
        return old

    state = zeros()
    out, new = ps.pure(ps.jit(body, donate=...))(state)
    assert out is state.value
    np.testing.assert_array_equal(out, np.zeros(3))
    np.testing.assert_array_equal(new.value, np.ones(3))


def test_states_that_swap_their_values():
    """Donated buffers that come back as each other's values hold the right numbers."""

    def body(tree):
        tree["a"].value, tree["b"].value = tree["b"].value, tree["a"].value

    tree = {"a": ps.State(jnp.zeros(3)), "b": ps.State(jnp.ones(3))}
    _, new = ps.pure(ps.jit(body, donate=...))(tree)
    np.testing.assert_array_equal(new["a"].value, np.ones(3))
    np.testing.assert_array_equal(new["b"].value, np.zeros(3))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("donate", "given_up"), [(ps.BatchState, False), (..., True)], ids=["one", "both"]
)
def test_one_buffer_at_two_places(packed, donate, given_up):
    """An average that starts as the very array of the parameters: given up if both places give it up."""
    weight = jnp.ones(3)

    def body(tree):
        tree["weight"].value += 1
        tree["mean"].value = (tree["mean"].value + tree["weight"].value) / 2

    tree = {"mean": ps.BatchState(weight), "weight": ps.ParamState(weight)}
    step = ps.pure(ps.jit(body, donate=donate))
    _, once = step(ps.pack(tree) if packed else tree)
    assert weight.is_deleted() == given_up
    _, twice = step(once)
    assert deleted(once) == [True, given_up]
    twice = twice.unpack() if packed else twice
    np.testing.assert_array_equal(twice["mean"].value, np.full(3, 2.25))
    np.testing.assert_array_equal(twice["weight"].value, np.full(3, 3.0))


def test_a_key_at_two_places():
    """Two random states of one typed key are donated and draw alike."""
    key = jax.random.key(0)
    tree = {"a": ps.RandomState(key), "b": ps.RandomState(key)}
    draws, new = ps.pure(ps.jit(lambda t: (t["a"].normal(), t["b"].normal()), donate=...))(tree)
    assert draws[0] == draws[1]
    assert new["a"].value == new["b"].value


def test_the_written_set_depends_on_shapes():
    """One wrapper, two shapes, two written sets: each call donates its own."""

    def body(tree, x):
        tree["many" if x.size > 1 else "one"].value += x.sum()

    step = ps.pure(ps.jit(body, donate=...))
    for size, expected in [(1, [False, True]), (5, [True, False]), (1, [False, True])]:
        tree = {"many": ps.State(jnp.zeros(())), "one": ps.State(jnp.zeros(()))}
        step(tree, jnp.ones(size))
        assert deleted(tree) == expected


def test_donation_traces_once():
    """Learning what is written costs no run of the body."""
    runs = []

    def body(state, x):
        runs.append(None)
        return add(state, x)

    state = zeros()
    for _ in range(3):
        _, state = ps.pure(ps.jit(body, donate=...))(state, jnp.ones(3))
    assert len(runs) == 1


def test_donate_argnums_without_pure():
    """Where nobody goes on with the argument it is given up whole, as in `jax.jit`, and nothing else."""

    @ps.jit(donate_argnums=0)
    def step(tree, x):
        return jtu.tree_map(lambda leaf: leaf + x, tree)

    tree, x = {"a": zeros(), "raw": jnp.zeros(3)}, jnp.ones(3)
    new = step(tree, x)
    assert deleted(tree) == [True, True]
    assert not x.is_deleted()
    np.testing.assert_array_equal(new["raw"], np.ones(3))


@pytest.mark.parametrize("live", [False, True])
def test_donate_argnums_where_somebody_goes_on(live):
    """In `pure` and in a recording only overwritten states of the argument are given up."""

    def body(tree, x):
        tree["n"].value += x + tree["w"].value + tree["raw"]

    tree = {"n": zeros(), "raw": jnp.zeros(3), "w": zeros()}
    step = ps.jit(body, donate_argnums=0)
    if live:
        with ps.record(tree) as copy:
            step(copy, jnp.ones(3))
        new = ps.freeze(copy)
    else:
        _, new = ps.pure(step)(tree, jnp.ones(3))
    assert deleted(tree) == [True, False, False]
    np.testing.assert_array_equal(new["n"].value + new["w"].value + new["raw"], np.ones(3))


@pytest.mark.parametrize("live", [False, True])
def test_donate_argnums_of_another_argument(live):
    """The optimiser's state is not given back by `pure`, so it is given up whole."""

    def body(state, moments):
        state.value += 1
        return {"m": moments["m"] + 1}

    state, moments = zeros(), {"m": jnp.zeros(3)}
    step = ps.jit(body, donate_argnums=(0, 1))
    if live:
        with ps.record(state) as copy:
            step(copy, moments)
    else:
        ps.pure(step)(state, moments)
    assert deleted(state) == [True]
    assert deleted(moments) == [True]


def test_donate_argnums_out_of_range():
    """A position that no argument has is refused, and no other argument is given up for it."""
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="donate_argnums"):
        ps.jit(lambda state, x: x + state.value, donate_argnums=3)(zeros(), x)
    assert not x.is_deleted()


def test_numpy_operands():
    """NumPy arrays can be donated, and come back as JAX arrays."""
    x = np.ones(3, np.float32)
    (out, same), _ = ps.pure(ps.jit(lambda s, x: (add(s, x), x), donate_argnums=(0, 1)))(zeros(), x)
    assert isinstance(same, jax.Array)
    np.testing.assert_array_equal(x, np.ones(3))
    np.testing.assert_array_equal(out, np.full(3, 2.0))


def test_under_another_trace_nothing_is_donated():
    """Inside `jax.jit` and inside `jit` donation is left to the outer call."""
    inner = ps.pure(ps.jit(add, donate=...))
    for outer in (jax.jit(inner), ps.jit(inner)):
        state = zeros()
        outer(state, jnp.ones(3))
        assert deleted(state) == [False]
    with jax.disable_jit():
        state = zeros()
        inner(state, jnp.ones(3))
        assert deleted(state) == [False]


def test_donation_in_a_recording():
    """Each step of a recording gives up the value of the step before."""
    step = ps.jit(add, donate=...)
    state = zeros()
    with ps.record(state) as live:
        for _ in range(3):
            step(live, jnp.ones(3))
    assert state.value is not None
    assert deleted(state) == [True]
    np.testing.assert_array_equal(ps.freeze(live).value, np.full(3, 3.0))


def test_a_donated_input_used_again():
    """Whoever is called names the argument that is gone, and the advice runs."""
    step = ps.pure(ps.jit(add, donate=ps.State))
    first = zeros()
    _, second = step(first, jnp.ones(3))
    message = (
        r"`state` was donated to an earlier call and its buffer is gone, so ps\.\w+\(add.*\) cannot "
        r"read it\. Go on with the tree that the earlier call gave back, or do not donate: leave donate "
        r"and donate_argnums out\."
    )
    others = (ps.pure(f) for f in (add, ps.jit(add), ps.vmap2(add), ps.checkpoint(add)))
    for again in (step, *others):
        with pytest.raises(ps.StateError, match=message):
            again(first, jnp.ones(3))
    _, third = ps.pure(ps.jit(add))(second, jnp.ones(3))
    _, fourth = ps.pure(ps.jit(add))(second, jnp.ones(3))
    np.testing.assert_array_equal(third.value, fourth.value)


def test_idle_donation():
    """A filter that selects nothing written is told so, once, and the advice runs."""
    step = ps.jit(add, donate=ps.ParamState)
    message = (
        r"donate=OfType\(ParamState\) of ps\.jit\(add.*\) gives up nothing: it selects none of the "
        r"states that the function writes, which are `state`\. For an argument whose new tree is "
        r"returned, name the argument: donate_argnums=\(0,\)\."
    )
    with pytest.warns(ps.UnmatchedFilterWarning, match=message):
        ps.pure(step)(zeros(), jnp.ones(3))
    ps.pure(step)(zeros(), jnp.ones(3))
    state = zeros()
    ps.pure(ps.jit(add, donate_argnums=(0,)))(state, jnp.ones(3))
    assert deleted(state) == [True]


def _unthreaded(step, state):
    step(state, jnp.ones(3))


def _outside_a_contract(step, state):
    ps.pure(step, writes=ps.ParamState)(state, jnp.ones(3))


def _outside_the_contract_of_a_recording(step, state):
    with ps.record(state, writes=ps.ParamState) as live:
        step(live, jnp.ones(3))


def _outside_argnums(step, state):
    ps.pure(step, argnums=1)(state, jnp.ones(3))


def _in_a_keyword(step, state):
    ps.pure(lambda x, **kwargs: step(x=x, **kwargs))(jnp.ones(3), state=state)


@pytest.mark.parametrize("options", [{"donate": ps.State}, {"donate_argnums": 0}], ids=str)
@pytest.mark.parametrize(
    "refused",
    [_unthreaded, _outside_a_contract, _outside_the_contract_of_a_recording, _outside_argnums],
)
def test_a_refused_call_donates_nothing(refused, options):
    """A call that raises leaves its inputs as they were (L8): nothing came back in their place."""
    state = zeros()
    with pytest.raises(ps.FrozenStateError, match="was written"):
        refused(ps.jit(add, **options), state)
    assert deleted(state) == [False]


def test_a_refused_echo_donates_nothing():
    """A state that comes back twice is refused, and is still there."""

    def body(state, x):
        state.value += x
        return state

    state = zeros()
    with pytest.raises(ps.AliasedStateError, match="also stands in the output as `out`"):
        ps.pure(ps.jit(body, donate=...))(state, 1.0)
    assert deleted(state) == [False]


def test_a_refused_keyword_donates_nothing():
    """A written keyword argument is refused, and is still there."""
    state = zeros()
    with pytest.raises(ps.FrozenStateError, match="keyword argument 'state'"):
        ps.pure(ps.jit(lambda x, *, state: add(state, x), donate=...))(jnp.ones(3), state=state)
    assert deleted(state) == [False]


def test_a_state_that_is_written_and_never_read():
    """Whether the body reads the old value makes no difference to what is given up."""

    def reset(state, x):
        state.value = x * 2

    state = zeros()
    ps.pure(ps.jit(reset, donate=...))(state, jnp.ones(3))
    assert deleted(state) == [True]


def test_two_arrays_of_one_buffer():
    """`jax.device_put` gives a second array of the same buffer, as a copied model has."""
    weight = jnp.ones(3)
    twin = jax.device_put(weight, weight.sharding)

    def body(tree):
        tree["mean"].value = tree["mean"].value + tree["weight"].value
        tree["weight"].value += 1

    tree = {"mean": ps.LongTermState(twin), "weight": ps.ParamState(weight)}
    if weight.unsafe_buffer_pointer() != twin.unsafe_buffer_pointer():
        pytest.fail("copied, so that nothing is shown")
    _, new = ps.pure(ps.jit(body, donate=...))(tree)
    np.testing.assert_array_equal(new["mean"].value, np.full(3, 2.0))


# What comes back ------------------------------------------------------------------------------------


def test_outputs_that_came_in_are_the_same_objects():
    """States, arrays and static leaves that only pass through are the very objects."""
    x = jnp.ones(3)
    tree = {"f": jnp.tanh, "s": zeros(), "x": x}

    def body(tree, y):
        return tree, y, tree["x"], tree["f"], "name", None

    for disabled in (False, True):
        with jax.disable_jit(disabled):
            out, *rest = ps.jit(body)(tree, x)
        assert out["s"].value is tree["s"].value
        assert out["x"] is rest[0] is rest[1] is x
        assert rest[2:] == [jnp.tanh, "name", None]


def test_static_leaves_come_out():
    """A constructor gives a module whose functions and numbers are those it was made with."""

    class Net(eqx.Module):
        weight: ps.ParamState
        act: object
        rate: float

        def __init__(self, key):
            self.weight = ps.ParamState(jax.random.normal(key, (2,)))
            self.act = jax.nn.relu
            self.rate = 0.5

    net = ps.jit(Net)(jax.random.key(0))
    assert net.act is jax.nn.relu
    assert net.rate == 0.5
    assert type(net.rate) is float
    out, same = ps.pure(ps.jit(lambda net, x: net.act(net.weight.value * x)))(net, jnp.ones(2))
    assert same.weight.value is net.weight.value
    assert out.shape == (2,)


def test_numbers_come_out_as_arrays():
    """A Python number is an output as in JAX, weak type and all."""
    out = ps.jit(lambda x: (1, 2.5, True, np.ones(2, np.int8)))(0)
    expected = jax.jit(lambda: (1, 2.5, True, np.ones(2, np.int8)))()
    for one, other in zip(out, expected, strict=True):
        assert (one.dtype, one.weak_type, one.shape) == (other.dtype, other.weak_type, other.shape)


def test_states_that_change_their_structure():
    """Empty states are filled, containers change their shape and states are emptied, live or not."""

    def fill(tree):
        tree["a"].value = {"u": jnp.ones(2), "v": [jnp.zeros(1)]}

    def empty(tree):
        tree["a"].value = None

    tree = {"a": ps.State(), "b": zeros()}
    _, filled = ps.pure(ps.jit(fill))(tree)
    with ps.record(tree) as live:
        ps.jit(fill)(live)
    assert jtu.tree_structure(ps.freeze(live)) == jtu.tree_structure(filled)
    np.testing.assert_array_equal(filled["a"].value["u"], np.ones(2))
    assert filled["b"].value is tree["b"].value
    _, emptied = ps.pure(ps.jit(empty))(filled)
    assert jtu.tree_structure(emptied) == jtu.tree_structure(tree)
    with pytest.raises(
        ps.UninitializedStateError, match=r"`tree\['a'\]` \(State\) is empty and was read"
    ):
        ps.jit(lambda tree: tree["a"].value)(emptied)


def test_keywords():
    """Keywords may come in any order and share one program; a written one is refused."""
    runs = []

    def body(state, *, x, y):
        runs.append(None)
        state.value += x - y
        return state.value

    step = ps.pure(ps.jit(body))
    one, _ = step(zeros(), x=jnp.ones(3), y=2)
    two, _ = step(zeros(), y=2, x=jnp.ones(3))
    np.testing.assert_array_equal(one, two)
    assert len(runs) == 1
    with pytest.raises(TypeError, match=r"threads the states of argument 0, and no positional argument"):
        ps.pure(ps.jit(add))(state=zeros(), x=1)


def test_argnums_of_pure():
    """`pure` gives back what it is told to; a write elsewhere names the argnums that will do."""

    def both(a, b):
        a.value += 1
        b.value += 2

    _, (b, a) = ps.pure(ps.jit(both), argnums=(1, 0))(zeros(), zeros())
    assert (a.value[0], b.value[0]) == (1, 2)
    with pytest.raises(ps.FrozenStateError, match=r"Count it: argnums=\(0, 1\)\.$"):
        ps.pure(ps.jit(both))(zeros(), zeros())


# Callables ------------------------------------------------------------------------------------------


class Layer(eqx.Module):
    count: ps.State

    def step(self, x):
        self.count.value += x
        return self.count.value

    @ps.jit
    def compiled(self, x):
        return self.step(x)

    @ps.jit(donate=ps.State)
    def donating(self, x):
        return self.step(x)

    @staticmethod
    @ps.jit
    def plain(x):
        return x + 1

    def __call__(self, x):
        return self.step(x)


class Object:
    def __init__(self, factor):
        self.factor = factor

    def step(self, state, x):
        return add(state, self.factor * x)


CALLABLES = {
    "method": lambda layer: ps.jit(layer.step),
    "decorated": lambda layer: layer.compiled,
    "donating": lambda layer: layer.donating,
    "module": lambda layer: ps.jit(layer),
    "partial": lambda layer: ps.jit(ft.partial(Layer.step, layer)),
    "Partial": lambda layer: ps.jit(jtu.Partial(layer)),
    "nested": lambda layer: ps.jit(ps.jit(ps.checkpoint(layer))),
    "mapped": lambda layer: ps.jit(ps.vmap2(layer, state_in_axes={0: ps.State})),
}


@pytest.mark.parametrize("make", CALLABLES.values(), ids=CALLABLES)
def test_carriers_of_callables(make):
    """Whatever holds the states is given back in its own type, and its program is compiled once."""
    layer = Layer(zeros())
    out, new = ps.pure(make(layer))(jnp.ones(3))
    np.testing.assert_array_equal(out, np.ones(3))
    if isinstance(new, ft.partial):  # also `jax.tree_util.Partial`
        (new,) = (*new.args, *([] if new.args else [new.func]))
    assert type(new) is Layer
    np.testing.assert_array_equal(new.count.value, np.ones(3))


def test_methods_of_plain_objects_and_static_methods():
    """A plain object is static; each has its own program. A static method is a function."""
    for factor in (2.0, 3.0):
        _, new = ps.pure(ps.jit(Object(factor).step))(zeros(), jnp.ones(3))
        np.testing.assert_array_equal(new.value, np.full(3, factor))
    assert Layer.plain(jnp.ones(())) == Layer(zeros()).plain(jnp.ones(())) == 2
    _, layer = ps.pure(Layer.compiled)(Layer(zeros()), jnp.ones(3))
    np.testing.assert_array_equal(layer.count.value, np.ones(3))


def test_stacked_decorators():
    """Decorators in a class body may stand in any order, and are inherited."""

    class Base(eqx.Module):
        s: ps.State

        @ps.pure
        @ps.jit(donate=ps.State)
        def outside(self, x):
            self.s.value += x

        @ps.jit
        @ps.pure
        def inside(self, x):
            self.s.value += x

        @ps.pure
        @ps.jit
        @ps.vmap2(state_in_axes={0: ps.State})
        def lanes(self, x):
            self.s.value += x

    class Derived(Base):
        pass

    for name in ("outside", "inside", "lanes"):
        _, new = getattr(Derived(zeros()), name)(jnp.ones(3))
        assert type(new) is Derived
        np.testing.assert_array_equal(new.s.value, np.ones(3))


def test_one_heart_many_callables():
    """Subclasses, static fields and rebound methods have programs of their own."""

    class Base(eqx.Module):
        s: ps.State
        f: object = eqx.field(static=True)

        def __call__(self, x):
            return self.f(self.shift(x))

        def shift(self, x):
            return x + 1

    class Derived(Base):
        def shift(self, x):
            return x + 2

    x, double, triple = jnp.ones(()), lambda x: 2 * x, lambda x: 3 * x
    calls = Base(zeros(), double), Derived(zeros(), double), Base(zeros(), triple)
    assert [ps.jit(layer)(x).item() for layer in calls] == [4, 6, 6]
    Base.__call__ = lambda self, x: x * 10
    assert ps.jit(calls[0])(x) == 10


def test_live_aliases():
    """A live state that is passed twice may be read; a write is refused with both places."""
    with ps.record(zeros()) as live:
        np.testing.assert_array_equal(ps.jit(lambda a, b: a.value + b.value)(live, live), np.zeros(3))
        with pytest.raises(
            ps.AliasedStateError, match=r"`a` and `b` are one state object at two places"
        ):
            ps.jit(lambda a, b: add(a, 1.0), donate=...)(live, live)
    assert deleted(live) == [False]


def test_a_keyword_called_self():
    """Keywords of any name reach the function."""
    assert ps.jit(lambda x, self: x + self)(jnp.ones(()), self=2.0) == 3


def test_functions_of_other_libraries():
    """What is compiled or wrapped already is a function like any other."""
    x = jnp.arange(3.0)
    for fn in (jnp.sin, jax.jit(jnp.sin), jax.vmap(jnp.sin), eqx.filter_jit(jnp.sin)):
        np.testing.assert_allclose(ps.jit(fn)(x), np.sin(x), rtol=1e-6)


# Static leaves and staleness ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda k: ps.jit(_times)(jnp.ones(2), k), "k"),
        (lambda k: ps.jit(_times)(jnp.ones(2), k=k), "k"),
        (lambda k: ps.jit(_first_of)({"rate": k, "w": jnp.ones(2)}), r"tree\['rate'\]"),
        pytest.param(
            lambda k: ps.jit(ft.partial(_times_reversed, k))(jnp.ones(2)),
            "k",
        ),
    ],
    ids=["position", "keyword", "leaf", "partial"],
)
def test_a_number_that_keeps_changing(call, place):
    """The fifth value gives one warning that names the number, and its advice ends the compiling."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(8):
            call(k + 0.5)
    (warning,) = [w for w in caught if w.category is ps.RecompilationWarning]
    assert re.match(rf"`{place}` is a Python number and has had 5 values: ps\.jit", str(warning.message))
    assert str(warning.message).endswith("Pass an array: jnp.asarray(4.5).")
    assert warning.filename == __file__
    call(jnp.asarray(4.5))


def _times(x, k):
    return x * k


def _times_reversed(k, x):
    return x * k


def _first_of(tree):
    return tree["w"] * tree["rate"]


@pytest.mark.filterwarnings("ignore::pstate.RecompilationWarning")
def test_numbers_are_told_apart():
    """`1`, `1.0`, `True`, `0.0` and `-0.0` are programs of their own; `nan` is one."""
    seen = []

    def body(x, k):
        seen.append(k)
        return jnp.asarray(k) * x

    step = ps.jit(body)
    for k in (1, 1.0, True, 0.0, -0.0, float("nan"), float("nan"), 1, -0.0):
        step(jnp.ones(()), k)
    assert len(seen) == 6
    assert np.signbit(step(jnp.ones(()), -0.0))
    assert not np.signbit(step(jnp.ones(()), 0.0))


@pytest.mark.parametrize("where", ["position", "partial"])
def test_an_unhashable_leaf(where):
    """It is named by its place, and the advice to pass an array holds."""
    if where == "position":
        with pytest.raises(TypeError, match=r"^`k` is a set, neither an array nor hashable, so that ps"):
            ps.jit(_times)(jnp.ones(2), {1, 2})
    else:
        tree = {"s": zeros()}
        partial = ft.partial(lambda k, tree, x: tree["s"].value * x, {1}, tree)
        with pytest.raises(TypeError, match=r"^`k` is a set, neither an array nor hashable"):
            ps.jit(partial)(jnp.ones(3))
    np.testing.assert_array_equal(ps.jit(_times)(jnp.ones(2), jnp.asarray([1, 2])), [1, 2])


@pytest.mark.parametrize("packed", [False, True])
def test_rebound_names(packed, monkeypatch):
    """A rebound global, closure, default and keyword default are seen by a wrapper that was kept."""
    factor = 2.0

    def by_global(state, x):
        return x * scale

    def by_closure(state, x):
        return x * factor

    def by_default(state, x, k=2.0):
        return x * k

    def by_keyword(state, x, *, k=2.0):
        return x * k

    functions = (by_global, by_closure, by_default, by_keyword)
    steps = [ps.pure(ps.jit(f)) for f in functions]
    tree = ps.pack({"s": zeros()}) if packed else {"s": zeros()}
    assert [step(tree, jnp.ones(()))[0].item() for step in steps] == [2, 2, 2, 2]
    monkeypatch.setitem(globals(), "scale", 3.0)
    factor = 4.0
    by_default.__defaults__ = (5.0,)
    by_keyword.__kwdefaults__ = {"k": 6.0}
    assert [step(tree, jnp.ones(()))[0].item() for step in steps] == [3, 4, 5, 6]


# Captured states ------------------------------------------------------------------------------------


def test_a_captured_state():
    """A state that is no argument is refused, also where the body catches errors; the advice runs."""

    def swallow(x):
        try:
            return x + held.value
        except Exception:
            return x

    message = (
        r"^ps\.jit\(swallow\) reads the state `State\(f32\[3\]\)`, which did not come in through its "
        r"arguments\. Compiled, it would keep the value that the state has now and go stale\. Pass the "
        r"tree that holds the state as an argument\.$"
    )
    step = ps.jit(swallow)
    for look in (step, step.lower, lambda x: step.get_jaxpr_by_cache(step.get_arg_cache_key(x))):
        with pytest.raises(ps.CapturedStateError, match=message):
            look(jnp.ones(3))
    with jax.disable_jit():
        np.testing.assert_array_equal(step(jnp.ones(3)), np.full(3, 2.0))
    out = ps.jit(lambda state, x: x + state.value)(held, jnp.ones(3))
    np.testing.assert_array_equal(out, np.full(3, 2.0))


@pytest.mark.parametrize(
    "inside", [jax.jit, ps.checkpoint, lambda f: jax.vmap(f), lambda f: ps.grad(lambda x: f(x).sum())]
)
def test_a_state_captured_deeper(inside):
    """A transform inside the body hides nothing."""
    with pytest.raises(ps.CapturedStateError, match=r"ps\.jit\(f\) reads the state `State"):
        ps.jit(lambda x: inside(lambda x: x + held.value.sum())(x))(jnp.ones(3))


def test_a_live_state_captured():
    """A body that closes over a live state is refused: to read it, and to write it."""

    def reads(state, x):
        return ps.jit(lambda x: x + state.value)(x)

    def writes(state, x):
        def inner(x):
            state.value = x

        ps.jit(inner)(x)

    with pytest.raises(ps.CapturedStateError, match=r"reads the state `state` \(State\)"):
        ps.pure(reads)(zeros(), jnp.ones(3))
    with pytest.raises(ps.TraceScopeError, match=r"`state` \(State\) was written under a JAX trace"):
        ps.pure(writes)(zeros(), jnp.ones(3))


def test_no_false_alarms():
    """States made in the body, of whatever arrays, are no captures."""

    def body(tree, x):
        made = ps.State(np.ones(3)), ps.State(2.0), ps.State(np.zeros(3)).replace(np.ones(3))
        updated = ps.update({"s": ps.State(np.ones(3))}, {("s",): np.ones(3)})["s"]
        mapped = jtu.tree_map(lambda leaf: np.ones(3, np.float32), tree)["s"]
        changed = eqx.tree_at(lambda t: t["s"].value, tree, np.ones(3, np.float32))["s"]
        with ps.record({"s": ps.State(np.ones(3))}) as live:
            live["s"].value += x
        _, stepped = ps.pure(add)(ps.State(np.ones(3)), x)
        states = (*made, updated, mapped, changed, ps.freeze(live)["s"], stepped)
        return sum(state.value for state in states)

    out = ps.jit(body)({"s": zeros()}, jnp.ones(3))
    np.testing.assert_array_equal(out, np.full(3, 11.0))


def test_no_false_alarm_for_constants_computed_while_tracing():
    """A state of constants that the body made and stepped at compile time is no capture."""

    def body(x):
        with jax.ensure_compile_time_eval():
            _, state = ps.pure(add)(ps.State(jnp.ones(3)), jnp.ones(3))
            return state.value + x

    np.testing.assert_array_equal(ps.jit(body)(jnp.ones(3)), np.full(3, 3.0))


# Looking --------------------------------------------------------------------------------------------


def test_keys_of_calls():
    """Keys are equal for calls that share a program, through any wrapper and with mere shapes."""
    runs = []

    def body(state, x):
        runs.append(None)
        return add(state, x)

    step = ps.jit(body)
    ps.pure(step)(zeros(), jnp.ones(3))
    key = step.get_arg_cache_key(zeros(), jnp.ones(3))
    shapes = jax.eval_shape(lambda: zeros()), jax.ShapeDtypeStruct((3,), jnp.float32)
    for other in (
        ps.jit(body).get_arg_cache_key(zeros(), np.ones(3, np.float32)),
        step.get_arg_cache_key(*shapes),
    ):
        assert other == key
        assert hash(other) == hash(key)
    assert step.get_arg_cache_key(zeros(), 1.0) != key
    assert step.get_arg_cache_key(zeros(), jnp.ones(2)) != key
    assert ps.jit(body, donate=...).get_arg_cache_key(zeros(), jnp.ones(3)) != key
    assert [v.aval.shape for v in step.get_jaxpr_by_cache(key).jaxpr.outvars] == [(3,), (3,)]
    assert step.lower(*shapes).compile() is not None
    assert len(runs) == 1


def test_lower_shows_what_is_donated():
    """A lowered program has the donation of a call, and unwritten states do not leave it."""

    def body(tree, x):
        tree["a"].value += x * tree["b"].value

    tree = {"a": zeros(), "b": zeros(ps.ParamState)}
    text = ps.jit(body, donate=ps.State).lower(tree, jnp.ones(3)).as_text()
    assert text.count("tf.aliasing_output") == 1
    assert deleted(tree) == [False, False]


# What stays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"donate": ps.State}, {"donate_argnums": 0}], ids=["plain", "donate", "argnums"]
)
@pytest.mark.parametrize("pack", [lambda tree: tree, ps.pack], ids=["tree", "packed"])
def test_an_exception_half_way(options, pack):
    """The exception comes out as it is, inputs stay usable, and the next call works."""
    bad = True

    def body(tree, x):
        tree["s"].value += x
        if bad:
            raise KeyError("half way")

    tree = pack({"s": zeros()})
    step = ps.pure(ps.jit(body, **options))
    with pytest.raises(KeyError, match="half way"):
        step(tree, jnp.ones(3))
    assert deleted(tree) == [False]
    with ps.record({"s": zeros()}) as live:
        with pytest.raises(KeyError, match="half way"):
            ps.jit(body, **options)(live, jnp.ones(3))
        assert ps.written(live) == {}
    bad = False
    _, new = step(tree, jnp.ones(3))
    np.testing.assert_array_equal(jtu.tree_leaves(new)[0], np.ones(3))


WRAPS = {
    "jit": ps.jit,
    "donate": ft.partial(ps.jit, donate=...),
    "vmap2": lambda f: ps.jit(ps.vmap2(f)),
    "grad": lambda f: ps.jit(ps.grad(lambda state, x: f(state, x).sum(), wrt=...)),
    "partial": lambda f: ps.jit(ft.partial(f)),
    "eager grad": lambda f: ps.grad(lambda state, x: f(state, x).sum(), wrt=...),
    "checkpoint": ps.checkpoint,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("pack", [lambda tree: tree, ps.pack], ids=["tree", "packed"])
def test_nothing_is_kept(wrap, pack):
    """A function, what it closes over, and the model are collected after use."""
    constant = jnp.ones(3)

    def body(state, x):
        return add(state, x + constant)

    model = pack(zeros())
    seen = [weakref.ref(x) for x in (body, constant, jtu.tree_leaves(model)[0])]
    result = ps.pure(wrap(body))(model, jnp.ones(3))
    del body, constant, model, result
    gc.collect()
    assert [ref() for ref in seen] == [None, None, None]


def test_a_decorated_method_keeps_no_model():
    """The program of a method belongs to the class, and holds no instance."""
    layer = Layer(zeros())
    seen = weakref.ref(layer.count.value)
    ps.pure(layer.compiled)(jnp.ones(3))
    ps.pure(ps.jit(layer))(jnp.ones(3))
    del layer
    gc.collect()
    assert seen() is None


def test_threads():
    """Many threads share one wrapper, with trees and packed trees, donated and not."""
    runs, errors = [], []

    def body(tree, x):
        runs.append(None)
        tree["s"].value += x
        return tree["s"].value * 2

    steps = ps.pure(ps.jit(body)), ps.pure(ps.jit(body, donate=...))

    def work(start):
        try:
            for step in steps:
                for carrier in (
                    {"s": ps.State(jnp.full(3, start))},
                    ps.pack({"s": ps.State(jnp.full(3, start))}),
                ):
                    for k in range(10):
                        out, carrier = step(carrier, jnp.ones(3))
                        np.testing.assert_array_equal(out, np.full(3, 2 * (start + k + 1)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(runs) <= 2 * 2 * len(threads)


@pytest.mark.parametrize("checks", [jax.checking_leaks, lambda: jax.debug_key_reuse(True)])
def test_under_the_checks_of_jax(checks):
    """Leak checking and key-reuse checking pass, with typed and raw keys, trees and packed trees."""

    def body(tree, x):
        tree["n"].value += x
        return tree["rng"].normal() + tree["n"].value

    with checks():
        for key in (jax.random.key(0), jax.random.PRNGKey(0)):
            for options in ({}, {"donate": ...}):
                step = ps.pure(ps.jit(body, **options))
                for pack in (lambda tree: tree, ps.pack):
                    tree = pack({"n": ps.State(0.0), "rng": ps.RandomState(jnp.copy(key))})
                    one, tree = step(tree, jnp.ones(()))
                    two, tree = step(tree, jnp.ones(()))
                    assert one + 1 != two
        ps.jit(body).lower({"n": ps.State(0.0), "rng": ps.RandomState(0)}, jnp.ones(()))


def test_random_states_in_lanes():
    """In a lane a compiled function draws the lane's numbers, and a state nobody draws from stays."""

    def draws(rng, x):
        return x + rng.normal()

    def twice(f):
        return lambda rng, x: rng.normal() + f(rng, x)

    rng, xs = ps.RandomState(0), jnp.arange(3.0)
    for by in (lambda f: f, twice):
        compiled, new = ps.pure(ps.vmap2(by(ps.jit(draws))))(rng, xs)
        plain, same = ps.pure(ps.vmap2(by(draws)))(rng, xs)
        np.testing.assert_array_equal(compiled, plain)
        assert new.value == same.value
    _, new = ps.pure(ps.vmap2(lambda rng, x: ps.jit(lambda rng, x: x)(rng, x)))(rng, xs)
    assert new.value is rng.value


# Messages -------------------------------------------------------------------------------------------


@ps.jit(donate=ps.ShortTermState)
def decorated(state, x):
    return add(state, x)


@pytest.mark.parametrize(
    "step",
    [
        ps.jit(add),
        ps.jit(add, donate=ps.State),
        ps.jit(add, donate_argnums=(0, 1)),
        ps.jit(add, donate=[ps.ParamState, "tag"], donate_argnums=1),
        decorated,
        ps.jit(ps.checkpoint(add)),
    ],
    ids=["plain", "donate", "argnums", "both", "decorated", "nested"],
)
def test_the_line_that_is_right(step):
    """A write that nobody takes names the line to write, which runs."""
    state = zeros(ps.ShortTermState)
    kept, x = state.replace(jnp.zeros(3)), jnp.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.UnmatchedFilterWarning)
        with pytest.raises(
            ps.FrozenStateError, match=r"`state` \(ShortTermState\) was written"
        ) as error:
            step(state, jnp.copy(x))
        names = {"ps": ps, "add": add, "decorated": decorated, "state": kept, "x": x}
        exec(line_of(error), names)
    np.testing.assert_array_equal(names["state"].value, np.ones(3))


def test_an_echo():
    """A state that also stands in the output is named with both places; the advice runs."""
    message = (
        r"came in as `state` and also stands in the output as `out\[0\]`.*state\.replace\(state\.value\)"
    )
    with pytest.raises(ps.AliasedStateError, match=message):
        ps.pure(ps.jit(lambda state: (state, 1)))(zeros())
    with ps.record(zeros()) as live, pytest.raises(ps.AliasedStateError, match=message):
        ps.jit(lambda state: (state, 1))(live)
    (out, _), _ = ps.pure(ps.jit(lambda state: (state.replace(state.value), 1)))(zeros())
    np.testing.assert_array_equal(out.value, np.zeros(3))
    same, _ = ps.jit(lambda state: (state, 1))(state := zeros())
    assert same.value is state.value


class Holder:
    def __init__(self, value):
        self.value = value


class HolderModule(eqx.Module):
    value: jax.Array


@pytest.mark.parametrize("transform", [ps.jit, ps.vmap2, ps.checkpoint])
def test_an_output_that_is_no_pytree_and_holds_a_tracer(transform):
    """It would leak the tracer: refused with its place; as a module it can be returned."""
    no_pytree = "which is no pytree, and holds a tracer"
    with pytest.raises(TypeError, match=rf"`out\['h'\]` is a Holder, {no_pytree}"):
        transform(lambda x: {"h": Holder(2 * x)})(jnp.ones(3))
    with pytest.raises(TypeError, match=f"`out` is a function, {no_pytree}"):
        transform(lambda x: lambda: x)(jnp.ones(3))
    out = transform(lambda x: {"h": HolderModule(2 * x)})(jnp.ones(3))
    np.testing.assert_array_equal(out["h"].value, np.full(3, 2.0))
