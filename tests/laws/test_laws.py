"""The laws of the design, each over the whole table of cases."""

import concurrent.futures
import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps
from laws.cases import CASES, Case, ticks
from laws.loops import LOOPED
from laws.programs import program
from laws.transforms import TRANSFORMED


every_case = pytest.mark.parametrize("case", [*CASES, *TRANSFORMED, *LOOPED], ids=lambda case: case.name)
every_mapping = pytest.mark.parametrize(
    "case", [c for c in CASES if c.mapping], ids=lambda case: case.name
)

#: These laws call one function again and again on purpose, also one that is bound to its module.
CALLED_AGAIN = pytest.mark.filterwarnings("ignore::pstate.StaleStateWarning")


def assert_same(got: Any, expected: Any, exact: bool = True) -> None:
    """Trees agree in structure and values, keys and dtypes included."""
    got_leaves, got_treedef = jax.tree.flatten(got)
    leaves, treedef = jax.tree.flatten(expected)
    assert got_treedef == treedef
    for a, b in zip(got_leaves, leaves, strict=True):
        if not eqx.is_array(b):
            assert a == b
            continue
        assert a.dtype == b.dtype
        a, b = (jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def snapshot(tree: Any) -> list[Any]:
    def bits(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jr.key_data(leaf) if is_key else leaf).tobytes()

    return [bits(leaf) for leaf in jax.tree.leaves(tree)]


@contextlib.contextmanager
def no_growth_warning() -> Iterator[None]:
    """States that are stacked afresh grow on purpose in some cases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.BatchAxisWarning)
        yield


@every_case
def test_hand_threaded(case: Case):
    """L2: outputs and states equal those of the twin."""
    args, kwargs = case.args(), case.kwargs()
    assert_same(case.pure()(*args, **kwargs), case.twin(*args, **kwargs), exact=False)


@every_case
def test_hand_threaded_under_jit(case: Case):
    """L2, with the whole of it compiled by JAX."""
    args, kwargs = case.args(), case.kwargs()
    got = eqx.filter_jit(case.pure())(*args, **kwargs)
    assert_same(got, case.twin(*args, **kwargs), exact=False)


@every_case
def test_same_program(case: Case):
    """L2: the traced program has the twin's primitives in the twin's nesting, unused ones included."""
    if not case.same_program:
        return
    args, kwargs = case.args(), case.kwargs()
    assert program(case.pure(), *args, **kwargs) == program(case.twin, *args, **kwargs)


@every_case
def test_untouched(case: Case):
    """L1: what was not written comes back as the same leaf objects."""
    args, kwargs = case.args(), case.kwargs()
    pure = case.pure()
    carrier = pure.fun.fun if hasattr(pure.fun, "fun") else None
    _, updated = pure(*args, **kwargs)
    before = {id(leaf) for leaf in jax.tree.leaves((args, carrier)) if eqx.is_array(leaf)}
    unwritten = jax.tree.leaves(eqx.filter(case.unwritten(updated), eqx.is_array))
    assert all(id(leaf) in before for leaf in unwritten)


@every_case
@CALLED_AGAIN
def test_once(case: Case):
    """L6: one run of the body when cold, none when warm, and one under an outer trace."""
    args, kwargs = case.args(), case.kwargs()
    jax.clear_caches()
    mapped = ps.pure(_fresh(case.make()), argnums=case.argnums)
    before = ticks()
    mapped(*args, **kwargs)
    cold = ticks() - before
    mapped(*args, **kwargs)
    warm = ticks() - before - cold
    assert cold == case.runs
    assert warm == case.warm
    before = ticks()
    eqx.filter_make_jaxpr(case.pure())(*args, **kwargs)
    assert ticks() - before == case.runs


def _fresh(fn: Any) -> Any:
    """The same mapping of a new function, which no cache knows."""
    if not isinstance(fn, ps.StatefulMapping) or type(fn.fun).__name__ != "function":
        return fn
    import types

    inner = fn.fun
    copied = types.FunctionType(
        inner.__code__, inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copied.__kwdefaults__ = inner.__kwdefaults__
    return eqx.tree_at(lambda m: m.fun, fn, copied, is_leaf=lambda x: x is inner)


@every_case
def test_no_leaks(case: Case):
    """L7: nothing leaks a tracer, and no key is used twice."""
    args, kwargs = case.args(), case.kwargs()
    leaks = contextlib.nullcontext() if case.leaks else jax.checking_leaks()
    with leaks, jax.debug_key_reuse(True):
        eqx.filter_jit(case.pure())(*args, **kwargs)
    args = case.args()
    with jax.debug_key_reuse(True):
        case.pure()(*args, **kwargs)


@pytest.mark.once
@every_case
def test_without_jit(case: Case):
    """`jax.disable_jit()` changes nothing but the speed."""
    args, kwargs = case.args(), case.kwargs()
    expected = case.pure()(*args, **kwargs)
    with jax.disable_jit():
        assert_same(case.pure()(*args, **kwargs), expected, exact=False)


@pytest.mark.once
@every_case
def test_commutes_with_jit(case: Case):
    """L3: `jit(pure(f))` equals `pure(f)`, for Equinox's jit as for JAX's."""
    args, kwargs = case.args(), case.kwargs()
    expected = case.pure()(*args, **kwargs)
    dynamic, static = eqx.partition((args, kwargs), eqx.is_array)

    @jax.jit
    def compiled(dynamic: Any) -> Any:
        args, kwargs = eqx.combine(dynamic, static)
        return eqx.filter(case.pure()(*args, **kwargs), eqx.is_array)

    assert_same(compiled(dynamic), eqx.filter(expected, eqx.is_array), exact=False)


@pytest.mark.once
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.mapping and c.commutes], ids=lambda case: case.name
)
def test_commutes_with_pure(case: Case):
    """L3: `vmap2(pure(f))` has the outputs of `pure(vmap2(f))`."""
    args, kwargs = case.args(), case.kwargs()
    mapped = case.make()
    inside = eqx.tree_at(lambda m: m.fun, mapped, ps.pure(mapped.fun), is_leaf=lambda x: x is mapped.fun)
    inside = _with_outputs_of_pure(inside)
    (out, _), (expected, _) = inside(*args, **kwargs), ps.pure(mapped)(*args, **kwargs)
    assert_same(out, expected, exact=False)


def _with_outputs_of_pure(mapped: ps.StatefulMapping) -> ps.StatefulMapping:
    """The mapping with every state of the output stacked on axis 0, whatever its axes were."""
    return ps.StatefulMapping(
        mapped.fun,
        in_axes=mapped.in_axes,
        out_axes=(mapped.out_axes, 0),
        state_in_axes=mapped.state_in_axes,
        state_out_axes={0: ps.filter.Not(ps.NonBatchState)},
        axis_name=mapped.axis_name,
    )


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.mapping and not c.collective],
    ids=lambda case: case.name,
)
def test_lanes(case: Case):
    """L4: a mapped call equals its lanes, run one by one; draws bit for bit."""
    args, kwargs = case.args(), case.kwargs()
    mapped = case.make()
    explained = mapped.explain(*args, **kwargs)
    out, updated = ps.pure(mapped, argnums=case.argnums)(*args, **kwargs)
    lanes = [
        ps.pure(mapped.lane(i), argnums=case.argnums)(*case.args(), **case.kwargs())
        for i in range(explained.axis_size)
    ]
    states = ps.states(out)
    axes = {path: _axis_of(mapped, path, state) for path, state in states.items()}
    for path, state in states.items():
        assert_same(state.value, _stack([ps.states(o)[path].value for o, _ in lanes], axes[path]))
    raw = [_raw(o) for o, _ in lanes]
    assert_same(_raw(out), _stack(raw, mapped.out_axes), exact=False)
    written = {row.place.rpartition(".")[2]: row for row in explained.rows if "written" in row.use}
    for path, state in ps.states(updated).items():
        row = written.get(str(path[-1])) if path else None
        if row is None or "reduced" in row.axis_out or "split" in row.use:
            continue
        axis = None if row.axis_out == "shared" else int(row.axis_out)
        each = [ps.states(model)[path].value for _, model in lanes]
        assert_same(state.value, _stack(each, axis), exact=False)


def _by_engine(mapped: ps.StatefulMapping, **engine: Any) -> ps.StatefulMapping:
    return ps.StatefulMapping(
        mapped.fun,
        in_axes=mapped.in_axes,
        out_axes=mapped.out_axes,
        state_in_axes=mapped.state_in_axes,
        state_out_axes=mapped.state_out_axes,
        unexpected_out_state_mapping=mapped.options.policy,
        axis_name=mapped.axis_name,
        **engine,
    )


ENGINES = {
    "pmap": {"mapping_fn": jax.pmap},
    "chunks of 1": {"chunk_size": 1},
    "chunks of 3": {"chunk_size": 3},
    "chunks of 99": {"chunk_size": 99},
}
#: One size of chunks is enough for each further version of JAX.
OTHER_SIZES = {"chunks of 1", "chunks of 99"}


@every_mapping
@pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=[pytest.mark.once] * (name in OTHER_SIZES)) for name in ENGINES],
)
@pytest.mark.filterwarnings("ignore:The jitted function .* includes a pmap")
@CALLED_AGAIN
def test_engines(case: Case, engine: str):
    """L5: `pmap2` and chunks agree with `vmap2`; keys bit for bit, floats to rounding."""
    if case.collective and engine != "pmap":
        with pytest.raises(ValueError, match="would see only the lanes of one chunk"):
            _by_engine(case.make(), **ENGINES[engine])
        return
    args, kwargs = case.args(), case.kwargs()
    expected = case.pure()(*args, **kwargs)
    mapped = _by_engine(case.make(), **ENGINES[engine])
    pure = ps.pure(mapped, argnums=case.argnums)
    before = ticks()
    assert_same(pure(*args, **kwargs), expected, exact=False)
    assert ticks() - before <= case.runs
    before = ticks()
    assert_same(pure(*args, **kwargs), expected, exact=False)
    assert ticks() == before
    assert_same(eqx.filter_jit(pure)(*args, **kwargs), expected, exact=False)


def _raw(tree: Any) -> Any:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ps.State))
    return [leaf for leaf in leaves if eqx.is_array(leaf)]


def _axis_of(mapped: ps.StatefulMapping, path: Any, state: ps.State) -> int | None:
    for axis, filter_ in mapped.state_out_axes.items():
        if ps.filter.to_predicate(filter_)(path, state):
            return axis
    return None if isinstance(state, ps.NonBatchState) else mapped.out_axes


def _stack(lanes: list[Any], axis: int | None) -> Any:
    if axis is None:
        for lane in lanes:
            assert_same(lane, lanes[0])
        return lanes[0]
    return jax.tree.map(lambda *each: jnp.stack(each, axis), *lanes)


@pytest.mark.once
@every_case
def test_inputs_stay_as_they_were(case: Case):
    """L8: no call changes an input, and a call can be repeated."""
    args, kwargs = case.args(), case.kwargs()
    before = snapshot((args, kwargs))
    first = case.pure()(*args, **kwargs)
    second = case.pure()(*args, **kwargs)
    assert snapshot((args, kwargs)) == before
    assert_same(first, second)


class HalfWayError(Exception):
    """Raised by the test, in the middle of a body."""


@pytest.mark.once
@every_case
def test_an_exception_half_way(case: Case, monkeypatch: pytest.MonkeyPatch):
    """L8: an exception after the first write leaves every input usable as it was."""
    args, kwargs = case.args(), case.kwargs()
    before = snapshot((args, kwargs))
    writes: list[None] = []
    original = ps.State.value

    def write_and_raise(state: ps.State, value: Any) -> None:
        original.fset(state, value)
        writes.append(None)
        raise HalfWayError

    jax.clear_caches()
    with monkeypatch.context() as patch:
        patch.setattr(ps.State, "value", property(original.fget, write_and_raise))
        with contextlib.suppress(HalfWayError):
            ps.pure(_fresh(case.make()), argnums=case.argnums)(*args, **kwargs)
    assert snapshot((args, kwargs)) == before
    expected = case.twin(*args, **kwargs)
    assert_same(case.pure()(*args, **kwargs), expected, exact=False)


@pytest.mark.once
@every_case
@CALLED_AGAIN
def test_threads(case: Case):
    """L9: eight threads give what one gives."""
    args, kwargs = case.args(), case.kwargs()
    jax.clear_caches()
    pure = case.pure()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: pure(*args, **kwargs), range(8)))
    expected = case.pure()(*args, **kwargs)
    for result in results:
        assert_same(result, expected)


@pytest.mark.once
@every_case
def test_shapes_alone(case: Case):
    """`jax.eval_shape` and Equinox's see through `pure`, as through any function of pytrees."""
    args, kwargs = case.args(), case.kwargs()
    shapes = eqx.filter_eval_shape(case.pure(), *args, **kwargs)
    for shape, leaf in zip(
        jax.tree.leaves(eqx.filter(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))),
        jax.tree.leaves(eqx.filter(case.twin(*args, **kwargs), eqx.is_array)),
        strict=True,
    ):
        assert shape.shape == leaf.shape
        assert shape.dtype == leaf.dtype
