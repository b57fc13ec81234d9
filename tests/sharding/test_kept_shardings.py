"""Written states keep the sharding that they came with, so that a loop compiles once."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import pstate as ps
from sharding.devices import AUTO, EXPLICIT, compiled, in_context, mesh, same_bits, spec_of, specs_of


def model() -> dict[str, ps.State]:
    return {
        "count": ps.State(0),
        "m": ps.HiddenState(jnp.zeros((8, 4))),
        "rng": ps.RandomState(0),
        "w": ps.ParamState(jr.normal(jr.key(1), (8, 4))),
    }


def make_step() -> Any:
    """A step whose results the compiler would put elsewhere; and how often its body ran."""
    runs: list[int] = []

    def sgd_step(model, x):
        runs.append(1)
        w = model["w"].value
        model["w"].value = w - 0.1 * jnp.mean(x) * w
        model["m"].value = 2 * x
        model["rng"].key()
        model["count"].value += 1
        return jnp.sum(x)

    return sgd_step, runs


SHARDED = {P("data"): (ps.ParamState, ps.HiddenState)}
WHOLE = {P(): (ps.ParamState, ps.HiddenState)}
OPTIONS = [{}, {"donate": ...}, {"donate_argnums": 0}]


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("rules", [SHARDED, WHOLE], ids=["sharded", "whole"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
def test_a_loop_compiles_once(kind: Any, rules: Any, options: Any, packed: bool):
    """Five steps compile one program, trace the body once, and leave each state where it was."""
    devices = mesh(kind)
    step, runs = make_step()
    f = ps.pure(ps.jit(step, **options))
    tree: Any = ps.shard(model(), rules, devices)
    before = specs_of(tree)
    x = ps.shard(np.ones((8, 4), np.float32), P("data"), devices)
    tree = ps.pack(tree) if packed else tree
    with compiled("sgd_step") as programs:
        for _ in range(5):
            _, tree = f(tree, x)
    assert (len(programs), len(runs)) == (1, 1)
    tree = tree.unpack() if packed else tree
    assert specs_of(tree) == before
    expected = model()
    for _ in range(5):
        _, expected = ps.pure(make_step()[0])(expected, jnp.ones((8, 4)))
    assert same_bits(tree["rng"], expected["rng"])
    np.testing.assert_allclose(tree["w"].value, expected["w"].value, rtol=1e-6)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_other_shapes_of_a_packed_tree(kind: Any):
    """For arguments of other shapes the body runs once more, and then no more."""
    devices = mesh(kind)
    step, runs = make_step()
    f = ps.pure(ps.jit(step))
    tree = ps.pack(ps.shard(model(), SHARDED, devices))
    for i, n in enumerate((8, 4, 16)):
        x = ps.shard(np.ones((n, 4), np.float32), P("data"), devices)
        for _ in range(3):
            f(tree, x)
        assert len(runs) == i + 1


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_states_that_nobody_put_anywhere(kind: Any, options: Any):
    """A counter and a key on one device go to the mesh of the others at once: still one program."""
    devices = mesh(kind)
    step, runs = make_step()
    f = ps.pure(ps.jit(step, **options))
    tree = model()
    tree |= ps.shard({name: tree[name] for name in ("w", "m")}, P("data"), devices)
    x = ps.shard(np.ones((8, 4), np.float32), P("data"), devices)
    with compiled("sgd_step") as programs:
        for _ in range(5):
            _, tree = f(tree, x)
    assert len(programs) == 1
    assert len(runs) == 2  # once to see what is written, and once there, where their types are others
    assert [spec_of(s.value) for s in tree.values()] == [(), ("data",), (), ("data",)]


def test_the_raw_twin_compiles_again():
    """Left to the compiler a result goes elsewhere, and the next call is compiled again."""

    def raw_step(w, x):
        return w + x

    devices = mesh()
    w, x = (ps.shard(jnp.ones((8, 4)), spec, devices) for spec in (P(), P("data")))
    f = jax.jit(raw_step)
    with compiled("raw_step") as programs:
        for _ in range(5):
            w = f(w, x)
    assert (len(programs), spec_of(w)) == (2, ("data",))


def test_ahead():
    """A program that was compiled ahead leaves states where they were, and takes what it gave."""
    step, _ = make_step()
    devices = mesh()
    tree = ps.shard(model(), SHARDED, devices)
    before = specs_of(tree)
    x = ps.shard(np.ones((8, 4), np.float32), P("data"), devices)
    run = ps.pure(ps.jit(step, donate=...)).lower(tree, x).compile()
    for _ in range(3):
        _, tree = run(tree, x)
    assert specs_of(tree) == before
    assert tree["count"].value == 3


def test_ahead_from_shapes():
    """Lowered for shapes with shardings, it takes arrays that lie there."""
    step, _ = make_step()
    devices = mesh()
    tree = ps.shard(model(), SHARDED, devices)
    shapes = ps.shard(jax.eval_shape(lambda: model()), SHARDED, devices)
    x = ps.shard(jnp.ones((8, 4)), P("data"), devices)
    run = (
        ps.pure(ps.jit(step))
        .lower(shapes, ps.shard(jax.eval_shape(lambda: x), P("data"), devices))
        .compile()
    )
    _, new = run(tree, x)
    assert specs_of(new) == specs_of(tree)


def test_on_one_device_nothing_changes():
    """Arrays on one device compile once, and stay there."""
    step, runs = make_step()
    f, tree = ps.pure(ps.jit(step)), model()
    with compiled("sgd_step") as programs:
        for _ in range(3):
            _, tree = f(tree, jnp.ones((8, 4)))
    assert (len(programs), len(runs)) == (1, 1)
    assert all(len(s.value.devices()) == 1 for s in tree.values())


def test_a_shape_that_changes_is_left_to_the_compiler():
    """A state whose shape changes keeps no sharding, which might not fit."""

    def grows(s):
        s.value = jnp.concatenate([s.value, jnp.ones(3)])

    devices = mesh()
    state = ps.shard(ps.State(jnp.ones(4)), P("data"), devices)
    _, new = ps.pure(ps.jit(grows))(state)
    assert new.value.shape == (7,)


def test_inside_another_jit():
    """Inside a program that is being traced nothing is put anywhere: the outermost call does it."""
    step, _ = make_step()
    devices = mesh()
    tree = ps.shard(model(), SHARDED, devices)
    x = ps.shard(jnp.ones((8, 4)), P("data"), devices)
    outer = ps.pure(ps.jit(lambda tree, x: ps.jit(step)(tree, x)))
    _, new = outer(tree, x)
    assert specs_of(new) == specs_of(tree)


def test_with_a_mesh_in_the_context():
    """A mesh in the context changes nothing of it."""
    step, _ = make_step()
    devices = mesh()
    f = ps.pure(ps.jit(step))
    with in_context(devices), compiled("sgd_step") as programs:
        tree = ps.shard(model(), SHARDED)
        x = ps.shard(jnp.ones((8, 4)), P("data"))
        for _ in range(5):
            _, tree = f(tree, x)
    assert len(programs) == 1
    assert tree["w"].value.sharding.is_equivalent_to(NamedSharding(devices, P("data")), 2)
