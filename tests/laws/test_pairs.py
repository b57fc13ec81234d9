"""Every transform inside every other: `outer(inner(f))` against its twin, threaded by hand."""

import itertools as it
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps
from laws import transforms
from laws.cases import ticks
from laws.programs import program
from laws.test_laws import assert_same
from laws.transforms import USES, Using, by_hand, stateful
from pstate._ground.versions import NESTED_PMAP


PAIRS = list(it.product(USES, USES))
#: The pairs that run on every version of JAX: each transform in itself, and, as the outer one and as the
#: inner one, with two others. The numbers are distances in the list of transforms.
EVERYWHERE = {0, 1, 5}


def is_everywhere(outer: Using, inner: Using) -> bool:
    return (USES.index(inner) - USES.index(outer)) % len(USES) in EVERYWHERE


each_pair = pytest.mark.parametrize(
    ("outer", "inner"),
    [pytest.param(*pair, marks=[pytest.mark.once] * (not is_everywhere(*pair))) for pair in PAIRS],
    ids=[f"{outer.name}-{inner.name}" for outer, inner in PAIRS],
)
X = jnp.float32(0.75)


@contextmanager
def quiet() -> Iterator[None]:
    """JAX warns of a `pmap` inside a `jit`, which is what is asked for here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The jitted function .* includes a pmap")
        yield


def pure(*uses: Using) -> Any:
    return ps.pure(stateful(*uses))


def refused(outer: Using, inner: Using) -> tuple[type[Exception], str] | None:
    """What JAX itself cannot do: the error, ours where JAX's does not say it."""
    if outer.name == "grad" and not inner.reverse:
        return ValueError, "Reverse-mode differentiation does not work"
    if outer.name == "jacfwd" and not inner.forward:
        return TypeError, r"can't apply forward-mode .* to a custom_vjp"
    if outer.name == inner.name == "pmap2" and not NESTED_PMAP:
        return NotImplementedError, "cannot run one jax.pmap inside another"
    if {outer.name, inner.name} == {"pmap2", "shard_map2"}:
        return NotImplementedError, "cannot run jax"
    return None


def arrays(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_array)


@contextmanager
def watched(outer: Using, inner: Using) -> Iterator[None]:
    """L7: nothing leaks a tracer, and no key is used twice."""
    # A vmapped `cond` runs both branches, so that JAX itself takes its keys to be used twice.
    keys = not {outer.name, inner.name} >= {"cond"} or not {outer.name, inner.name} & LANES
    # A loop around a function with rules it does not see through, of the twin neither.
    keys = keys and not (outer.name in LOOPS and inner.name in ("custom_vjp", "custom_jvp"))
    with jax.checking_leaks(), jax.debug_key_reuse(keys), quiet():
        yield


LOOPS = {"scan", "while_loop"}
LANES = {"vmap2", "pmap2", "chunked"}


@each_pair
def test_pair(outer: Using, inner: Using):
    """L2 and L7: outputs and states equal the twin's, eagerly and compiled; nothing leaks.

    What nobody touched comes back as it is, and inputs stay as they were.
    """
    error = refused(outer, inner)
    if error is not None:
        with pytest.raises(error[0], match=error[1]):
            pure(outer, inner)(transforms.model(), X)
        return
    expected = arrays(by_hand(outer, inner)(transforms.model(), X))
    model = transforms.model()
    with quiet():
        y, updated = pure(outer, inner)(model, X)
    assert_same(arrays((y, updated)), expected, exact=False)
    assert updated.untouched is model.untouched
    assert updated.weight.value is model.weight.value
    assert_same(model, transforms.model())
    if outer.name in ("jit", "checkpoint") and inner.name == "pmap2" and NESTED_PMAP:
        return  # the oldest JAX cannot lower jax.jit(jax.jit(jax.pmap(f))) either
    with watched(outer, inner):
        compiled = eqx.filter_jit(pure(outer, inner))(model, X)
    assert_same(arrays(compiled), expected, exact=False)


@pytest.mark.once
@each_pair
def test_pair_is_the_same_program(outer: Using, inner: Using):
    """L2 and L6: the program has the twin's operations, and the body runs as often as the twin's."""
    if refused(outer, inner):
        return
    model = transforms.model()
    # JAX makes a choice that differs between lanes a selection of every operand, used or not, and a
    # branch is passed every state: one that none of them writes leaves a selection that nothing uses.
    unused = (outer.name, inner.name) != ("vmap2", "cond")

    def traced(f: Any) -> tuple[Any, int]:
        before = ticks()
        with quiet():
            return program(f, model, X, unused=unused), ticks() - before

    (got, runs), (expected, expected_runs) = traced(pure(outer, inner)), traced(by_hand(outer, inner))
    assert runs <= expected_runs
    if outer.by_jax and inner.by_jax:
        assert got == expected
