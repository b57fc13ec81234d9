"""The machinery of the messages' table, the models of its cases, and how advice is run.

Each case is a generator. It yields the slip, is sent the message, and then runs the message's own
advice: lines are cut out of the text and executed, options are parsed out of it and used.
"""

import ast
import contextlib
import dataclasses
import functools as ft
import re
import textwrap
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import pstate as ps


XS = jnp.arange(3.0)


class Counter(eqx.Module):
    count: ps.ShortTermState

    def __call__(self, by):
        self.count.value = self.count.value + by
        return by

    def feed(self, other):
        other["s"].value = self.count.value


class Membrane(ps.HiddenState):
    pass


def counter(value=0.0):
    return Counter(ps.ShortTermState(value))


def step(t, x):
    t["s"].value = t["s"].value + x
    return x


def add(a, b):
    return a + b


def tree(value=0.0, kind=ps.State):
    return {"s": kind(value)}


# Running advice -----------------------------------------------------------------------------------


def run(code: str, **names: Any) -> types.SimpleNamespace:
    """Execute code that a message recommends; its names afterwards."""
    names = {"ps": ps, "jax": jax, "jnp": jnp, "eqx": eqx, "ft": ft, "P": P, **names}
    exec(textwrap.dedent(code), names)
    return types.SimpleNamespace(**{k: v for k, v in names.items() if k.isidentifier()})


def block(text: str) -> str:
    """The indented lines of a message."""
    return "\n".join(line for line in text.splitlines() if line.startswith("    "))


def option(text: str, name: str, which: int = 0) -> dict[str, Any]:
    """`{name: value}` from the `name=value` that a message recommends."""
    start = [m.start() for m in re.finditer(rf"(?<![\w.(]){name}=", text)][which]
    for end in range(len(text), start, -1):
        if text[end - 1] == ".":
            continue
        try:
            call: Any = ast.parse(f"f({text[start:end]})", mode="eval").body
        except SyntaxError:
            continue
        if len(call.keywords) == 1 and not call.args:
            with contextlib.suppress(NameError):
                value = ast.unparse(call.keywords[0].value)
                return {name: run(f"option = {value}", Membrane=Membrane).option}
    raise AssertionError(f"no {name}=... in: {text}")


@dataclasses.dataclass
class Case:
    error: type
    says: tuple[str, ...]
    body: Callable[[], Any]


CASES: list[Any] = []


def case(error: type, *says: str) -> Callable[[Any], Any]:
    """Put a case into the table."""

    def add(body: Any) -> Any:
        CASES.append(pytest.param(Case(error, says, body), id=body.__name__))

    return add
