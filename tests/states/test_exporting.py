"""Exported programs: `jax.export` of functions over trees with states."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import jax.random as jr
import pytest

import pstate as ps


class Membrane(ps.HiddenState):
    pass


def step(model: Any, x: Any) -> Any:
    model["n"].value += x
    model["v"].value = {"v": model["v"].value["v"] + model["rng"].normal(size=(2,))}
    return model["n"].value * model["w"].value


def model() -> dict[str, Any]:
    return {
        "n": ps.State(jnp.asarray(1.0), tag=("a", "b")),
        "v": Membrane({"v": jnp.zeros(2)}),
        "w": ps.ParamState(jnp.asarray(3.0)),
        "rng": ps.RandomState(0),
    }


@pytest.mark.parametrize("pure", [ps.pure(step), ps.pure(ps.jit(step))])
def test_a_serialized_program_gives_what_the_function_gives(pure: Any) -> None:
    exported = jax.export.export(jax.jit(pure))(model(), jnp.asarray(2.0))
    loaded = jax.export.deserialize(exported.serialize())
    out, after = loaded.call(model(), jnp.asarray(2.0))
    expected_out, expected = ps.pure(step)(model(), jnp.asarray(2.0))
    assert out == expected_out
    assert jax.tree.structure(after) == jax.tree.structure(expected)
    assert [type(s) for s in ps.states(after).values()] == [
        type(s) for s in ps.states(expected).values()
    ]
    assert after["n"].tag == ("a", "b")
    assert jnp.array_equal(after["v"].value["v"], expected["v"].value["v"])
    assert jnp.array_equal(jr.key_data(after["rng"].value), jr.key_data(expected["rng"].value))


def test_a_mapping() -> None:
    f = ps.pure(ps.vmap2(lambda m, x: m["n"].value + x, in_axes=(None, 0)))
    exported = jax.export.export(jax.jit(f))(model(), jnp.arange(3.0))
    out, _ = jax.export.deserialize(exported.serialize()).call(model(), jnp.arange(3.0))
    assert out.tolist() == [1.0, 2.0, 3.0]


def test_a_kind_that_is_defined_anew() -> None:
    found = []
    for number in range(2):
        kind = type("Again", (ps.State,), {"__module__": "nowhere", "__slots__": ()})
        tree = {"s": kind(jnp.asarray(float(number)))}
        exported = jax.export.export(jax.jit(lambda tree: tree))(tree)
        found.append((kind, jax.export.deserialize(exported.serialize()).call(tree)["s"]))
    assert [type(state) for _, state in found] == [kind for kind, _ in found]


def test_another_process(tmp_path: Path) -> None:
    tree = {"n": ps.ShortTermState(jnp.asarray(1.0), tag="t"), "w": ps.ParamState(jnp.ones(2))}

    def advance(tree: Any, x: Any) -> None:
        tree["n"].value += x

    exported = jax.export.export(jax.jit(ps.pure(advance)))(tree, jnp.asarray(2.0))
    (tmp_path / "program").write_bytes(exported.serialize())
    code = f"""
        import pathlib
        import jax, jax.export, jax.numpy as jnp
        import pstate as ps
        program = jax.export.deserialize(pathlib.Path({str(tmp_path / "program")!r}).read_bytes())
        tree = {{"n": ps.ShortTermState(jnp.asarray(1.0), tag="t"), "w": ps.ParamState(jnp.ones(2))}}
        _, tree = program.call(tree, jnp.asarray(2.0))
        print(tree["n"])
        print(tree["n"].value)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert run.stdout.split("\n")[:2] == ["ShortTermState(f32[], tag='t')", "3.0"], run.stderr
