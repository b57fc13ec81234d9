"""Ways of running a step: the boundary alone, each transform, and some transforms in one another.

A *step* takes `(model, x)`, may write the states of the model, and returns a number. A *way* runs it,
and gives back what it returned and the model. Its twin does the same by hand with raw JAX, on the values
of the states: a step by hand takes `(values, x)` and returns `(y, values)`.
"""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import pstate as ps
from laws import transforms
from laws.transforms import USES, ByHand, Stateful, Using


Call = Callable[[Any, Any], tuple[Any, Any]]


class Model(transforms.Model):
    """The model of the laws, with a list and a dict of its own, and a state that holds a dict."""

    log: list[Any] = eqx.field(default_factory=list)
    table: dict[str, ps.State] = eqx.field(default_factory=dict)
    cache: ps.State = eqx.field(default_factory=lambda: ps.State({"last": jnp.float32(0)}))
    later: ps.State = eqx.field(default_factory=ps.State)

    def init_state(self) -> None:
        """For `ps.nn.Map`: a count for each lane."""
        self.count.value = self.count.value * 1

    def gained(self, y: Any) -> Any:
        return y


def model() -> Model:
    """A model with these states, made afresh."""
    fields = {field: getattr(transforms.model(), field) for field in transforms.Model.__annotations__}
    return Model(**fields, log=[jnp.zeros(2, int)], table={"n": ps.State(3)})


def step(model: Any, x: Any) -> Any:
    """What every habit is beside."""
    model.count.value = 0.5 * model.count.value + x
    return model.count.value * model.weight.value**2


def step_by_hand(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
    count = 0.5 * values["count"] + x
    return count * values["weight"] ** 2, {**values, "count": count}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a program runs a step.

    `wrap` makes the step one that goes through the transform, and `boundary` gives the model back.
    """

    name: str
    wrap: Callable[[Stateful], Stateful]
    by_hand: Callable[[ByHand], ByHand]
    boundary: Callable[[Stateful], Call] = ps.pure

    def call(self, step: Stateful) -> Call:
        return self.boundary(self.wrap(step))


def _same(f: Any) -> Any:
    return f


def _recorded(f: Stateful) -> Call:
    def call(model: Any, x: Any) -> tuple[Any, Any]:
        with ps.record(model) as live:
            y = f(live, x)
        return y, ps.freeze(live)

    return call


def _packed(f: Stateful) -> Call:
    def call(model: Any, x: Any) -> tuple[Any, Any]:
        y, packed = ps.pure(f)(ps.pack(model), x)
        return y, packed.unpack()

    return call


def _in_a_map(f: Stateful) -> Call:
    def call(model: Any, x: Any) -> tuple[Any, Any]:
        mapper = ps.nn.Map(model, 2).init_all_states()
        ys, mapper = ps.pure(mapper.map(f))(x + jnp.arange(2.0))
        new = mapper.module
        mean = new.count.replace(jnp.mean(new.count.value, axis=0))
        return jnp.sum(ys), eqx.tree_at(lambda m: m.count, new, mean)

    return call


# Derivatives and loops that the laws do not have ------------------------------------------------------


def _derivative(g: ByHand, derive: Callable[[Callable[..., Any]], Any]) -> ByHand:
    """`derive` takes a function of the weight and gives the result, and the values."""

    def differentiated(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        of_weight = lambda weight: g({**values, "weight": weight}, x)
        result, new = derive(of_weight)(values["weight"])
        return result, {**new, "weight": values["weight"]}

    return differentiated


def _by_hand(transform: Callable[..., Any]) -> Callable[[ByHand], ByHand]:
    return ft.partial(_derivative, derive=lambda f: transform(f, has_aux=True))


def _vjp_by_hand(f: Callable[..., Any]) -> Callable[..., Any]:
    def derived(weight: Any) -> Any:
        y, back, new = jax.vjp(f, weight, has_aux=True)
        return y + back(jnp.ones(()))[0], new

    return derived


def _jvp_by_hand(f: Callable[..., Any]) -> Callable[..., Any]:
    def derived(weight: Any) -> Any:
        y, dy, new = jax.jvp(f, (weight,), (weight,), has_aux=True)
        return y + dy, new

    return derived


def _of_weight(transform: Callable[..., Any]) -> Callable[[Stateful], Stateful]:
    return lambda f: lambda model, x: transform(f)(model, x).weight.value


def _vjp(f: Stateful) -> Stateful:
    def derived(model: Any, x: Any) -> Any:
        y, back = ps.vjp(f, model, x)
        return y + back(jnp.ones(()))[0].weight.value

    return derived


def _jvp(f: Stateful) -> Stateful:
    def derived(model: Any, x: Any) -> Any:
        tangent = ps.trainable(model)
        y, dy = ps.jvp(f, (model, x), (tangent,))
        return y + dy

    return derived


def _hessian(f: Stateful) -> Stateful:
    return lambda model, x: ps.hessian(f)(model, x).weight.value.weight.value


def _for_loop(f: Stateful) -> Stateful:
    return lambda model, x: jnp.sum(ps.for_loop(ft.partial(f, model), x + jnp.arange(3.0)))


def _for_loop_by_hand(g: ByHand) -> ByHand:
    def looped(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        def step(count: Any, x: Any) -> Any:
            y, new = g({**values, "count": count}, x)
            return new["count"], y

        count, ys = jax.lax.scan(step, values["count"], x + jnp.arange(3.0))
        return jnp.sum(ys), {**values, "count": count}

    return looped


def _switch(f: Stateful) -> Stateful:
    return lambda model, x: ps.switch(1, [_nothing, f], model, x)


def _nothing(model: Any, x: Any) -> Any:
    return x


USE = {use.name: use for use in USES}
#: What the laws call otherwise.
NAMES = {"grad": "value_and_grad", "chunked": "chunks"}


def _of(name: str, *uses: Using) -> Way:
    """Transforms of the laws in one another, the first outermost."""

    def wrap(f: Stateful) -> Stateful:
        return ft.reduce(lambda f, use: use.wrap(f), reversed(uses), f)

    def by_hand(g: ByHand) -> ByHand:
        return ft.reduce(lambda g, use: use.by_hand(g), reversed(uses), g)

    return Way(name, wrap, by_hand)


WAYS = {
    way.name: way
    for way in (
        Way("pure", _same, _same),
        Way("record", _same, _same, _recorded),
        *(_of(NAMES.get(use.name, use.name), use) for use in USES),
        Way("packed", ps.jit, jax.jit, _packed),
        Way("Map", _same, USE["pmap2"].by_hand, _in_a_map),
        Way("grad", _of_weight(ps.grad), _by_hand(jax.grad)),
        Way("jacrev", _of_weight(ps.jacrev), _by_hand(jax.jacrev)),
        Way("hessian", _hessian, _by_hand(jax.hessian)),
        Way("vjp", _vjp, ft.partial(_derivative, derive=_vjp_by_hand)),
        Way("jvp", _jvp, ft.partial(_derivative, derive=_jvp_by_hand)),
        Way("for_loop", _for_loop, _for_loop_by_hand),
        Way("switch", _switch, _same),
        *(
            _of(f"{outer}-{inner}", USE[outer], USE[inner])
            for outer, inner in (
                ("jit", "vmap2"),
                ("vmap2", "scan"),
                ("grad", "scan"),
                ("checkpoint", "vmap2"),
                ("scan", "cond"),
                ("while_loop", "jit"),
            )
        ),
    )
}


# What ways have in common ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Group:
    """Ways, and what a page calls them."""

    words: str
    ways: frozenset[str]

    def __or__(self, other: "Group") -> "Group":
        return Group(f"{self.words} and {other.words}", self.ways | other.ways)


def _group(words: str, names: str) -> Group:
    assert WAYS.keys() >= set(names.split())
    return Group(words, frozenset(names.split()))


RECORD = _group("in `ps.record`", "record")
PACKED = _group("in a packed tree", "packed")
BARE = _group("under `ps.pure` or `ps.record` alone", "pure record")
CHECKPOINT = _group("in `checkpoint`", "checkpoint checkpoint-vmap2")
#: Where nothing is differentiated the function runs as it is.
CUSTOM = _group("in `custom_vjp` and `custom_jvp`", "custom_vjp custom_jvp")
#: The step runs on the same array objects that came in.
CONCRETE = _group(
    "under `ps.pure` or `ps.record` alone, in derivatives, in `custom_vjp` and `custom_jvp`",
    "pure record value_and_grad jacfwd grad jacrev hessian vjp jvp custom_vjp custom_jvp",
)
#: The step runs on each call.
EAGER = Group(
    "under `ps.pure` or `ps.record` alone, in derivatives, "
    "in `custom_vjp`, `custom_jvp` and `checkpoint`",
    CONCRETE.ways | CHECKPOINT.ways | {"grad-scan"},
)
#: The step is compiled for certain, so that nothing may be baked in.
COMPILED = _group(
    "in `jit`, `pmap2` and `shard_map2`, with packed trees",
    "jit pmap2 shard_map2 packed jit-vmap2 while_loop-jit",
)
#: An eager call is compiled if it can be.
REMEMBERED = Group("in eager mappings, loops and branches", frozenset(WAYS) - EAGER.ways - COMPILED.ways)


def without(*names: str) -> tuple[str, ...]:
    """All ways but these."""
    assert WAYS.keys() >= set(names)
    return tuple(name for name in WAYS if name not in names)


#: Ways with one transform at most.
SINGLE = tuple(name for name in WAYS if "-" not in name)

#: Ways in which the step goes through a transform before the boundary.
LIFTED = without("pure", "record", "Map")


#: A name of another module than that of a step, and a helper that uses it.
gain = 1.0


def gained(y: Any) -> Any:
    return gain * y
