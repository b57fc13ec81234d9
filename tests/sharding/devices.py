"""Meshes for the tests of this folder, and a count of what is compiled."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jax.sharding import AxisType


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def mesh(
    kind: AxisType = AUTO, shape: tuple[int, ...] = (4,), names: tuple[str, ...] = ("data",)
) -> Any:
    """A mesh over the four devices of the tests."""
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def in_context(mesh: Any) -> Any:
    """What puts a mesh into the context, on each version of JAX."""
    return jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh)  # pyright: ignore


def numbers(x: Any) -> np.ndarray:
    """An array, or the data of typed keys, as NumPy has it."""
    typed = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jr.key_data(x) if typed else x)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure and the same arrays, bit for bit."""
    (xs, one), (ys, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return one == other and all(
        numbers(x).dtype == numbers(y).dtype and numbers(x).tobytes() == numbers(y).tobytes()
        for x, y in zip(xs, ys, strict=True)
    )


def specs_of(tree: Any) -> list[tuple[Any, ...]]:
    """The specs of the arrays of a tree, without the `None`s at their ends."""
    return [spec_of(x) for x in jax.tree.leaves(tree)]


def spec_of(x: Any) -> tuple[Any, ...]:
    spec = list(x.sharding.spec)
    while spec and spec[-1] is None:
        spec.pop()
    return tuple(spec)


@contextlib.contextmanager
def compiled(name: str) -> Iterator[list[str]]:
    """What JAX says that it compiles of functions of this name, while this lasts."""
    found: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("Compiling") and f"{name}" in message.split(" with ")[0]:
                found.append(message)

    logger, handler = logging.getLogger("jax"), Listening()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
