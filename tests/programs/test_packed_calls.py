"""The short way of a compiled call with a packed tree: it agrees with the usual way."""

import functools as ft
import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from trees.packing import act, add, tree, x


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
        r"^`tree\['s'\]` \(State\) was written, but writes=ps\.ParamState does not allow it\. "
        r"Allow it too, writes=\(ps\.ParamState, ps\.State\), or do not write it\.$"
    )
    with pytest.raises(ps.FrozenStateError, match=message):
        ps.pure(ps.jit(add), writes=ps.ParamState)(packed, x)
    with pytest.raises(ps.FrozenStateError, match=r"Include it: argnums=\(0, 1\)\.$"):
        ps.pure(ps.jit(add), argnums=1)(packed, x)
    _, (new, _) = ps.pure(ps.jit(add), argnums=(0, 1))(packed, x)
    np.testing.assert_array_equal(new.unpack()["s"].value, 2 * x)
    message = r"the new value would be lost.*\n    out, tree = ps\.pure\(ps\.jit\(add\)\)\(tree, x\)$"
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
