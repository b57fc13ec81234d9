"""`checkpoint`: what is recomputed, and what is not done twice."""

import jax
import jax.numpy as jnp
import numpy as np

import pstate as ps
from transforms.losses import tree, x


def test_checkpoint_keeps_static_leaves_and_options():
    """Static arguments decide what is traced; options are those of JAX; outputs are static too."""

    def body(tree, x, mode, *, twice=False):
        tree["n"].value += 1
        return {"mode": mode, "y": jnp.sin(tree["w"].value * x) * (2 if twice else 1)}

    policy = jax.checkpoint_policies.everything_saveable
    step = ps.checkpoint(body, prevent_cse=False, policy=policy)
    out, new = ps.pure(step)(tree(), x, "fast", twice=True)
    assert out["mode"] == "fast"
    np.testing.assert_allclose(out["y"], 2 * jnp.sin(tree()["w"].value * x), rtol=1e-6)
    assert new["n"].value == 1


def test_checkpoint_recomputes():
    """What the backward pass keeps of a checkpointed function is its inputs."""
    layer = lambda tree, x: jnp.sum(jnp.sin(jnp.sin(tree["w"].value * x)))
    jaxpr = lambda f: str(jax.make_jaxpr(lambda tree: ps.grad(f)(tree, x)["w"].value)(tree()))
    plain, recomputed = jaxpr(layer), jaxpr(ps.checkpoint(layer))
    assert "remat" not in plain
    assert "remat" in recomputed or "checkpoint" in recomputed


def test_checkpoint_draws_once():
    """The recomputation draws the same numbers, and the state advances once."""

    def noisy(tree, x):
        return jnp.sum(tree["w"].value * x * tree["rng"].normal(size=2))

    model = {"rng": ps.RandomState(0), "w": ps.ParamState(x)}
    plain, after = ps.pure(ps.grad(noisy))(model, x)
    recomputed, after_too = ps.pure(ps.grad(ps.checkpoint(noisy)))(model, x)
    np.testing.assert_allclose(plain["w"].value, recomputed["w"].value, rtol=1e-6)
    assert after["rng"].value == after_too["rng"].value
