"""Random programs of loops and branches, against plain Python loops, and random chains of transforms.

The first half draws nested loops, choices and mappings over two states and a stream of random numbers;
the oracle runs them step by step in NumPy. The second half puts three transforms into one another in any
order and compares with the twin, threaded by hand.
"""

import contextlib
import dataclasses
import functools as ft
import itertools as it
import random
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import pstate as ps
from laws import transforms
from laws.cases import ticks
from laws.test_laws import assert_same
from laws.test_pairs import LANES, arrays, by_hand, pure, quiet
from laws.transforms import USES


DEPTH = 3
SMALL = 64  # values are whole numbers below this, so that both sides are exact


# Programs -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Node:
    """One statement: an operation on the states, or a block run by a loop, a choice or a transform.

    `n` is a number of steps, or which branch is taken; `how` is a way of binding.
    """

    op: str
    n: int = 1
    how: str = "partial"
    blocks: tuple[tuple["Node", ...], ...] = ()


LEAVES = ("add_x", "swap", "add_b", "set", "draw", "read", "nothing")
LOOPS = ("for_loop", "scan", "reverse", "unroll", "while")
WRAPS = ("jit", "checkpoint", "vmap2")
HOW = ("partial", "keyword", "method")


def nodes(depth: int) -> Any:
    leaf = st.builds(Node, st.sampled_from(LEAVES))
    if depth == 0:
        return leaf
    block = st.lists(nodes(depth - 1), min_size=1, max_size=2).map(tuple)
    how = st.sampled_from(HOW)
    loop = st.builds(Node, st.sampled_from(LOOPS), st.integers(0, 3), how, st.tuples(block))
    choice = st.builds(
        Node, st.sampled_from(("cond", "switch")), st.integers(0, 1), how, st.tuples(block, block)
    )
    wrap = st.builds(Node, st.sampled_from(WRAPS), st.just(1), how, st.tuples(block))
    return st.one_of(leaf, loop, loop, choice, wrap)


PROGRAMS = st.lists(nodes(DEPTH), min_size=1, max_size=3).map(tuple)


class Pair(eqx.Module):
    """What the programs are about. `other` is touched by nobody."""

    a: ps.ShortTermState
    b: ps.LongTermState
    rng: ps.RandomState
    other: ps.State
    inference: bool = False

    def block(self, nodes, x):
        return run(nodes, self, x)


def pair() -> Pair:
    return Pair(
        ps.ShortTermState(jnp.float32(1)),
        ps.LongTermState({"b": jnp.float32(2)}),
        ps.RandomState(3),
        ps.State(jnp.arange(2)),
    )


# The program in pstate ------------------------------------------------------------------------------


def small(x: Any) -> Any:
    """Keep numbers whole and small."""
    return jnp.mod(jnp.round(x), SMALL)


def bound(how: str, nodes: tuple[Node, ...], model: Pair) -> Any:
    """The block as a function of `x`, bound to the model in one of the ways there are."""
    match how:
        case "method":
            return ft.partial(model.block, nodes)
        case "keyword":
            return ft.partial(lambda x, *, m, nodes: run(nodes, m, x), m=model, nodes=nodes)
        case _:
            return ft.partial(run, nodes, model)


def run(nodes: tuple[Node, ...], model: Pair, x: Any) -> Any:
    out = jnp.float32(0)
    for node in nodes:
        out = small(out + one(node, model, x))
    return out


def one(node: Node, model: Pair, x: Any) -> Any:
    a, b = model.a, model.b
    match node.op:
        case "add_x":
            a.value = small(a.value + x)
        case "add_b":
            a.value = small(a.value + b.value["b"])
        case "swap":
            a.value, b.value = b.value["b"], {"b": a.value}
        case "set":
            b.value = {"b": jnp.float32(5)}
        case "draw":
            return model.rng.integers(8).astype(jnp.float32)
        case "read":
            return a.value
        case "nothing":
            return jnp.float32(1)
        case _:
            return block(node, model, x)
    return jnp.float32(0)


def block(node: Node, model: Pair, x: Any) -> Any:
    fs = [bound(node.how, nodes, model) for nodes in node.blocks]
    f = fs[0]
    xs = x + jnp.arange(float(node.n))
    match node.op:
        case "for_loop":
            return small(jnp.sum(ps.for_loop(f, xs)))
        case "reverse":
            return small(jnp.sum(ps.for_loop(f, xs, reverse=True)))
        case "unroll":
            return small(jnp.sum(ps.for_loop(f, xs, unroll=2)))
        case "scan":
            return ps.scan(ft.partial(scanned, node.blocks[0], model), jnp.float32(0), xs)[0]
        case "while":
            body = ft.partial(looped, node.blocks[0], model, x)
            return ps.while_loop(ft.partial(below, node.n, model), body, (0, jnp.float32(0)))[1]
        case "cond":
            return ps.cond(jnp.asarray(node.n == 0), *fs, x)
        case "switch":
            return ps.switch(jnp.asarray(node.n), fs, x)
        case "vmap2":
            return small(
                ps.vmap2(lanes, in_axes=(None, None, 0), state_out_axes=FIRST)(
                    node.blocks[0], model, x + jnp.arange(2.0)
                ).sum()
            )
        case "checkpoint":
            return ps.checkpoint(f)(x)
        case _:
            return ps.jit(f)(x)


def first(values: Any) -> Any:
    return values[0]


FIRST = {first: (ps.ShortTermState, ps.LongTermState)}


def lanes(nodes: tuple[Node, ...], model: Pair, x: Any) -> Any:
    return run(nodes, model, x)


def scanned(nodes: tuple[Node, ...], model: Pair, total: Any, x: Any) -> Any:
    return small(total + run(nodes, model, x)), x


def below(n: int, model: Pair, carry: Any) -> Any:
    return (carry[0] < n) & (model.a.value < 2 * SMALL)


def looped(nodes: tuple[Node, ...], model: Pair, x: Any, carry: Any) -> Any:
    i, total = carry
    return i + 1, small(total + run(nodes, model, x + i))


# The oracle -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plain:
    """The states as plain numbers, and a key."""

    a: float
    b: float
    key: Any
    drawn: bool = False


@ft.partial(jax.jit, static_argnums=1)
def split(key: Any, n: int) -> Any:
    return jr.split(key, n)


randint = jax.jit(lambda key: jr.randint(key, (), 0, 8))


def plain(nodes: tuple[Node, ...], s: Plain, x: float) -> float:
    out = 0.0
    for node in nodes:
        out = (out + plain_one(node, s, x)) % SMALL
    return out


def plain_one(node: Node, s: Plain, x: float) -> float:
    match node.op:
        case "add_x":
            s.a = (s.a + x) % SMALL
        case "add_b":
            s.a = (s.a + s.b) % SMALL
        case "swap":
            s.a, s.b = s.b, s.a
        case "set":
            s.b = 5.0
        case "draw":
            s.key, own = split(s.key, 2)
            s.drawn = True
            return float(randint(own))
        case "read":
            return s.a
        case "nothing":
            return 1.0
        case "cond" | "switch":
            return plain(node.blocks[node.n], s, x)
        case "jit" | "checkpoint":
            return plain(node.blocks[0], s, x)
        case "vmap2":
            return plain_lanes(node.blocks[0], s, x)
        case _:
            steps = range(node.n)
            return (
                sum(
                    plain(node.blocks[0], s, x + i)
                    for i in (reversed(steps) if node.op == "reverse" else steps)
                )
                % SMALL
            )
    return 0.0


def plain_lanes(nodes: tuple[Node, ...], s: Plain, x: float) -> float:
    """Two lanes with keys of their own; the first one's values are kept."""
    keys = split(s.key, 3)
    each = [Plain(s.a, s.b, key) for key in keys[1:]]
    total = sum(plain(nodes, lane, x + i) for i, lane in enumerate(each))
    s.a, s.b = each[0].a, each[0].b
    # A loop of no steps, or a branch that is not taken, draws nothing, and yet its trace does.
    if draws(nodes):
        s.key, s.drawn = keys[0], True
    return total % SMALL


def draws(nodes: tuple[Node, ...]) -> bool:
    return any(node.op == "draw" or any(map(draws, node.blocks)) for node in nodes)


def writes(nodes: tuple[Node, ...], ops: tuple[str, ...]) -> bool:
    return any(node.op in ops or any(writes(block, ops) for block in node.blocks) for node in nodes)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(PROGRAMS, st.sampled_from(("eager", "jit", "leaks")))
def test_random_programs(program: tuple[Node, ...], how: str):
    """Outputs, states and keys equal those of plain loops; what no statement writes is untouched."""
    start = pair()
    f = ps.pure(run, argnums=1)
    if how == "eager":
        out, new = f(program, start, 2.0)
    else:
        compiled = eqx.filter_jit(lambda m, x: f(program, m, x))
        with jax.checking_leaks() if how == "leaks" else contextlib.nullcontext():
            out, new = compiled(start, 2.0)
    s = Plain(1.0, 2.0, jr.key(3))
    expected = plain(program, s, 2.0)
    assert (out, new.a.value, new.b.value["b"]) == (expected, s.a, s.b)
    assert jr.key_data(new.rng.value).tolist() == jr.key_data(s.key).tolist()
    assert (start.a.value, start.b.value["b"]) == (1, 2)
    if how == "eager":
        assert new.other is start.other
        assert draws(program) or new.rng is start.rng
        assert writes(program, ("add_x", "add_b", "swap")) or new.a is start.a
        assert writes(program, ("set", "swap")) or new.b is start.b


# Chains of transforms -------------------------------------------------------------------------------

FLOW = {"scan", "while_loop", "cond"}


def possible(chain: tuple[Any, ...]) -> bool:
    """Whether JAX can do it, and it is about loops and branches."""
    names = [use.name for use in chain]
    grads = [i for i, name in enumerate(names) if name == "grad"]
    reverse = all(use.reverse for i in grads for use in chain[i + 1 :])
    return reverse and bool(FLOW & set(names)) and "pmap2" not in names


CHAINS = [chain for chain in it.product(USES, repeat=DEPTH) if possible(chain)]
SOME = random.Random(0).sample(CHAINS, 11)


@pytest.mark.once
@pytest.mark.parametrize("chain", SOME, ids=["-".join(use.name for use in chain) for chain in SOME])
def test_chains(chain: Any):
    """Three transforms in one another give what the twin gives, leak nothing, and trace no more."""
    x = jnp.float32(0.75)
    model = transforms.model()
    before = ticks()
    expected = jax.jit(lambda: arrays(by_hand(*chain)(model, x)))()
    twin_runs = ticks() - before
    names = {use.name for use in chain}
    with jax.checking_leaks(), jax.debug_key_reuse(not ("cond" in names and names & LANES)), quiet():
        before = ticks()
        got = eqx.filter_jit(pure(*chain))(model, x)
        assert ticks() - before <= twin_runs
    assert_same(arrays(got), expected, exact=False)
    assert_same(model, transforms.model())


def test_chains_cover_loops_and_branches():
    """The sample has each of them."""
    assert {use.name for chain in SOME for use in chain} >= FLOW
    assert np.prod([len(USES)] * DEPTH) > len(CHAINS) > len(SOME)
