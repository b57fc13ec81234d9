"""Mapping over shards beside its twins: `python tests/benchmarks/shards.py`.

For each number of forced CPU devices, in a process of its own, and each number of states: a warm
call, and a trace. The limit is `jax.jit(jax.shard_map(f))` over flat lists of arrays; the twin
that people write is the same over Equinox modules. Ratios are to the latter, the medians over
rounds in which all contenders take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


WIDTH = 4
SECONDS = 6.0  # for each table line of warm calls


def main() -> None:
    """Start a process for each number of devices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--states", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--here", action="store_true", help="measure on the devices that there are")
    options = parser.parse_args()
    if options.here:
        measure(options.states)
        return
    for n in options.devices:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}"
        command = [sys.executable, __file__, "--here", "--states", *map(str, options.states)]
        subprocess.run(
            command, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, check=True
        )


def measure(sizes: list[int]) -> None:
    """Print a line for each number of states."""
    import jax

    from report import versions

    print(f"\n{versions()}, {jax.device_count()} devices of kind {jax.devices()[0].device_kind}")
    print(f"{'states':>6} {'contender':34} {'warm call':>12} {'ratio':>6} {'trace':>10} {'ratio':>6}")
    for states in sizes:
        contenders = build(states)
        warm, trace = warm_times(contenders), trace_times(contenders)
        twin_warm, twin_trace = warm[TWIN], trace[TWIN]
        for name in contenders:
            ratio = statistics.median(a / b for a, b in zip(warm[name], twin_warm, strict=True))
            traced = statistics.median(a / b for a, b in zip(trace[name], twin_trace, strict=True))
            print(
                f"{states:6} {name:34} {statistics.median(warm[name]) * 1e6:9,.0f} us {ratio:6.2f} "
                f"{statistics.median(trace[name]) * 1e3:7,.1f} ms {traced:6.2f}"
            )


LIMIT, TWIN = "jax.jit(jax.shard_map(flat))", "jax.jit(jax.shard_map(f)), modules"
OURS, WITHIN = "ps.pure(ps.shard_map2(f))", "jax.jit(ps.pure(ps.shard_map2(f)))"

#: A call, which goes on with the states of the call before; and a trace of a new function.
Contender = tuple[Callable[[], Any], Callable[[], Any]]


def build(states: int) -> dict[str, Contender]:
    """The contenders for a model of so many states: half of them parameters, half counters."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    import pstate as ps

    n = jax.device_count()
    mesh = jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    x = jax.device_put(jnp.ones((n, WIDTH)), cut)
    layers = states // 2
    new = lambda value: jax.device_put(jnp.full((WIDTH,), value), everywhere)
    params, counters = [new(-0.001) for _ in range(layers)], [new(float(i % 7)) for i in range(layers)]

    class Layer(eqx.Module):
        param: Any
        counter: Any

    class Model(eqx.Module):
        layers: list[Layer]

    def flat(x: Any, *leaves: Any) -> Any:
        written = []
        for param, counter in zip(leaves[:layers], leaves[layers:], strict=True):
            counter = counter + 1.0
            x = x + param * counter
            written.append(counter)
        return jax.lax.pmean(x.sum(), "data"), *written

    def by_hand(model: Any, x: Any) -> Any:
        new = []
        for layer in model.layers:
            counter = layer.counter + 1.0
            x = x + layer.param * counter
            new.append(Layer(layer.param, counter))
        return jax.lax.pmean(x.sum(), "data"), Model(new)

    def stateful(model: Any, x: Any) -> Any:
        for layer in model.layers:
            layer.counter.value += 1.0
            x = x + layer.param.value * layer.counter.value
        return jax.lax.pmean(x.sum(), "data")

    def of_flat(f: Any) -> Any:
        specs = (P("data"), *[P()] * (2 * layers))
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))

    def of_modules(f: Any) -> Any:
        specs = (P(), P("data"))
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))

    def ours(f: Any) -> Any:
        return ps.pure(ps.shard_map2(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))

    def anew(f: Any) -> Any:
        """The same function as a new object, which no cache knows."""
        return lambda *args: f(*args)

    model = Model([Layer(*pair) for pair in zip(params, counters, strict=True)])
    with_states = Model(
        [
            Layer(ps.ParamState(param), ps.ShortTermState(counter))
            for param, counter in zip(params, counters, strict=True)
        ]
    )

    def calling(run: Any, model: Any) -> Callable[[], Any]:
        def call() -> Any:
            nonlocal model
            y, model = run(model, x)
            return y

        return call

    run_flat, now = of_flat(flat), list(counters)

    def call_flat() -> Any:
        y, *now[:] = run_flat(x, *params, *now)
        return y

    trace = lambda make, *args: lambda: jax.jit(make()).trace(*args)
    return {
        LIMIT: (call_flat, trace(lambda: of_flat(anew(flat)), x, *params, *counters)),
        TWIN: (
            calling(of_modules(by_hand), model),
            trace(lambda: of_modules(anew(by_hand)), model, x),
        ),
        OURS: (
            calling(ours(stateful), with_states),
            trace(lambda: ours(anew(stateful)), with_states, x),
        ),
        WITHIN: (
            calling(jax.jit(ours(stateful)), with_states),
            trace(lambda: jax.jit(ours(anew(stateful))), with_states, x),
        ),
    }


def warm_times(contenders: dict[str, Contender]) -> dict[str, list[float]]:
    """Seconds of a call by round; each contender makes some calls in a row."""
    for call, _ in contenders.values():
        call().block_until_ready()
        call().block_until_ready()
    start = time.perf_counter()
    next(iter(contenders.values()))[0]().block_until_ready()
    in_a_row = max(1, min(20, int(0.02 / (time.perf_counter() - start))))
    return rounds({name: call for name, (call, _) in contenders.items()}, in_a_row, 12, SECONDS)


def trace_times(contenders: dict[str, Contender]) -> dict[str, list[float]]:
    """Seconds of a trace by round."""
    return rounds({name: trace for name, (_, trace) in contenders.items()}, 1, 5, SECONDS)


def rounds(
    calls: dict[str, Callable[[], Any]], in_a_row: int, least: int, seconds: float
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    played = 0
    while played < least or (time.perf_counter() - start < seconds and played < 100):
        for name, call in calls.items():
            before = time.perf_counter()
            result: Any = None
            for _ in range(in_a_row):
                result = call()
            if hasattr(result, "block_until_ready"):
                result.block_until_ready()
            times[name].append((time.perf_counter() - before) / in_a_row)
        played += 1
    return {name: own[1:] for name, own in times.items()}


if __name__ == "__main__":
    main()
