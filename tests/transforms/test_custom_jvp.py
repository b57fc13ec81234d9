"""`custom_jvp`: forward-mode derivatives of their own, for functions that write states."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


class Cell(eqx.Module):
    """A cell whose derivative is ten times what it would be, so that one sees whether the rule ran."""

    weight: ps.ParamState
    hidden: ps.HiddenState
    steps: ps.ShortTermState
    rng: ps.RandomState

    @ps.custom_jvp
    def __call__(self, x: Any) -> Any:
        self.hidden.value = jnp.tanh(self.weight.value * x + self.hidden.value)
        self.steps.value += 1
        self.rng.split_key()
        return self.hidden.value**2

    def fire(self, x: Any) -> Any:
        return Cell.__call__(self, x)


@Cell.__call__.defjvp
def rule_of_cell(primals: Any, tangents: Any) -> Any:
    (cell, x), (t_cell, t_x) = primals, tangents
    weight = cell.weight.value
    y = cell(x)
    t_hidden = 10 * (t_cell.weight.value * x + weight * t_x + t_cell.hidden.value)
    written = eqx.tree_at(lambda c: c.hidden, t_cell, ps.HiddenState(t_hidden))
    return y, 2 * cell.hidden.value * t_hidden, (written, None)


@jax.custom_jvp
def by_hand(weight: Any, hidden: Any, x: Any) -> Any:
    hidden = jnp.tanh(weight * x + hidden)
    return hidden**2, hidden


@by_hand.defjvp
def rule_by_hand(primals: Any, tangents: Any) -> Any:
    (weight, _, x), (t_weight, t_hidden, t_x) = primals, tangents
    y, new = by_hand(*primals)
    t_new = 10 * (t_weight * x + weight * t_x + t_hidden)
    return (y, new), (2 * new * t_new, t_new)


XS = jnp.array([0.3, -0.7])


def cell() -> Cell:
    return Cell(
        ps.ParamState(jnp.float32(0.8)),
        ps.HiddenState(jnp.float32(0.1)),
        ps.ShortTermState(0),
        ps.RandomState(0),
    )


def loss(cell: Cell, xs: Any) -> Any:
    return jnp.sum(ps.for_loop(cell, xs)) + cell.hidden.value


def loss_by_hand(weight: Any, xs: Any = XS) -> Any:
    step = lambda hidden, x: by_hand(weight, hidden, x)[::-1]
    hidden, ys = jax.lax.scan(step, jnp.float32(0.1), xs)
    return jnp.sum(ys) + hidden


WAYS: dict[str, Callable[[Any], Any]] = {
    "grad": ps.grad,
    "jacfwd": ps.jacfwd,
    "jacrev": ps.jacrev,
    "jit outside": lambda loss: ps.jit(ps.grad(loss)),
    "jit inside": lambda loss: ps.jacfwd(ps.jit(loss)),
    "checkpoint": lambda loss: ps.grad(ps.checkpoint(loss)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_cell_in_time(way: Callable[[Any], Any]) -> None:
    """The derivative through outputs, and through the state from step to step, is the twin's."""
    gradient, after = ps.pure(way(loss))(cell(), XS)
    assert jnp.allclose(gradient.weight.value, jax.grad(loss_by_hand)(jnp.float32(0.8)), rtol=1e-5)
    assert after.steps.value == 2
    assert jax.tree.leaves((gradient.hidden, gradient.steps, gradient.rng)) == []


def test_lanes_and_second_derivatives() -> None:
    """In lanes, and differentiated twice."""
    xs = jnp.stack([XS, -XS])
    lanes = {"in_axes": (None, 0), "state_in_axes": {None: ...}}
    summed = {jnp.sum: ps.ShortTermState}
    per_lane, _ = ps.pure(ps.vmap2(ps.jacfwd(loss), **lanes, state_out_axes=summed))(cell(), xs)
    each = jax.vmap(jax.grad(loss_by_hand), in_axes=(None, 0))(jnp.float32(0.8), xs)
    assert jnp.allclose(per_lane.weight.value, each, rtol=1e-5)
    second, _ = ps.pure(ps.hessian(loss))(cell(), XS)
    expected = jax.hessian(loss_by_hand)(jnp.float32(0.8))
    assert jnp.allclose(second.weight.value.weight.value, expected, rtol=1e-5)


def test_not_differentiated() -> None:
    """Without a derivative the function itself runs."""
    y, after = ps.pure(cell())(0.3)
    assert jnp.allclose(y, by_hand(0.8, 0.1, 0.3)[0])
    assert after.steps.value == 1


def test_tangents() -> None:
    """Tangents are trees like the arguments: zeros where nothing varies, `None` where nothing can."""
    seen: list[Any] = []

    @ps.custom_jvp
    def f(tree: Any, x: Any, mode: str = "m") -> Any:
        tree["n"].value += 1
        return {"y": tree["w"].value * x, "mode": mode, "n": tree["n"].value}

    @f.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        seen.append((primals[2], tangents))
        return f(*primals), {"y": 7 * tangents[1], "mode": None, "n": None}

    tree = {"w": ps.ParamState(2.0), "n": ps.State(0)}
    of_y = lambda tree, x: f(tree, x)["y"]
    gradient, after = ps.pure(ps.grad(of_y, argnums=1))(tree, 3.0)
    assert (gradient, after["n"].value) == (7, 1)
    (mode, (t_tree, _, t_mode)) = seen[0]
    assert (mode, t_mode) == ("m", None)
    assert t_tree["w"].value == 0
    assert jax.tree.leaves(t_tree["n"]) == []
    (out, tangent), _ = ps.pure(lambda tree: ps.jvp(f, (tree, 3.0), (1.0,), argnums=(1,)))(tree)
    assert (out["mode"], tangent["y"], tangent["mode"]) == ("m", 7, None)


def test_nothing_is_zero() -> None:
    """`None` for a leaf or a whole tree is zero, of outputs and of what was written."""

    def function(state: Any, x: Any) -> Any:
        state.value = {"a": x, "n": 1}
        return {"y": x, "z": x}

    for tangent, written, expected in (
        (lambda t: None, lambda t: None, 0),
        (lambda t: {"y": None, "z": 3 * t}, lambda t: None, 3),
        (lambda t: None, lambda t: ps.State(), 0),
        (lambda t: None, lambda t: ps.State({"a": 5 * t, "n": 0}), 5),
    ):
        f = ps.custom_jvp(function)
        rule = lambda primals, t, of_y=tangent, of_state=written: (
            function(*primals),
            of_y(t[1]),
            (of_state(t[1]), None),
        )
        f.defjvp(rule)

        def total(state: Any, x: Any, f: Any = f) -> Any:
            out = f(state, x)
            return out["y"] + out["z"] + state.value["a"]

        state = ps.State({"a": 0.0, "n": 0})
        assert ps.pure(ps.grad(total, argnums=1))(state, 2.0)[0] == expected


def test_nondiff_arguments() -> None:
    """What is not differentiated comes first, and is refused where it is differentiated."""
    f = ps.custom_jvp(lambda act, x, scale: act(x) * scale, nondiff_argnames=("act", "scale"))

    @f.defjvp
    def rule(act: Any, scale: Any, primals: Any, tangents: Any) -> Any:
        return act(primals[0]) * scale, 100 * scale * tangents[0]

    assert jax.grad(lambda x: f(jnp.sin, x, jnp.float32(3.0)))(1.0) == 300
    assert jax.jit(jax.grad(lambda x: f(jnp.sin, x, scale=jnp.float32(3.0))))(1.0) == 300
    with pytest.raises(TypeError, match=r"`scale` is differentiated, but ps\.custom_jvp"):
        jax.grad(lambda scale: f(jnp.sin, 1.0, scale))(3.0)

    def write(x: Any, state: Any) -> Any:
        state.value = x
        return x

    g = ps.custom_jvp(write, nondiff_argnums=1)
    g.defjvp(lambda state, primals, tangents: (write(primals[0], state), tangents[0]))
    with pytest.raises(TypeError, match="it is in an argument that is not differentiated"):
        ps.pure(ps.grad(lambda state, x: g(x, state), argnums=1))(ps.State(0.0), 1.0)


def test_a_tangent_that_would_be_lost() -> None:
    """A written state that has a derivative is not lost silently: the rule must return its tangent."""

    def function(state: Any, x: Any) -> Any:
        state.value = 3 * x
        return 2 * x

    f = ps.custom_jvp(function)
    f.defjvp(lambda primals, tangents: (function(*primals), 2 * tangents[1]))
    loss = lambda f: lambda state, x: f(state, x) + state.value
    with pytest.raises(TypeError, match=r"`state` \(State\) is written by .* jvp returns no tangents"):
        ps.pure(ps.grad(loss(f), argnums=1))(ps.State(0.0), 1.0)
    told = ps.custom_jvp(function)
    rule = lambda primals, t: (function(*primals), 2 * t[1], (ps.State(3 * t[1]), None))
    told.defjvp(rule)
    assert ps.pure(ps.grad(loss(told), argnums=1))(ps.State(0.0), 1.0)[0] == 5


def of_container(tangents: Any, more: Any = ()) -> Any:
    """The derivative by `x` of a part of a written container, by a rule that returns `tangents`."""

    def function(state: Any, x: Any) -> Any:
        old = state.value
        state.value = {**old, "a": old["a"] * x, "b": old["b"] * x * 10, "k": old["k"] + 1}
        return x

    f = ps.custom_jvp(function)

    @f.defjvp
    def rule(primals: Any, tangents_in: Any) -> Any:
        (state, x), (_, dx) = primals, tangents_in
        old = state.value
        out = function(state, x)
        return out, dx, (tangents(old["a"] * dx, old["b"] * dx * 10), None)

    def loss(state: Any, x: Any) -> Any:
        f(state, x)
        return state.value["b"]

    value = {"a": jnp.asarray(1.0), "b": jnp.asarray(3.0), "k": jnp.asarray(0), **dict(more)}
    return ps.pure(ps.grad(loss, argnums=1))(ps.State(value), 5.0)[0]


@pytest.mark.parametrize(
    ("tangents", "more"),
    [
        (lambda a, b: ps.State({"a": a, "b": b, "k": None}), {}),
        (lambda a, b: ps.State({"a": None, "b": b, "k": None}), {}),
        (lambda a, b: ps.State({"a": a, "b": b, "k": None, "z": None}), {"z": None}),
    ],
    ids=["whole", "None for one", "a None in the value"],
)
def test_the_tangents_of_a_container(tangents: Any, more: Any) -> None:
    """Tangents of a written container are found by their places in it."""
    assert of_container(tangents, more) == 30
    assert of_container(lambda a, b: None) == 0


@pytest.mark.parametrize(
    ("tangents", "message"),
    [
        (lambda a, b: ps.State({"a": a, "b": b}), "another structure than the value of `state`"),
        (lambda a, b: ps.State({"x": b, "y": a, "z": None}), "another structure than the value of"),
        (lambda a, b: b, "one value came for 3 arrays"),
    ],
    ids=["a part", "other names", "one array"],
)
def test_tangents_that_do_not_fit_a_container(tangents: Any, message: str) -> None:
    """Anything else is refused, and neither dropped nor taken for the tangent of another part."""
    with pytest.raises(ValueError, match=message):
        of_container(tangents)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no pair": (lambda p, t: p[1], TypeError, r"returns \(out, tangent\), or"),
    "shape": (
        lambda p, t: (p[1], jnp.ones(3)),
        TypeError,
        r"have f32\[3\] for `out`, but f32\[\] is expected",
    ),
    "structure": (lambda p, t: (p[1], {"a": t[1]}), ValueError, "another structure than the output"),
    "written": (lambda p, t: (p[1], t[1], t[0]), TypeError, "one entry for each argument"),
    "output": (lambda p, t: ((p[1], p[1]), t[1]), ValueError, "one value came for 2 arrays"),
}


@pytest.mark.parametrize(("rule", "error", "message"), BAD.values(), ids=BAD)
def test_bad_rules(rule: Any, error: type[Exception], message: str) -> None:
    """What the rule gives back is checked; inputs stay as they were."""
    f = ps.custom_jvp(lambda s, x: x)
    f.defjvp(rule)
    state = ps.State(2.0)
    with pytest.raises(error, match=message):
        ps.grad(f, argnums=1)(state, 1.0)
    assert state.value == 2


def test_telling_the_rule() -> None:
    """The rule is told once, before the first call, and by a decorator too."""
    f = ps.custom_jvp(lambda x: x)
    with pytest.raises(AttributeError, match=r"Define it first: f.defjvp\(jvp\)"):
        f(1.0)
    rule = lambda primals, tangents: (primals[0], 3 * tangents[0])
    assert f.defjvp(rule) is rule
    with pytest.raises(AttributeError, match="already has its rules"):
        f.defjvp(rule)
    assert jax.grad(f)(1.0) == 3
    assert jax.jvp(f, (1.0,), (1.0,)) == (1, 3)


def test_rules_that_write_something_else() -> None:
    """Where JAX runs both the function and the rule, they must write the same."""

    def function(states: Any, x: Any) -> Any:
        states[0].value += 1
        return x

    f = ps.custom_jvp(function)
    f.defjvp(lambda primals, tangents: (primals[1], tangents[1]))
    states = (ps.State(0), ps.State(0))
    with pytest.raises(TypeError, match=r"they differ in `states\[0\]`"):
        ps.pure(ps.grad(ps.jit(f), argnums=1))(states, 1.0)
