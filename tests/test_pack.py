"""`pack`: a tree kept flat, wherever a tree can stand; and the short way agrees with the usual one."""

import copy
import functools as ft
import gc
import io
import pickle
import re
import threading
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps


def act(x):
    """A function that can be pickled."""
    return x * 2


class Net(eqx.Module):
    weight: ps.ParamState
    count: ps.State
    act: object = act
    mode: str = "train"

    def __call__(self, x):
        self.count.value += 1
        return self.act(self.weight.value * x)


def net():
    return Net(ps.ParamState(jnp.array([1.0, 2.0])), ps.State(0))


def add(tree, x):
    tree["s"].value += x
    return tree["s"].value * 2


def tree():
    return {"s": ps.State(jnp.zeros(3))}


x = jnp.ones(3)


# A packed tree by itself ----------------------------------------------------------------------------


def test_it_is_the_tree():
    """Unpacked it is the same tree, with the very arrays and static leaves."""
    model = net()
    packed = ps.pack(model)
    assert jtu.tree_structure(packed.unpack()) == jtu.tree_structure(model)
    assert all(a is b for a, b in zip(jtu.tree_leaves(packed), jtu.tree_leaves(model), strict=True))
    assert packed.unpack().act is act
    assert ps.pack(packed) is packed
    assert repr(packed) == "Packed(Net, 2 states, 4 leaves)"


def test_it_is_immutable_and_says_where_attributes_are():
    """No attribute is set or found; the advice runs."""
    packed = ps.pack(net())
    message = (
        "A packed tree has no attribute 'weight'; it is taken apart. Functions that pstate runs get the "
        "tree itself; elsewhere unpack it first: packed.unpack().weight."
    )
    with pytest.raises(AttributeError, match=f"^{re.escape(message)}$"):
        packed.weight
    assert eval(message.rpartition(": ")[2].rstrip("."), {"packed": packed}).value.shape == (2,)
    with pytest.raises(
        AttributeError, match=r"A packed tree is immutable; got 'leaves'\. Unpack it first"
    ):
        packed.leaves = ()
    assert not hasattr(packed, "__jax_array__")


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))]
)
def test_copies(duplicate):
    """Copied and pickled, it is packed and usable."""
    packed = ps.pack(net())
    again = duplicate(packed)
    assert type(again) is ps.Packed
    assert jtu.tree_structure(again) == jtu.tree_structure(packed)
    one, _ = ps.pure(ps.jit(Net.__call__))(packed, jnp.ones(2))
    two, _ = ps.pure(ps.jit(Net.__call__))(again, jnp.ones(2))
    np.testing.assert_array_equal(one, two)


def test_aliases():
    """One state at two places is refused, and the advice runs; one array at two places is not."""
    state = ps.State(x)
    message = (
        r"`tree\['a'\]` and `tree\['b'\]\[0\]` are one state object at two places, and a packed tree"
    )
    with pytest.raises(ps.AliasedStateError, match=message):
        ps.pack({"a": state, "b": [state]})
    _, new = ps.pure(lambda t: add({"s": t["a"]}, 1.0))(ps.pack({"a": state, "b": [ps.State(x)]}))
    np.testing.assert_array_equal(new.unpack()["a"].value, x + 1)
    np.testing.assert_array_equal(new.unpack()["b"][0].value, x)


def test_saved_leaf_by_leaf():
    """Equinox saves and loads its leaves."""
    file = io.BytesIO()
    spec = lambda f, leaf: eqx.default_serialise_filter_spec(f, leaf) if eqx.is_array(leaf) else None
    eqx.tree_serialise_leaves(file, ps.pack(net()), filter_spec=spec)
    file.seek(0)
    like = ps.pack(Net(ps.ParamState(jnp.zeros(2)), ps.State(7)))
    spec = lambda f, leaf: eqx.default_deserialise_filter_spec(f, leaf) if eqx.is_array(leaf) else leaf
    loaded = eqx.tree_deserialise_leaves(file, like, filter_spec=spec)
    assert type(loaded) is ps.Packed
    np.testing.assert_array_equal(loaded.unpack().weight.value, [1.0, 2.0])
    assert loaded.unpack().count.value == 0


def test_partition_and_combine():
    """Equinox's masks leave it packed, and a masked one is a tree of empty states."""
    packed = ps.pack(net())
    arrays, rest = eqx.partition(packed, eqx.is_array)
    assert type(arrays) is type(rest) is ps.Packed
    assert arrays.unpack().act is None
    with pytest.raises(ps.UninitializedStateError, match="empty and was read"):
        rest.unpack().weight.value
    again = eqx.combine(arrays, rest)
    assert all(a is b for a, b in zip(again.leaves, packed.leaves, strict=True))


# As a carrier ---------------------------------------------------------------------------------------


RUNS = {
    "pure": ps.pure(add),
    "jit": ps.pure(ps.jit(add)),
    "donate": ps.pure(ps.jit(add, donate=...)),
    "donate_argnums": ps.pure(ps.jit(add, donate_argnums=0)),
    "checkpoint": ps.pure(ps.checkpoint(add)),
    "vmap2": ps.pure(ps.vmap2(add)),
    "jit of vmap2": ps.pure(ps.jit(ps.vmap2(add))),
    "vmap2 of jit": ps.pure(ps.vmap2(ps.jit(add))),
    "jax.jit": jax.jit(ps.pure(add)),
    "jax.vmap": jax.vmap(ps.pure(add)),
    "filter_jit": eqx.filter_jit(ps.pure(add)),
    "contract": ps.pure(ps.jit(add), writes=ps.State),
    "argnums": ps.pure(ps.jit(add), argnums=0),
    "negative": ps.pure(ps.jit(add), argnums=-2),
    "tuple": lambda t, x: (lambda out, new: (out, new[0]))(*ps.pure(ps.jit(add), argnums=(0,))(t, x)),
    "second": lambda t, x: ps.pure(ps.jit(lambda x, t: add(t, x)), argnums=1)(x, t),
    "scan": lambda t, x: (lambda c, y: (y[0], c))(
        *jax.lax.scan(lambda c, x: ps.pure(add)(c, x)[::-1], t, x[None])
    ),
    "loop": ps.pure(lambda t, x: ps.for_loop(ft.partial(add, t), x[None])[0]),
    "numpy": lambda t, x: ps.pure(ps.jit(add))(t, np.asarray(x)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_as_a_carrier(run):
    """Through every transform it gives what the tree gives, and comes back packed."""
    packed = ps.pack(tree())
    for step in range(1, 3):
        out, packed = run(packed, x)
        assert type(packed) is ps.Packed
        np.testing.assert_array_equal(out, np.full(3, 2.0 * step))
        np.testing.assert_array_equal(packed.unpack()["s"].value, np.full(3, float(step)))


@pytest.mark.parametrize("outer", [ps.jit, ps.vmap2, ps.checkpoint])
def test_around_pure(outer):
    """`pure` inside a transform gets the tree itself, and gives back what `pure` outside does."""
    out, model = outer(ps.pure(add))(ps.pack(tree()), x)
    np.testing.assert_array_equal(out, 2 * x)
    _, packed = ps.pure(outer(add))(ps.pack(tree()), x)
    assert not ps.diff(model, packed.unpack())


def test_over_devices():
    """`pmap2` takes and gives it."""
    packed = ps.pack({"s": ps.State(jnp.zeros(4))})
    out, packed = ps.pure(ps.pmap2(add))(packed, jnp.ones(4))
    np.testing.assert_array_equal(out, np.full(4, 2.0))
    assert type(packed) is ps.Packed


def test_random_states_of_lanes():
    """Lanes of a packed tree draw what those of the tree draw."""
    model = {"rng": ps.RandomState(0), "s": ps.State(jnp.zeros(3))}
    noisy = ps.vmap2(lambda t, x: add(t, x) + t["rng"].normal())
    plain, after = ps.pure(noisy)(model, x)
    packed, after_too = ps.pure(noisy)(ps.pack(model), x)
    np.testing.assert_array_equal(plain, packed)
    assert after_too.unpack()["rng"].value == after["rng"].value


def test_gradients():
    """Gradients of a packed tree are those of the tree, and writes come back packed."""
    loss = lambda net, x: jnp.sum(net(x) ** 2)
    gradient, packed = ps.pure(ps.grad(loss))(ps.pack(net()), jnp.ones(2))
    expected, _ = ps.pure(ps.grad(loss))(net(), jnp.ones(2))
    np.testing.assert_array_equal(jtu.tree_leaves(gradient)[0], expected.weight.value)
    assert packed.unpack().count.value == 1
    raw = jax.grad(lambda p: jnp.sum(ps.pure(add)(p, 1.0)[0]))(ps.pack(tree()))
    np.testing.assert_array_equal(raw.unpack()["s"].value, np.full(3, 2.0))


def test_beside_other_carriers():
    """Two packed trees, and one inside another tree, are each read and written."""

    def both(a, b):
        return add(a, 1.0), add(b["inner"], 2.0)

    for wrap in (lambda f: f, ps.jit):
        _, (a, b) = ps.pure(wrap(both), argnums=(0, 1))(ps.pack(tree()), {"inner": ps.pack(tree())})
        assert type(a) is ps.Packed
        inner = b["inner"].unpack() if isinstance(b["inner"], ps.Packed) else b["inner"]
        assert (a.unpack()["s"].value[0], inner["s"].value[0]) == (1, 2)


def test_inside_another_tree_it_stays_packed():
    """The structure of a carrier does not change by a write, so that loops and second calls fit."""
    carrier = {"inner": ps.pack(tree())}
    _, new = ps.pure(ps.jit(lambda t, x: add(t["inner"], x)))(carrier, x)
    assert jtu.tree_structure(new) == jtu.tree_structure(carrier)


@pytest.mark.parametrize("partial", [ft.partial, jtu.Partial])
def test_in_a_partial_it_stays_packed(partial):
    """A partial that holds a packed tree comes back with a packed tree."""
    _, new = ps.pure(ps.jit(partial(add, ps.pack(tree()))))(x)
    assert type(new.args[0]) is ps.Packed


@pytest.mark.parametrize("partial", [ft.partial, jtu.Partial])
def test_in_a_partial(partial):
    """A partial that holds a packed tree is a carrier."""
    for wrap in (lambda f: f, ps.jit):
        out, new = ps.pure(wrap(partial(add, ps.pack(tree()))))(x)
        (state,) = jtu.tree_leaves(new.args)
        np.testing.assert_array_equal(state, x)
        np.testing.assert_array_equal(out, 2 * x)


def test_one_packed_tree_at_two_places():
    """As a state at two places: to write one of them would lose the sharing, and is refused."""
    packed = ps.pack(tree())
    with pytest.raises(ps.AliasedStateError, match="two places"):
        ps.pure(lambda a, b: add(a, 1.0))(packed, packed)


def test_made_and_returned_in_a_compiled_function():
    """A packed tree can be an output."""
    made = ps.jit(lambda: ps.pack({"s": ps.State(x)}))()
    assert type(made) is ps.Packed
    np.testing.assert_array_equal(made.unpack()["s"].value, x)


def test_of_a_live_tree():
    """Packing freezes; what was written is in it."""
    with ps.record(tree()) as live:
        add(live, 1.0)
        packed = ps.pack(live)
        add(live, 1.0)
    np.testing.assert_array_equal(packed.unpack()["s"].value, x)
    np.testing.assert_array_equal(ps.freeze(live)["s"].value, 2 * x)


# Recordings and bulk ---------------------------------------------------------------------------------


def test_recorded():
    """`record` gives the live tree itself."""
    packed = ps.pack(tree())
    with ps.record(packed) as live:
        add(live, x)
    np.testing.assert_array_equal(ps.freeze(live)["s"].value, x)
    np.testing.assert_array_equal(packed.unpack()["s"].value, 0 * x)
    assert ps.written(live).keys() == {("s",)}


def test_a_contract_of_a_recording():
    """`writes` sees the states of a packed tree: their kinds, each by itself."""
    packed = ps.pack({"a": ps.State(1.0), "b": ps.ParamState(2.0)})
    with ps.record(packed, writes=ps.ParamState) as live:
        live["b"].value = 3.0
        with pytest.raises(ps.FrozenStateError, match=r"\['a'\]` \(State\).*writes=ps\.State"):
            live["a"].value = 3.0


def test_in_bulk():
    """`states`, `update`, `select`, `axes` and `summary` see the states of the tree."""
    packed = ps.pack({"a": ps.State(1.0), "b": ps.ParamState(2.0)})
    assert list(ps.states(packed, ps.ParamState)) == [("b",)]
    updated = ps.update(packed, {("a",): 5.0})
    assert type(updated) is ps.Packed
    assert updated.unpack()["a"].value == 5
    assert jtu.tree_leaves(ps.select(packed)) == [False, True]
    assert "ParamState" in str(ps.summary(packed))


# The short way --------------------------------------------------------------------------------------


def _swap(tree, x):
    tree["a"].value, tree["b"].value = tree["b"].value, tree["a"].value
    return tree["a"].value


def _container(tree, x):
    value = tree["c"].value
    value["u"] = value["u"] + x
    tree["c"].value = value
    return {"same": x, "static": "hi", "sum": value["u"].sum(), "none": None, "one": 1}


def _restructure(tree, x):
    tree["c"].value = {"other": x, "u": tree["a"].value}


def _fill(tree, x):
    tree["e"].value = x


def _empty(tree, x):
    tree["a"].value = None


def _reshape(tree, x):
    tree["a"].value = jnp.concatenate([tree["a"].value, x])
    return tree["a"].value


def _read(tree, x):
    return tree["a"].value + x


def _static(tree, x):
    tree["a"].value = tree["f"](x) * tree["k"]
    return tree["f"], tree["k"], tree["a"].value


def _new_state(tree, x):
    return ps.HiddenState(tree["a"].value + x)


def _raises(tree, x):
    tree["a"].value += x
    raise KeyError("half way")


def _reads_empty(tree, x):
    return tree["e"].value


def _bad_shapes(tree, x):
    return tree["a"].value + jnp.ones(17)


def _bad_value(tree, x):
    tree["a"].value = "text"


def _two(tree):
    return 1


held = ps.State(jnp.ones(3))


def _captures(tree, x):
    return held.value + x


BODIES = [
    _swap, _container, _restructure, _fill, _empty, _reshape, _read, _static, _new_state,
    _raises, _reads_empty, _bad_shapes, _bad_value, _two, _captures,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
@pytest.mark.parametrize("rest", [x, np.ones(3, np.float32), [x]], ids=["jax", "numpy", "list"])
def test_the_short_way_is_the_usual_way(body, rest):
    """Results, structures, unwritten arrays, errors and their words are the same, cold and warm."""

    def run(step, carrier):
        try:
            out, new = step(carrier, rest)
        except Exception as error:
            return type(error), str(error)
        new = new.unpack() if isinstance(new, ps.Packed) else new
        return out, new

    model = {
        "a": ps.State(x),
        "b": ps.State(2 * x),
        "c": ps.State({"u": x, "v": 3 * x}),
        "e": ps.State(),
        "f": act,
        "k": 2,
    }
    rest = rest[0] if isinstance(rest, list) else rest
    packed = ps.pack(model)
    for _ in range(2):
        usual, short = run(ps.pure(ps.jit(body)), model), run(ps.pure(ps.jit(body)), packed)
        leaves, treedef = jtu.tree_flatten(usual)
        assert jtu.tree_structure(short) == treedef
        for one, other in zip(leaves, jtu.tree_leaves(short), strict=True):
            if isinstance(one, jax.Array):
                np.testing.assert_array_equal(one, other)
                assert one.weak_type == other.weak_type
            else:
                assert one == other
    if not isinstance(usual[0], type):
        same = [
            a is b
            for a, b in zip(jtu.tree_leaves(usual[1]["c"]), jtu.tree_leaves(model["c"]), strict=False)
        ]
        assert [
            a is b for a, b in zip(jtu.tree_leaves(short[1]["c"]), packed.leaves[2:4], strict=False)
        ] == same


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def step(self, tree, x):
        return add(tree, x) * 0 + self.factor


def scaled(factor, tree, x):
    return add(tree, x) * 0 + factor


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (ft.partial(scaled, 2.0), ft.partial(scaled, 3.0), 3.0),
        (ft.partial(scaled, jnp.float32(2)), ft.partial(scaled, jnp.float32(3)), 3.0),
        (Scaled(2.0).step, Scaled(3.0).step, 3.0),
        (lambda t, x: None, None, None),
    ],
    ids=["partial", "partial of arrays", "method", "mapped"],
)
def test_callables_of_one_function(first, second, expected):
    """Two callables around one function are two programs."""
    if second is None:
        body = lambda tree, x: add(tree, x).sum()
        first, second, expected = body, ps.vmap2(body), 2.0
    ps.pure(ps.jit(first))(ps.pack(tree()), x)
    out, _ = ps.pure(ps.jit(second))(ps.pack(tree()), x)
    expected_out, _ = ps.pure(ps.jit(second))(tree(), x)
    np.testing.assert_array_equal(out, expected_out)
    np.testing.assert_array_equal(out, np.full(3, expected))


def test_a_gradient_is_not_the_value():
    """A packed call of a derivative does not get the program of the function."""
    loss = lambda tree, x: jnp.sum(tree["w"].value * x)
    packed = ps.pack({"w": ps.ParamState(x)})
    ps.pure(ps.jit(loss))(packed, x)
    gradient, _ = ps.pure(ps.jit(ps.grad(loss)))(packed, x)
    np.testing.assert_array_equal(jtu.tree_leaves(gradient)[0], x)
    assert jtu.tree_leaves(gradient)[0].shape == (3,)


def test_a_partial_of_arrays_runs():
    """Arrays that the callable holds are operands as well, and may change."""

    def body(factor, tree, x):
        return scaled(factor, tree, x)

    packed = ps.pack(tree())
    for factor in (2.0, 3.0):
        out, packed = ps.pure(ps.jit(ft.partial(body, jnp.full(3, factor))))(packed, x)
        np.testing.assert_array_equal(out, np.full(3, factor))


@pytest.mark.parametrize(
    ("make", "write"),
    [
        pytest.param(
            lambda: {"e": ps.State()},
            lambda tree, x: setattr(tree["e"], "value", x),
            id="filled",
        ),
        pytest.param(
            lambda: {"e": ps.State()},
            lambda tree, x: None,
            id="nothing in it",
        ),
        pytest.param(lambda: tree(), add, id="as usual"),
    ],
)
def test_a_call_runs_once(make, write):
    """Effects of the body happen once in each call."""
    effects = []

    def body(tree, x):
        jax.debug.callback(lambda: effects.append(None))
        write(tree, x)

    packed = ps.pack(make())
    for n in range(1, 4):
        _, packed = ps.pure(ps.jit(body))(packed, x)
        jax.effects_barrier()
        assert len(effects) == n


def test_a_call_that_fails_runs_once():
    """A body that raises runs once, as for a tree: what it printed or counted is not doubled."""
    runs = []

    def body(tree, x):
        runs.append(None)
        raise KeyError("half way")

    for n, carrier in enumerate((tree(), ps.pack(tree())), 1):
        with pytest.raises(KeyError, match="half way"):
            ps.pure(ps.jit(body))(carrier, x)
        assert len(runs) == n


def test_traced_once():
    """Trees and packed trees of one structure trace once each, however many wrappers there are."""
    runs = []

    def body(tree, x):
        runs.append(None)
        return add(tree, x)

    packed = ps.pack(tree())
    for _ in range(3):
        _, packed = ps.pure(ps.jit(body))(packed, x)
    assert len(runs) == 1


def test_static_leaves_are_part_of_the_program():
    """Two packed trees that differ in a function, or in `1` and `1.0`, do not share a program."""
    run = ps.pure(ps.jit(lambda tree, x: tree["f"](x) * tree["k"]))
    for f, k, dtype in ((act, 1, jnp.int32), (act, 1.0, jnp.float32), (jnp.negative, 1, jnp.int32)):
        out, packed = run(ps.pack({"f": f, "k": k, "s": ps.State(0)}), jnp.arange(2))
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, f(jnp.arange(2)))
        again, _ = run(packed, jnp.arange(2))
        np.testing.assert_array_equal(out, again)


def test_an_unhashable_leaf():
    """It is named by its place, as in a tree."""
    model = {"bad": {1, 2}, "s": ps.State(0)}
    for carrier in (model, ps.pack(model)):
        with pytest.raises(TypeError, match=r"^`t\['bad'\]` is a set, neither an array nor hashable"):
            ps.pure(ps.jit(lambda t: t["s"].value))(carrier)


def test_an_echo():
    """A state that stands in the output too is refused in the words of the usual way."""
    messages = []
    for carrier in (tree(), ps.pack(tree())):
        with pytest.raises(ps.AliasedStateError, match="came in as") as error:
            ps.pure(ps.jit(lambda t: t["s"]))(carrier)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_contracts_and_argnums():
    """`writes=` and `argnums=` hold for a packed tree, also after a call without them."""
    packed = ps.pack({"p": ps.ParamState(x), "s": ps.State(x)})
    ps.pure(ps.jit(add))(packed, x)
    message = (
        r"^`tree\['s'\]` \(State\) was written, which the contract writes=OfType\(ParamState\) does not "
        r"allow\. Allow it, writes=ps\.State, or do not write it\.$"
    )
    with pytest.raises(ps.FrozenStateError, match=message):
        ps.pure(ps.jit(add), writes=ps.ParamState)(packed, x)
    with pytest.raises(ps.FrozenStateError, match=r"Count it: argnums=\(0, 1\)\.$"):
        ps.pure(ps.jit(add), argnums=1)(packed, x)
    _, (new, _) = ps.pure(ps.jit(add), argnums=(0, 1))(packed, x)
    np.testing.assert_array_equal(new.unpack()["s"].value, 2 * x)
    message = r"nobody takes the new value.*\n    out, tree = ps\.pure\(ps\.jit\(add\)\)\(tree, x\)$"
    with pytest.raises(ps.FrozenStateError, match=message):
        ps.jit(add)(packed, x)


def test_donated_buffers():
    """Donation deletes what is overwritten, and a packed tree used again is a clear error."""
    step = ps.pure(ps.jit(add, donate=...))
    packed = ps.pack({"p": ps.ParamState(x + 0), "s": ps.State(0 * x)})
    _, new = step(packed, x)
    assert [leaf.is_deleted() for leaf in packed.leaves] == [False, True]
    assert new.leaves[0] is packed.leaves[0]
    for again in (step, ps.pure(ps.jit(add)), ps.pure(ps.jit(add))):
        with pytest.raises(ps.StateError, match=r"`tree\['s'\]` was donated to an earlier call"):
            again(packed, x)
    step(new, x)


@pytest.mark.parametrize(
    "checks", [jax.disable_jit, jax.checking_leaks, lambda: jax.debug_key_reuse(True)]
)
def test_under_the_modes_of_jax(checks):
    """Without compiling, under leak checks and under key checks it gives the same."""

    def body(tree, x):
        return add(tree, x) + tree["rng"].normal()

    model = {"rng": ps.RandomState(0), "s": ps.State(0 * x)}
    expected, _ = ps.pure(body)(model, x)
    with checks():
        packed = ps.pack(model)
        out, packed = ps.pure(ps.jit(body))(packed, x)
        _, packed = ps.pure(ps.jit(body))(packed, x)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_array_equal(packed.unpack()["s"].value, 2 * x)


def test_inside_traces():
    """Under a trace, and in a body that is being compiled, the call takes the usual way."""
    inner = ps.pure(ps.jit(add))
    for outer in (jax.jit(inner), jax.vmap(inner)):
        out, new = outer(ps.pack(tree()), x)
        np.testing.assert_array_equal(out, 2 * x)
        assert type(new) is ps.Packed
    derivative = jax.grad(lambda p, x: inner(p, x)[0].sum())(ps.pack(tree()), x)
    np.testing.assert_array_equal(derivative.unpack()["s"].value, 2 * x)


def test_threads():
    """Threads that share a wrapper and a packed tree each get their own result."""
    step, packed, errors = ps.pure(ps.jit(add)), ps.pack(tree()), []

    def work(start):
        try:
            mine = packed
            for k in range(20):
                out, mine = step(mine, x * start)
                np.testing.assert_array_equal(out, 2 * start * (k + 1) * x)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_nothing_is_kept():
    """Neither the form, nor the plan of the short way, holds arrays or the function."""

    def body(tree, x):
        return add(tree, x)

    packed = ps.pack(tree())
    seen = weakref.ref(body), weakref.ref(packed.leaves[0])
    for _ in range(2):
        _, packed = ps.pure(ps.jit(body))(packed, x)
    del body, packed
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_equal_forms():
    """Trees packed apart share programs, and may stand for each other in JAX's control flow."""
    runs = []

    def body(tree, x):
        runs.append(None)
        return add(tree, x)

    for _ in range(2):
        ps.pure(ps.jit(body))(ps.pack(tree()), x)
    assert len(runs) == 1
    chosen = jax.lax.cond(True, lambda: ps.pack({"s": ps.State(x)}), lambda: ps.pack(tree()))
    np.testing.assert_array_equal(chosen.unpack()["s"].value, x)
