"""Cases of options that are not a mapping's."""

import jax
import jax.numpy as jnp

import pstate as ps
from laws.models import Counter, counter
from laws.table import case, tick


def scaled(model, how, x):
    tick()
    sign, name = how
    model.count.value = model.count.value + sign * x
    return model.count.value * (2 if name == "double" else 1)


@case(
    make=lambda: ps.jit(lambda model, how, x: scaled(model, how, x), static_argnames="how"),
    args=lambda: (counter(2), (-1, "double"), jnp.float32(3)),
    mapping=False,
)
def static_arguments(model, how, x):
    def by_hand(count, x):
        count = count + how[0] * x
        return count * 2, count

    y, count = jax.jit(by_hand)(model.count.value, x)
    return y, Counter(ps.ShortTermState(count))
