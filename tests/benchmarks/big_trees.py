"""What a big tree costs: `python tests/benchmarks/big_trees.py`.

Each line is one thing that a user does with a tree of so many states, and its time for each size.
The ratio in brackets is the time per state over that of the first size: about 1.0 if the cost is
linear. The first lines are JAX's and Equinox's own, over a tree of the same form without states.
Use an idle machine: on a busy one, large sizes look worse.
"""

import argparse
import functools as ft
import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import pstate as ps
from report import Row, Table, versions


class Layer(eqx.Module):
    """One state and one array."""

    state: Any
    array: jax.Array


Action = Callable[[], Any]


def tree_of(n: int, wrap: Callable[[jax.Array], Any]) -> list[Layer]:
    """A list of `n` layers, each with a state."""
    zero, one = jnp.zeros(()), jnp.ones(())
    return [Layer(wrap(zero), one) for _ in range(n)]


def step(layers: Any, x: Any) -> Any:
    """Writes every state."""
    for layer in layers:
        layer.state.value += x
    return x


def step_by_hand(layers: Any, x: Any) -> Any:
    return x, [Layer(layer.state + x, layer.array) for layer in layers]


def count_one(layers: Any, x: Any) -> Any:
    layers[0].state.value += x
    return x


def by_hand(n: int) -> dict[str, Action]:
    """What JAX and Equinox take, without states."""
    layers, x = tree_of(n, lambda array: array), jnp.ones(())
    return {
        "jax.tree.flatten and unflatten": lambda: jax.tree.map(lambda leaf: leaf, layers),
        "jax.jit by hand, trace": lambda: jax.make_jaxpr(lambda *a: step_by_hand(*a))(layers, x),
        "eqx.tree_serialise_leaves": lambda: eqx.tree_serialise_leaves(io.BytesIO(), layers),
    }


def with_states(n: int) -> dict[str, Action]:
    """The same and more, with states."""
    layers, x, xs = tree_of(n, ps.State), jnp.ones(()), jnp.ones(3)
    parameters = tree_of(n, ps.ParamState)
    others = ps.update(layers, dict.fromkeys(ps.states(layers), 1.0))
    lanes = ps.broadcast(layers, {0: ps.State}, 3)
    stored = io.BytesIO()
    eqx.tree_serialise_leaves(stored, layers, filter_spec=ps.serialise_filter_spec)
    run_one = ps.pure(ps.jit(count_one))
    packed = ps.pack(layers)
    loss = lambda layers: sum(layer.state.value for layer in layers)

    def load() -> Any:
        stored.seek(0)
        return eqx.tree_deserialise_leaves(stored, layers, filter_spec=ps.deserialise_filter_spec)

    def recorded() -> Any:
        with ps.record(layers) as live:
            step(live, x)
        return ps.freeze(live), ps.written(live)

    anew = lambda f: lambda *args: f(*args)  # a new function, so that nothing is known
    trace = lambda make, *args: lambda: jax.make_jaxpr(make())(*args)
    axes: Any = {"state_in_axes": {0: ps.State}}
    return {
        "ps.pure(f)": lambda: ps.pure(anew(step))(layers, x),
        "ps.record, ps.freeze, ps.written": recorded,
        "jax.jit(ps.pure(f)), trace": trace(lambda: ps.pure(anew(step)), layers, x),
        "ps.pure(ps.jit(f)), trace": trace(lambda: ps.pure(ps.jit(anew(step))), layers, x),
        "ps.pure(ps.jit(f)), warm": lambda: run_one(layers, x),
        "the same, packed": lambda: run_one(packed, x),
        "ps.vmap2, shared, trace": trace(
            lambda: ps.pure(ps.vmap2(anew(step), in_axes=None, axis_size=3)), layers, x
        ),
        "ps.vmap2, lanes, trace": trace(
            lambda: ps.pure(ps.vmap2(anew(step), in_axes=(None, 0), **axes)), lanes, xs
        ),
        "ps.vmap2, stacked, trace": trace(
            lambda: ps.pure(ps.vmap2(anew(step), in_axes=(None, 0), state_out_axes={0: ps.State})),
            layers,
            xs,
        ),
        "mapped.explain": lambda: str(
            ps.vmap2(anew(step), in_axes=(None, 0), **axes).explain(lanes, xs)
        ),
        "ps.grad, trace": trace(lambda: ps.pure(ps.grad(anew(loss))), parameters),
        "ps.for_loop, trace": trace(lambda: ps.pure(_looped(anew(step))), layers, xs),
        "ps.cond, trace": trace(
            lambda: ps.pure(lambda m, x: ps.cond(x > 0, anew(step), lambda m, x: x, m, x)), layers, x
        ),
        "ps.checkpoint, trace": trace(lambda: ps.pure(ps.checkpoint(anew(step))), layers, x),
        "ps.pack and unpack": lambda: ps.pack(layers).unpack(),
        "ps.states": lambda: ps.states(layers),
        "ps.update": lambda: ps.update(layers, ps.states(others)),
        "ps.select, ps.trainable": lambda: (ps.select(parameters), ps.trainable(parameters)),
        "ps.broadcast": lambda: ps.broadcast(layers, {0: ps.State}, 3),
        "ps.summary": lambda: str(ps.summary(layers)),
        "ps.diff": lambda: str(ps.diff(layers, others)),
        "saving": lambda: eqx.tree_serialise_leaves(
            io.BytesIO(), layers, filter_spec=ps.serialise_filter_spec
        ),
        "loading": load,
        "repr": lambda: repr(layers),
    }


def _looped(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda layers, xs: ps.for_loop(ft.partial(step, layers), xs)


def seconds(action: Action, rounds: int) -> float:
    """The median time of a call; the first one is not counted."""
    times: list[float] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(action()))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time what users do with big trees.")
    parser.add_argument("--states", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--only", default="", help="lines whose name contains this")
    options = parser.parse_args()
    print(versions())
    cells: dict[str, list[str]] = {}
    first: dict[str, float] = {}
    warnings.simplefilter("ignore")
    for n in options.states:
        for name, action in (by_hand(n) | with_states(n)).items():
            if options.only not in name:
                continue
            taken = seconds(action, options.rounds)
            per_state = first.setdefault(name, taken / n)
            ratio = taken / n / per_state
            cells.setdefault(name, []).append(f"{taken * 1e3:,.1f} ({ratio:.2f})")
            print(n, name, cells[name][-1], flush=True)
    header = tuple(f"{n:,} states" for n in options.states)
    rows = tuple(Row(name, tuple(own)) for name, own in cells.items())
    table = Table("Big trees, ms (per state, over the first size)", header, rows)
    print(table.markdown() if options.markdown else table.text())


if __name__ == "__main__":
    main()
