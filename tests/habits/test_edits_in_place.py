"""Lists and dicts of a tree, edited in place by a function: refused everywhere alike, never dropped."""

import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


class Net(eqx.Module):
    n: ps.State
    log: list
    table: dict


def tree():
    return {"n": ps.State(jnp.zeros(())), "log": [jnp.ones(2)], "opt": {"mu": jnp.zeros(2)}}


def net():
    return Net(ps.State(jnp.zeros(())), [jnp.ones(2)], {"k": ps.State(jnp.zeros(()))})


def replace_state(m):
    m["n"] = m["n"].replace(7.0)


def append(m):
    m["log"].append(jnp.zeros(2))


def delete(m):
    del m["opt"]["mu"]


def assign(m):
    m["opt"] = {"mu": m["opt"]["mu"] + 1}


def pop(m):
    m["log"].pop()


def update_dict(m):
    m["opt"].update(mu=jnp.ones(2))


def swap(m):
    m["log"][0] = m["log"][0] * 2


EDITS = {f.__name__: f for f in (replace_state, append, delete, assign, pop, update_dict, swap)}
PLACES = {
    "replace_state": "dict `m`",
    "append": "list `m['log']`",
    "delete": "dict `m['opt']`",
    "assign": "dict `m`",
    "pop": "list `m['log']`",
    "update_dict": "dict `m['opt']`",
    "swap": "list `m['log']`",
}


def returning(f):
    """The same edit in a function that gives a scalar, as derivatives want it."""

    @ft.wraps(f)
    def g(m):
        f(m)
        return jnp.zeros(())

    return g


LIFTED = {
    "pure": lambda f: ps.pure(f),
    "plain jit": lambda f: ps.jit(f),
    "donate": lambda f: ps.pure(ps.jit(f, donate=...)),
    "lane": lambda f: ps.pure(ps.vmap2(f, in_axes=None, axis_size=2).lane(0)),
    "grad": lambda f: ps.pure(ps.grad(f)),
    "while_loop": lambda f: (
        lambda m: ps.while_loop(lambda c: c < 1, ft.partial(lambda m, c: c + 1 + f(m).astype(int), m), 0)
    ),
    "bound cond": lambda f: lambda m: ps.cond(True, ft.partial(f, m), ft.partial(f, m)),
    "jax.jit": lambda f: jax.jit(ps.pure(f)),
    "disable_jit": lambda f: lambda m: without_jit(f, m),
}


def without_jit(f, m):
    with jax.disable_jit():
        return ps.pure(ps.jit(f))(m)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("lift", LIFTED.values(), ids=LIFTED)
def test_an_edit_is_refused(lift, edit):
    """Each edit raises with the place of the container, and the tree that was passed is as it was."""
    m = tree()
    before = jax.tree.structure(m), jax.tree.leaves(m)
    message = f"The {PLACES[edit.__name__]} was edited in place in "
    with pytest.raises(ps.FrozenStateError, match=re.escape(message)):
        lift(returning(edit))(m)
    assert jax.tree.structure(m) == before[0]
    assert all(a is b for a, b in zip(jax.tree.leaves(m), before[1], strict=True))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_the_advice(edit):
    """The message's recording keeps the edit, and the original is untouched."""
    m = tree()
    with pytest.raises(ps.FrozenStateError) as caught:
        ps.pure(edit)(m)
    lines = str(caught.value).partition("\n")[2]
    names = {"ps": ps, "m": m}
    code = "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    exec(code.replace("...", "edit(live)"), names | {"edit": edit}, found := {})
    live = tree()
    edit(live)
    assert jax.tree.structure(found["m"]) == jax.tree.structure(live)
    assert "mu" in m["opt"]
    assert len(m["log"]) == 1


def test_in_modules():
    """Containers inside a module, bound or passed, are watched too."""

    def append_layer(net):
        net.log.append(jnp.zeros(2))

    def rebind(net):
        net.table["k"] = ps.State(jnp.ones(()))

    with pytest.raises(ps.FrozenStateError, match=re.escape("list `net.log` was edited in place")):
        ps.pure(ps.jit(append_layer))(net())
    with pytest.raises(ps.FrozenStateError, match=re.escape("dict `net.table` was edited in place")):
        ps.pure(rebind)(net())

    class Bound(Net):
        def __call__(self):
            self.table["new"] = jnp.ones(())

    bound = Bound(ps.State(0.0), [], {})
    for call in (ps.pure(bound), ps.pure(ps.jit(bound)), ps.jit(bound)):
        with pytest.raises(ps.FrozenStateError, match=re.escape("`bound.table` was edited")):
            call()


def test_a_state_keeps_what_changes():
    """The advised state: an optimiser's state in it is written and comes back."""

    def step(m):
        m["opt"].value = {"mu": m["opt"].value["mu"] + 1}

    m = {**tree(), "opt": ps.State({"mu": jnp.zeros(2)})}
    for call in (ps.pure(step), ps.pure(ps.jit(step))):
        assert call(m)[1]["opt"].value["mu"].tolist() == [1.0, 1.0]


def test_given_back_without_states():
    """A tree without states that `pure` gives back loses no edit either."""

    def train(params):
        params["w"] = params["w"] - 1

    for call in (ps.pure(train), ps.pure(ps.jit(train)), ps.pure(ps.checkpoint(train))):
        with pytest.raises(ps.FrozenStateError, match="dict `params` was edited in place"):
            call({"w": jnp.ones(2)})


def test_scratch_is_allowed():
    """An argument without states that nobody gives back is the function's own, as in JAX."""

    def step(state, batch):
        batch["x"] = batch["x"] / 2
        batch["rows"].append(1)
        state.value += batch["x"].sum()

    batch = {"x": jnp.ones(2), "rows": []}
    for call in (ps.pure(step), ps.pure(ps.jit(step)), ps.pure(ps.checkpoint(step))):
        _, state = call(ps.State(0.0), batch)
        assert state.value == 1.0
        assert batch["rows"] == []
        assert batch["x"].tolist() == [1.0, 1.0]


def test_a_carry_may_be_edited():
    """A carry is data that the body returns: editing it in place and returning it is fine."""

    def step(carry, x):
        carry["sum"] = carry["sum"] + x
        carry["state"] = carry["state"].replace(carry["state"].value + 1)
        return carry, None

    carry = {"sum": jnp.zeros(()), "state": ps.State(0)}
    new, _ = ps.scan(step, carry, jnp.arange(3.0))
    assert new["sum"] == 3.0
    assert new["state"].value == 3


def test_local_containers_are_free():
    """Containers that the function makes, and the lists of `*args`, are its own."""

    def f(state, *xs, **options):
        log = [*xs]
        log.append(state.value)
        options["more"] = 1
        state.value += len(log)
        return log

    out, state = ps.pure(ps.jit(f))(ps.State(1), jnp.ones(()), scale=jnp.ones(()))
    assert len(out) == 2
    assert state.value == 3
