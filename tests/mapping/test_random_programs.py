"""Random programs: hypothesis draws trees of states, axes and instructions; NumPy is the oracle.

The oracle runs the lanes one after the other on plain arrays and knows, for each value, whether it
depends on anything that is mapped, which is what "differs between lanes" means to a mapping.
"""

import dataclasses
import functools as ft
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import pstate as ps


KINDS = (ps.State, ps.HiddenState, ps.ParamState, ps.BatchState, ps.NonBatchState)
SHAPE = (2, 3)
AXES = (None, 0, 1, 2, -1)
REDUCE = ft.partial(jnp.sum, axis=0)


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """`rule_in` and `rule_out`: an axis or, outside the filters, `"default"`; `"sum"` reduces."""

    kind: type
    rule_in: Any
    rule_out: Any


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`state[dst] = f(state[dst], operand)`, or an output where `op` is `"out"`."""

    op: str
    dst: int
    src: int


@dataclasses.dataclass(frozen=True)
class RandomProgram:
    states: tuple[StateSpec, ...]
    instructions: tuple[Instruction, ...]
    tree_axis: int | None
    policy: str
    lanes: int

    def axis_in(self, spec: StateSpec) -> int | None:
        if spec.rule_in != "default":
            return spec.rule_in
        return None if spec.kind is ps.NonBatchState else self.tree_axis


@st.composite
def programs(draw: Any) -> RandomProgram:
    spec = st.builds(
        StateSpec,
        st.sampled_from(KINDS),
        st.sampled_from(("default", *AXES)),
        st.sampled_from(("default", "default", *AXES, "sum")),
    )
    states = draw(st.lists(spec, min_size=1, max_size=4))
    index = st.integers(0, len(states) - 1)
    op = st.sampled_from(("add", "sub", "copy", "add_x", "double", "constant", "out", "branch"))
    instructions = draw(st.lists(st.builds(Instruction, op, index, index), max_size=6))
    return RandomProgram(
        tuple(states),
        tuple(instructions),
        draw(st.sampled_from((None, 0))),
        draw(st.sampled_from(("raise", "ignore"))),
        draw(st.integers(1, 3)),
    )


# The program in pstate --------------------------------------------------------------------------


def step(program: RandomProgram, tree: Any, x: Any) -> list[Any]:
    states = [*tree["list"], tree["last"]]
    out = []
    for i in program.instructions:
        dst, src = states[i.dst], states[i.src]
        match i.op:
            case "add":
                dst.value += src.value
            case "sub":
                dst.value = dst.value - src.value
            case "copy":
                dst.value = src.value
            case "add_x":
                dst.value += x
            case "double":
                dst.value = ps.pure(double)(dst)[1].value
            case "constant":
                dst.value = jnp.full(SHAPE, 2.0)
            case "branch":
                dst.value = jax.lax.cond(True, lambda a: a + 1, lambda a: a - 1, dst.value)
            case "out":
                out.append(src.value)
    return out


def double(state: ps.State) -> None:
    state.value *= 2


def mapped(program: RandomProgram) -> ps.StatefulMapping:
    rules_in: dict[Any, list[str]] = {}
    rules_out: dict[Any, list[str]] = {}
    for n, spec in enumerate(program.states):
        if spec.rule_in != "default":
            rules_in.setdefault(spec.rule_in, []).append(f"s{n}")
        if spec.rule_out != "default":
            key = REDUCE if spec.rule_out == "sum" else spec.rule_out
            rules_out.setdefault(key, []).append(f"s{n}")
    return ps.vmap2(
        ft.partial(step, program),
        in_axes=(program.tree_axis, 0),
        state_in_axes=rules_in,
        state_out_axes=rules_out,
        unexpected_out_state_mapping=program.policy,
    )


def inputs(program: RandomProgram) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    states = []
    for n, spec in enumerate(program.states):
        axis = program.axis_in(spec)
        shape = list(SHAPE)
        if axis is not None:
            shape.insert(axis % (len(SHAPE) + 1), program.lanes)
        values = rng.integers(-3, 4, size=shape).astype(np.float32)
        states.append(spec.kind(jnp.asarray(values), tag=f"s{n}"))
    xs = jnp.asarray(rng.integers(-3, 4, size=(program.lanes, *SHAPE)), jnp.float32)
    return {"list": states[:-1], "last": states[-1]}, xs


# The oracle -----------------------------------------------------------------------------------------


class DiffersError(Exception):
    """The oracle expects a `BatchAxisError`."""


def oracle(program: RandomProgram, tree: Any, xs: Any) -> tuple[list[Any], list[Any]]:
    specs = program.states
    whole = [np.asarray(s.value) for s in (*tree["list"], tree["last"])]
    axes_in = [program.axis_in(spec) for spec in specs]
    mapped = [axis is not None for axis in axes_in]
    lanes, outs, out_mapped = [], [], []
    written: set[int] = set()
    for lane in range(program.lanes):
        values = [
            v if a is None else np.take(v, lane, axis=a) for v, a in zip(whole, axes_in, strict=True)
        ]
        out, lane_mapped = [], list(mapped)
        for i in program.instructions:
            values[i.dst] = _run(i, values, np.asarray(xs)[lane])
            if i.op == "out":
                out.append(values[i.src])
                continue
            written.add(i.dst)
            if i.op in ("add", "sub"):
                lane_mapped[i.dst] |= lane_mapped[i.src]
            elif i.op == "copy":
                lane_mapped[i.dst] = lane_mapped[i.src]
            elif i.op == "add_x":
                lane_mapped[i.dst] = True
            elif i.op == "constant":
                lane_mapped[i.dst] = False
        lanes.append(values)
        outs.append(out)
        out_mapped = lane_mapped
    updated = []
    for n, spec in enumerate(specs):
        each = [values[n] for values in lanes]
        if n not in written:
            updated.append(whole[n])
        elif spec.rule_out == "sum":
            updated.append(np.sum(each, axis=0))
        elif spec.rule_out != "default" and spec.rule_out is not None:
            updated.append(_stack(each, spec.rule_out))
        elif spec.rule_out is None:
            if out_mapped[n]:
                raise DiffersError
            updated.append(each[0])
        elif axes_in[n] is not None:
            updated.append(_stack(each, axes_in[n]))
        elif not out_mapped[n]:
            updated.append(each[0])
        elif program.policy == "raise" or issubclass(spec.kind, ps.NonBatchState):
            raise DiffersError  # a NonBatchState is never batched, whatever the policy
        else:
            updated.append(_stack(each, 0))
    return [np.stack(each) for each in zip(*outs, strict=True)], updated


def _run(i: Instruction, values: list[Any], x: Any) -> Any:
    dst, src = values[i.dst], values[i.src]
    match i.op:
        case "add":
            return dst + src
        case "sub":
            return dst - src
        case "copy":
            return src
        case "add_x":
            return dst + x
        case "double":
            return dst * 2
        case "constant":
            return np.full(SHAPE, 2.0, np.float32)
        case "branch":
            return dst + 1
        case _:
            return dst


def _stack(each: list[Any], axis: int) -> Any:
    return np.stack(each, axis)


# The comparison -------------------------------------------------------------------------------------


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(programs(), st.booleans())
def test_random_programs(program: RandomProgram, compiled: bool):
    """Outputs and states equal the oracle's, and both refuse the same programs."""
    tree, xs = inputs(program)
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((tree, xs))]
    run = ps.pure(mapped(program))
    run = jax.jit(run) if compiled else run
    try:
        outs, updated = oracle(program, tree, xs)
    except DiffersError:
        with pytest.raises(ps.BatchAxisError, match=r"`tree\['(list|last)'\].*between"):
            _quietly(run, tree, xs)
    else:
        got, new = _quietly(run, tree, xs)
        for a, b in zip(got, outs, strict=True):
            np.testing.assert_array_equal(a, b)
        states = [*new["list"], new["last"]]
        for state, value in zip(states, updated, strict=True):
            np.testing.assert_array_equal(state.value, value)
        assert jax.tree.structure(new) == jax.tree.structure(tree)
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((tree, xs))] == before


def _quietly(run: Any, *args: Any) -> Any:
    with warnings.catch_warnings():
        # States that are stacked on each call grow on purpose here.
        warnings.simplefilter("ignore", ps.BatchAxisWarning)
        return run(*args)
