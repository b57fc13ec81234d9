"""`custom_vjp`: reverse-mode derivatives of their own, for functions that write states."""

import functools as ft
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from pstate._ground.versions import SHARED_OUTPUTS


def slope(v: Any) -> Any:
    return 1 / (1 + jnp.abs(v)) ** 2


class Neuron(eqx.Module):
    """A spiking neuron with a surrogate gradient: no derivative of the step is what JAX would take."""

    weight: ps.ParamState
    voltage: ps.HiddenState
    spikes: ps.ShortTermState
    rng: ps.RandomState
    name: str = eqx.field(static=True, default="neuron")

    @ps.custom_vjp
    def __call__(self, x: Any) -> Any:
        return self.fire(x)[0]

    def fire(self, x: Any) -> Any:
        v = 0.9 * self.voltage.value + self.weight.value * x
        fired = jnp.where(v > 0.5, 1.0, 0.0)
        self.voltage.value = v - fired
        self.spikes.value += fired.astype(jnp.int32)
        self.rng.split_key()
        return fired, v

    def fwd(self, x: Any) -> Any:
        out, v = self.fire(x)
        return out, (self, x, v)


def bwd_of_neuron(residuals: Any, fired: Any, written: Any) -> Any:
    neuron, x, v = residuals
    of_voltage = written[0].voltage.value
    of_v = of_voltage + (fired - of_voltage) * slope(v)
    zero = eqx.filter(neuron, lambda _: False)
    states = ps.ParamState(of_v * x), ps.HiddenState(0.9 * of_v)
    return eqx.tree_at(lambda m: (m.weight, m.voltage), zero, states), of_v * neuron.weight.value


Neuron.__call__.defvjp(Neuron.fwd, bwd_of_neuron)


@jax.custom_vjp
def by_hand(weight: Any, voltage: Any, spikes: Any, x: Any) -> Any:
    return fire_by_hand(weight, voltage, spikes, x)[:3]


def fire_by_hand(weight: Any, voltage: Any, spikes: Any, x: Any) -> Any:
    v = 0.9 * voltage + weight * x
    fired = jnp.where(v > 0.5, 1.0, 0.0)
    return fired, v - fired, spikes + fired.astype(jnp.int32), v


def fwd_by_hand(weight: Any, voltage: Any, spikes: Any, x: Any) -> Any:
    *out, v = fire_by_hand(weight, voltage, spikes, x)
    return tuple(out), (weight, x, v)


def bwd_by_hand(residuals: Any, cotangents: Any) -> Any:
    weight, x, v = residuals
    fired, of_voltage, _ = cotangents
    of_v = of_voltage + (fired - of_voltage) * slope(v)
    return of_v * x, 0.9 * of_v, None, of_v * weight


by_hand.defvjp(fwd_by_hand, bwd_by_hand)

XS = jnp.array([0.3, 0.9, -0.2, 1.4])


def neuron() -> Neuron:
    return Neuron(
        ps.ParamState(jnp.float32(0.8)),
        ps.HiddenState(jnp.float32(0.1)),
        ps.ShortTermState(0),
        ps.RandomState(0),
    )


def loss(neuron: Neuron, xs: Any) -> Any:
    fired = ps.for_loop(neuron, xs)
    return jnp.sum(fired * jnp.arange(1.0, 5.0)) + neuron.voltage.value


def loss_by_hand(weight: Any, voltage: Any, xs: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        fired, voltage, spikes = by_hand(weight, *carry, x)
        return (voltage, spikes), fired

    (voltage, spikes), fired = jax.lax.scan(step, (voltage, 0), xs)
    return jnp.sum(fired * jnp.arange(1.0, 5.0)) + voltage, spikes


def expected(xs: Any = XS) -> Any:
    gradients, spikes = jax.grad(loss_by_hand, argnums=(0, 1, 2), has_aux=True)(
        jnp.float32(0.8), jnp.float32(0.1), xs
    )
    return gradients, spikes


WAYS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda loss: ps.grad(loss),
    "jit outside": lambda loss: ps.jit(ps.grad(loss)),
    "jit inside": lambda loss: ps.grad(ps.jit(loss)),
    "checkpoint": lambda loss: ps.grad(ps.checkpoint(loss)),
    "jacrev": lambda loss: ps.jacrev(loss),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_spiking_neuron_in_time(way: Callable[[Any], Any]) -> None:
    """The gradient through spikes, and through the voltage from step to step, is the twin's."""
    gradient, after = ps.pure(way(loss))(neuron(), XS)
    (of_weight, _, _), spikes = expected()
    assert jnp.allclose(gradient.weight.value, of_weight)
    assert after.spikes.value == spikes
    assert jtu.tree_leaves((gradient.voltage, gradient.spikes, gradient.rng)) == []


def test_other_arguments() -> None:
    """With respect to a hidden state, and to an argument that is not a tree."""
    gradient, _ = ps.pure(ps.grad(loss, wrt=ps.HiddenState))(neuron(), XS)
    assert jnp.allclose(gradient.voltage.value, expected()[0][1])
    gradient, _ = ps.pure(ps.grad(loss, argnums=1))(neuron(), XS)
    assert jnp.allclose(gradient, expected()[0][2])


#: The lanes go apart, and come back as their sum.
OUT = {ft.partial(jnp.sum, axis=0): ps.ShortTermState}


def test_lanes() -> None:
    """In lanes inside a gradient, and a gradient in each lane."""
    xs = jnp.stack([XS, -XS, 2 * XS])
    each = jax.vmap(lambda x: expected(x)[0][0])(xs)
    lanes = {
        "in_axes": (None, 0),
        "state_in_axes": {None: ...},
        "state_out_axes": OUT,
    }
    per_lane, _ = ps.pure(ps.vmap2(ps.grad(loss), **lanes))(neuron(), xs)
    assert jnp.allclose(per_lane.weight.value, each, atol=1e-6)

    def total(neuron: Neuron, xs: Any) -> Any:
        return jnp.sum(ps.vmap2(loss, **lanes)(neuron, xs))

    gradient, after = ps.pure(ps.grad(total))(neuron(), xs)
    assert jnp.allclose(gradient.weight.value, each.sum(), atol=1e-6)
    assert after.spikes.value == sum(expected(x)[1] for x in xs)


@pytest.mark.skipif(not SHARED_OUTPUTS, reason="JAX counts it once for each lane")
def test_a_state_that_lanes_share() -> None:
    """The cotangent of what all lanes write alike is counted once, as without a rule."""

    def function(tree: Any, x: Any) -> Any:
        tree["h"].value = 3 * tree["w"].value + 0.5 * tree["h"].value
        return tree["w"].value * x

    def bwd(residuals: Any, ct: Any, written: Any) -> Any:
        tree, x = residuals
        of_h = written[0]["h"].value
        return {"w": ct * x + 3 * of_h, "h": 0.5 * of_h}, ct * tree["w"].value

    ruled = ps.custom_vjp(function)
    ruled.defvjp(lambda tree, x: (function(tree, x), (tree, x)), bwd)

    def total(f: Any, tree: Any, xs: Any) -> Any:
        return jnp.sum(ps.vmap2(f, in_axes=(None, 0))(tree, xs)) + tree["h"].value

    for f in (function, ruled):
        tree = {"w": ps.ParamState(2.0), "h": ps.State(1.0)}
        gradient, _ = ps.pure(ps.grad(ft.partial(total, f)))(tree, jnp.arange(4.0))
        assert gradient["w"].value == 9


def test_not_differentiated() -> None:
    """Without a derivative the function itself runs, bound, unbound, in a partial, and compiled."""
    expected, spent = ps.pure(Neuron.fire)(neuron(), 1.4)
    runs = [
        ps.pure(neuron())(1.4),
        ps.pure(Neuron.__call__)(neuron(), 1.4),
        ps.pure(ps.jit(Neuron.__call__))(neuron(), 1.4),
        ps.pure(lambda neuron, x: ft.partial(Neuron.__call__, neuron)(x))(neuron(), 1.4),
    ]
    for out, after in runs:
        assert out == expected[0]
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, spent))


# How rules are called --------------------------------------------------------------------------------


def test_forms_of_cotangents() -> None:
    """A state stands for its value: a state, its bare value, `None` for a leaf and for a tree."""
    tree = {"w": ps.ParamState(jnp.ones(2)), "n": ps.State(0), "x": jnp.ones(2)}
    forms: dict[str, Any] = {
        "states": lambda tree, ct: {**tree, "w": ps.ParamState(2 * ct), "x": 3 * ct, "n": ps.State()},
        "bare": lambda tree, ct: {"w": 2 * ct, "n": None, "x": 3 * ct},
        "zeros": lambda tree, ct: {
            **jax.tree.map(jnp.zeros_like, tree),
            "w": ps.ParamState(2 * ct),
            "x": 3 * ct,
        },
        "numbers": lambda tree, ct: {"w": 2 * jnp.ones(2), "n": 0, "x": 3 * jnp.ones(2)},
        "partial": lambda tree, ct: {"w": ps.ParamState(2 * ct), "n": None, "x": None},
        "nothing": lambda tree, ct: None,
    }
    for name, form in forms.items():
        f = ps.custom_vjp(lambda tree, x: jnp.sum(tree["w"].value) + x)
        f.defvjp(
            lambda tree, x: (jnp.sum(tree["w"].value) + x, tree),
            ft.partial(lambda form, tree, ct: (form(tree, jnp.full(2, ct)), 5 * ct), form),
        )
        gradient, of_x = ps.grad(f, argnums=(0, 1))(tree, jnp.float32(1.0))
        assert of_x == 5, name
        of_w = 0 if name == "nothing" else 2
        of_array = 0 if name in ("nothing", "partial") else 3
        assert jnp.array_equal(gradient["w"].value, jnp.full(2, of_w)), name
        assert jnp.array_equal(gradient["x"], jnp.full(2, of_array)), name
        assert jax.tree.leaves(gradient["n"]) == [], name


def test_keywords_defaults_and_static_leaves() -> None:
    """Rules get all arguments by position: keywords, defaults, what a partial holds, and no arrays."""
    seen: list[Any] = []

    @ps.custom_vjp
    def f(a: Any, x: Any, mode: str = "double", scale: float = 2.0) -> Any:
        return a * x * scale, mode

    def fwd(a: Any, x: Any, mode: str, scale: float) -> Any:
        seen.append((mode, scale))
        return f(a, x, mode, scale), (a, x, mode)

    def bwd(residuals: Any, ct: Any) -> Any:
        a, x, mode = residuals
        assert ct[1] is None
        seen.append(mode)
        return 10 * ct[0] * x, 10 * ct[0] * a, None, None

    f.defvjp(fwd, bwd)
    a, x = jnp.float32(3.0), jnp.float32(5.0)
    for call in (
        lambda x: f(a, x)[0],
        lambda x: f(a, mode="double", x=x)[0],
        lambda x: ft.partial(f, a)(x)[0],
        lambda x: f(a, x=x)[0],
    ):
        assert jax.grad(call)(x) == 30
    assert seen == [("double", 2.0), "double"] * 4
    assert f(a, x, scale=1.0) == (15.0, "double")


def test_nondiff_arguments() -> None:
    """What is not differentiated comes to `bwd` first: arrays, states, functions; by place or name."""

    def function(x: Any, scale: Any, act: Any) -> Any:
        return act(x) * scale["s"].value

    def bwd(scale: Any, act: Any, x: Any, ct: Any) -> Any:
        assert act is jnp.sin
        return (100 * ct * scale["s"].value * x,)

    several: list[dict[str, Any]] = [{"nondiff_argnums": (1, 2)}, {"nondiff_argnames": ("scale", "act")}]
    for options in several:
        f = ps.custom_vjp(function, **options)
        f.defvjp(lambda x, scale, act: (act(x) * scale["s"].value, x), bwd)
        call = lambda x, f=f: f(x, {"s": ps.State(2.0)}, jnp.sin)
        assert jax.grad(call)(3.0) == 600
        assert jax.jit(jax.grad(call))(3.0) == 600
        assert jnp.allclose(jax.vmap(jax.grad(call))(jnp.arange(2.0)), jnp.array([0.0, 200.0]))


def test_nondiff_arguments_of_methods() -> None:
    """Positions are counted as by the caller: the module of a bound method is not."""

    class Layer(eqx.Module):
        w: jax.Array

        @ft.partial(ps.custom_vjp, nondiff_argnums=1)
        def __call__(self, x: Any, mode: str) -> Any:
            return self.w * x

    def bwd(mode: str, residuals: Any, ct: Any) -> Any:
        assert mode == "mode"
        return Layer(7 * ct), 9 * ct

    Layer.__call__.defvjp(lambda self, x, mode: (self.w * x, None), bwd)
    gradient = ps.grad(lambda layer, x: layer(x, "mode"))(Layer(jnp.float32(2.0)), jnp.float32(3.0))
    assert gradient.w == 7


def test_residuals() -> None:
    """Residuals are any tree: states frozen with their current values, and non-arrays."""
    seen: list[Any] = []

    @ps.custom_vjp
    def f(state: Any, x: Any) -> Any:
        state.value += 1
        return 2 * x

    def fwd(state: Any, x: Any) -> Any:
        before = state.replace(state.value)
        state.value += 1
        return 2 * x, {"before": before, "after": state, "name": "f", "n": 3, "f": jnp.sin, "none": None}

    def bwd(residuals: Any, ct: Any) -> Any:
        seen.append((residuals["name"], residuals["n"], residuals["f"], residuals["none"]))
        with pytest.raises(ps.FrozenStateError):
            residuals["after"].value = 0
        difference = residuals["after"].value - residuals["before"].value
        return None, ct * difference

    f.defvjp(fwd, bwd)
    for way in (lambda g: g, ps.jit, ps.checkpoint):
        gradient, state = ps.pure(way(ps.grad(f, argnums=1)))(ps.State(4), 3.0)
        assert (gradient, state.value) == (1, 5)
    assert seen == [("f", 3, jnp.sin, None)] * 3


def test_a_state_that_is_filled() -> None:
    """A state that came in empty, and one that holds a container, have their cotangents."""

    def function(states: Any, x: Any) -> Any:
        states["empty"].value = 2 * x
        states["pair"].value = {"a": x, "n": 1}
        return x

    def bwd(_: Any, ct: Any, written: Any) -> Any:
        of_states, of_x = written
        assert of_x is None
        assert of_states["pair"].value["n"] is None
        return None, ct + 10 * of_states["empty"].value + 100 * of_states["pair"].value["a"]

    f = ps.custom_vjp(function)
    f.defvjp(lambda states, x: (function(states, x), None), bwd)

    def loss(states: Any, x: Any) -> Any:
        return f(states, x) + states["empty"].value + states["pair"].value["a"]

    states = {"empty": ps.State(), "pair": ps.State({"a": 0.0, "n": 0})}
    gradient, after = ps.pure(ps.grad(loss, argnums=1))(states, 3.0)
    assert gradient == 111
    assert after["empty"].value == 6


def test_a_second_derivative() -> None:
    """What `bwd` computes can be differentiated in turn."""

    @ps.custom_vjp
    def cube(count: Any, x: Any) -> Any:
        count.value += 1
        return x**3

    cube.defvjp(lambda count, x: (cube(count, x), x), lambda x, ct: (None, ct * 5 * x**2))
    second, count = ps.pure(ps.grad(ps.grad(cube, argnums=1), argnums=1))(ps.State(0), 2.0)
    assert (second, count.value) == (20, 1)


# What is refused --------------------------------------------------------------------------------------


def test_a_cotangent_that_would_be_lost() -> None:
    """A written state that has a derivative is not lost silently: `bwd` must take its cotangent."""

    def function(state: Any, x: Any) -> Any:
        state.value = 3 * x
        return 2 * x

    fwd = lambda state, x: (function(state, x), None)
    f = ps.custom_vjp(function)
    f.defvjp(fwd, lambda residuals, ct: (None, 2 * ct))
    loss = lambda state, x: f(state, x) + state.value
    assert ps.pure(loss)(ps.State(0.0), 1.0)[0] == 5
    with pytest.raises(TypeError, match=r"`state` \(State\) is written by .* bwd does not take"):
        ps.pure(ps.grad(loss, argnums=1))(ps.State(0.0), 1.0)
    for rule in (
        lambda residuals, ct, written: (None, 2 * ct + 3 * written[0].value),
        lambda *args: (None, 2 * args[1] + 3 * args[2][0].value),
    ):
        told = ps.custom_vjp(function)
        told.defvjp(fwd, rule)
        loss = ft.partial(lambda told, state, x: told(state, x) + state.value, told)
        assert ps.pure(ps.grad(loss, argnums=1))(ps.State(0.0), 1.0)[0] == 5
    alone = lambda state, x: told(state, x)  # nobody uses what was written: a zero
    assert ps.pure(ps.grad(alone, argnums=1))(ps.State(0.0), 1.0)[0] == 2


def test_nondiff_arguments_that_are_differentiated() -> None:
    """An argument that is declared non-differentiated would lose its gradient, and is refused."""
    f = ps.custom_vjp(lambda x, scale: x * scale, nondiff_argnums=1)
    f.defvjp(lambda x, scale: (x * scale, None), lambda scale, _, ct: (ct * scale,))
    assert jax.grad(f)(2.0, jnp.float32(3.0)) == 3
    with pytest.raises(
        TypeError, match=r"`scale` is differentiated, but .*jax\.lax\.stop_gradient\(scale\)"
    ):
        jax.grad(f, argnums=1)(2.0, 3.0)
    assert jax.grad(lambda x: f(x, jax.lax.stop_gradient(x)))(3.0) == 3

    def write(state: Any, x: Any) -> Any:
        state.value = x
        return x

    f = ps.custom_vjp(write, nondiff_argnums=0)
    f.defvjp(lambda state, x: (write(state, x), None), lambda *args: (args[2],))
    with pytest.raises(TypeError, match="it is in an argument that is not differentiated"):
        ps.pure(ps.grad(f, argnums=1))(ps.State(0.0), 1.0)


def test_rules_that_write_something_else() -> None:
    """Where JAX runs both the function and `fwd`, they must write, and return, the same."""

    def function(states: Any, x: Any) -> Any:
        states[0].value += 1
        return x

    def other(states: Any, x: Any) -> Any:
        states[1].value += 1
        return x, None

    states = (ps.State(0), ps.State(0))
    f = ps.custom_vjp(function)
    f.defvjp(other, lambda _, ct: (None, ct))
    with pytest.raises(TypeError, match=r"they differ in `states\[0\]`, `states\[1\]`"):
        ps.pure(ps.grad(ps.jit(f), argnums=1))(states, 1.0)
    f = ps.custom_vjp(function)
    f.defvjp(lambda states, x: ((function(states, x), x), None), lambda _, ct: (None, ct))
    with pytest.raises(TypeError, match="must return the same output, but the structures differ"):
        ps.pure(ps.grad(ps.checkpoint(f), argnums=1))(states, 1.0)


BAD: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no pair": (lambda s, x: x, None, TypeError, r"returns a pair, \(out, residuals\)"),
    "no tuple": (None, lambda r, ct: ct, TypeError, "one entry for each argument, .*'s', 'x'"),
    "too few": (None, lambda r, ct: (ct,), TypeError, "got 1. Write return .None, None."),
    "shape": (None, lambda r, ct: (None, jnp.ones(3)), TypeError, r"f32\[3\] for `x`, but f32\[\] is"),
    "dtype": (None, lambda r, ct: (None, jnp.float16(1)), TypeError, r"f16\[\] for `x`, but f32\[\]"),
    "no array": (None, lambda r, ct: (None, "ct"), TypeError, "'ct' of type str for `x`"),
    "structure": (None, lambda r, ct: ({"a": ct}, ct), ValueError, "for `s` have another structure"),
}


@pytest.mark.parametrize(("fwd", "bwd", "error", "message"), BAD.values(), ids=BAD)
def test_bad_rules(fwd: Any, bwd: Any, error: type[Exception], message: str) -> None:
    """What rules give back is checked, by the names of the arguments; inputs stay as they were."""
    f = ps.custom_vjp(lambda s, x: x * s.value)
    f.defvjp(fwd or (lambda s, x: (x * s.value, None)), bwd or (lambda r, ct: (None, ct)))
    state = ps.State(2.0)
    with pytest.raises(error, match=message):
        ps.grad(f, argnums=1)(state, 1.0)
    assert state.value == 2


def test_telling_rules() -> None:
    """Rules are told once, before the first call, and are functions."""
    f = ps.custom_vjp(lambda x: x)
    with pytest.raises(AttributeError, match=r"has no rule for its derivative. Define it first: f"):
        f(1.0)
    f.defvjp(lambda x: (x, None), lambda _, ct: (2 * ct,))
    with pytest.raises(
        AttributeError, match=r"already has its rules.* Make another one: ps.custom_vjp\(f\)"
    ):
        f.defvjp(lambda x: (x, None), lambda _, ct: (3 * ct,))
    assert jax.grad(f)(1.0) == 2

    @ps.custom_vjp
    def named(x: Any, *, scale: Any) -> Any:
        return x * scale

    named.defvjp(lambda x, scale: (x, None), lambda _, ct: (ct, None))
    with pytest.raises(TypeError, match=r"\['scale'\] can only be passed by keyword"):
        named(1.0, scale=2.0)
    counted = ps.custom_vjp(lambda x: x, nondiff_argnums=1)
    counted.defvjp(lambda x: (x, None), lambda _, ct: (ct,))
    with pytest.raises(
        ValueError, match=r"nondiff_argnums=\(1,\) .* and 1 were passed: positions \[0\]"
    ):
        counted(1.0)
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(f, (1.0,), (1.0,))


def test_what_neighbours_refuse() -> None:
    """Writes that nobody takes, aliases, echoes and captures, as in every other transform."""

    def function(tree: Any, x: Any) -> Any:
        tree["a"].value = tree["a"].value + 1
        return x

    f = ps.custom_vjp(function)
    f.defvjp(lambda tree, x: (function(tree, x), None), lambda _, ct, written: (None, ct))
    state = ps.State(0)
    with pytest.raises(
        ps.FrozenStateError, match=r"out, tree = ps.pure\(ps.custom_vjp\(.*\)\)\(tree, x\)"
    ):
        f({"a": state}, 1.0)
    for run in (f, ps.grad(f, argnums=1)):
        with pytest.raises(ps.AliasedStateError, match="are one state object at two places"):
            ps.pure(run)({"a": state, "b": state}, 1.0)
    echo = ps.custom_vjp(lambda tree: tree["a"])
    echo.defvjp(lambda tree: (tree["a"], None), lambda *_: (None,))
    with pytest.raises(ps.AliasedStateError, match="is also in the output"):
        ps.pure(echo)({"a": state})
    captured = ps.custom_vjp(lambda x: x * state.value)
    captured.defvjp(lambda x: (x * state.value, None), lambda _, ct: (ct,))
    for run in (captured, ps.grad(captured)):
        with pytest.raises(ps.CapturedStateError, match="did not come in through its arguments"):
            ps.jit(run)(1.0)
    assert state.value == 0


def test_live_states_and_recordings() -> None:
    """Inside a recording the function writes into the live states that it gets."""
    with ps.record(neuron()) as live:
        live(1.4)
        live(0.1)
    assert ps.freeze(live).spikes.value == 1


scale = 2.0


def twice(x: Any) -> Any:
    return x * 2


twice_with_rule = ps.custom_vjp(twice)
twice_with_rule.defvjp(lambda x: (twice(x), None), lambda _, ct: (ct * scale,))


def test_a_name_that_a_rule_uses() -> None:
    """A compiled gradient sees that a name in a rule is bound to something else."""
    global scale
    compiled = ps.jit(ps.grad(lambda x: twice_with_rule(x)))
    directly = ps.jit(ps.grad(twice_with_rule))
    assert (compiled(1.0), directly(1.0)) == (2, 2)
    scale = 5.0
    try:
        assert (compiled(1.0), directly(1.0)) == (5, 5)
    finally:
        scale = 2.0


@ps.custom_vjp
def decorated(x: Any) -> Any:
    """Doc."""
    return x


decorated.defvjp(lambda x: (x, None), lambda _, ct: (4 * ct,))


def test_as_an_object() -> None:
    """A decorated function keeps its name and doc, and is pickled by its name; another cannot be."""
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "Doc.")
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert repr(ps.custom_vjp(twice, nondiff_argnums=0)) == "ps.custom_vjp(twice, nondiff_argnums=(0,))"
    with pytest.raises(TypeError, match="cannot be pickled: its rules belong to this object"):
        pickle.dumps(twice_with_rule)


def test_numpy_and_key_reuse() -> None:
    """NumPy arrays go in as arrays; keys pass JAX's check of reuse, and nothing leaks."""
    with jax.debug_key_reuse(True), jax.checking_leaks():
        gradient, after = ps.pure(ps.jit(ps.grad(loss)))(neuron(), np.asarray(XS))
    assert jnp.allclose(gradient.weight.value, expected()[0][0])
    assert not jnp.array_equal(
        jax.random.key_data(after.rng.value), jax.random.key_data(neuron().rng.value)
    )
