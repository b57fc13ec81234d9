"""Transforms around each other, taken apart and put together."""

import copy
import dataclasses
import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import pstate as ps


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy that keeps nothing. Two are equal if their tags are."""

    tag: float

    def __call__(self, *_, **__):
        return False


def add(counter, x):
    """Write a state."""
    counter["n"].value += x
    return x


def put_together(tree):
    """A tree taken apart, and put together again."""
    leaves, treedef = jtu.tree_flatten(tree)
    return treedef.unflatten(leaves)


def chain(function):
    """Three transforms with options."""
    inner = ps.checkpoint(function, prevent_cse=False)
    return ps.jit(ps.vmap2(inner, in_axes=(None, 0)), donate=ps.ShortTermState)


def structure(tree):
    return jtu.tree_structure(tree)


def test_one_leaf():
    """The function is the only leaf, however many transforms are around it."""
    assert jtu.tree_leaves(chain(add)) == [add]


def test_the_same_transform_comes_back():
    """A transform is not made again from its own parts, nor is one inside another."""
    outer = chain(add)
    assert put_together(outer) is outer
    assert put_together(ps.jit(outer)).fun is outer


def test_another_function():
    """Put together around another function it is another chain, with the same options."""

    def other(counter, x):
        counter["n"].value -= 1
        return x

    made = jtu.tree_map(lambda _: other, chain(add))
    assert jtu.tree_leaves(made) == [other]
    assert structure(made) == structure(chain(add))
    assert repr(made) == repr(chain(other))
    _, counter = ps.pure(made)({"n": ps.ShortTermState(jnp.zeros(()))}, jnp.ones(3))
    assert counter["n"].value == -1


@pytest.mark.parametrize(
    "other",
    [
        lambda f: ps.jit(ps.jit(f, donate=ps.State)),
        lambda f: ps.jit(ps.jit(f), donate=ps.State),
        lambda f: ps.jit(f),
        lambda f: ps.jit(ps.jit(ps.jit(f))),
        lambda f: ps.jit(ps.checkpoint(f)),
        lambda f: ps.checkpoint(ps.jit(f)),
    ],
)
def test_other_chains_differ(other):
    """Chains are equal if kinds, options and order are."""
    assert structure(ps.jit(ps.jit(add))) == structure(ps.jit(ps.jit(add)))
    assert structure(other(add)) != structure(ps.jit(ps.jit(add)))
    assert structure(other(add)) == structure(other(add))


def test_options_are_distinguished_exactly():
    """Options that only compare as equal make other chains, and other programs."""
    runs = []

    def body(counter, x):
        runs.append(1)
        return add(counter, x)

    with_tag = lambda tag: ps.jit(ps.checkpoint(body, policy=Policy(tag)))
    assert structure(with_tag(2)) != structure(with_tag(2.0))
    for tag in (2, 2.0, 2, 2.0):
        ps.pure(with_tag(tag))({"n": ps.State(0.0)}, jnp.ones(()))
    assert len(runs) == 2


def test_a_chain_made_again_is_not_compiled_again():
    """Chains that are equal share their programs."""
    runs = []

    def body(counter, x):
        runs.append(1)
        return add(counter, x)

    counter = {"n": ps.State(0.0)}
    for _ in range(3):
        _, counter = ps.pure(ps.jit(ps.jit(ps.checkpoint(body))))(counter, jnp.ones(()))
    assert counter["n"].value == 3
    assert len(runs) == 1


def test_nothing_is_kept():
    """What a chain remembers keeps neither its function nor its transforms alive."""

    def body(counter, x):
        return add(counter, x)

    made = ps.jit(ps.checkpoint(body))
    treedef = structure(made)
    ps.pure(ps.jit(made))({"n": ps.State(0.0)}, jnp.ones(()))
    gone = [weakref.ref(body), weakref.ref(made), weakref.ref(made.fun)]
    del body, made
    gc.collect()
    assert [one() for one in gone] == [None] * 3
    assert repr(treedef.unflatten([add])) == "ps.jit(ps.checkpoint(add))"


LEAVES = {
    "number": 0,
    "tuple": (0, 1),
    "object": object(),
    "array": jnp.zeros(2),
    "built-in": abs,
    "compiled": jnp.tanh,
}


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_any_leaf(leaf):
    """With anything else in the place of the function, the structure is the same, as JAX requires."""
    made = chain(add)
    other = structure(made).unflatten([leaf])
    assert jtu.tree_structure(other, is_leaf=lambda x: x is leaf) == structure(made)
    assert jtu.tree_map(lambda f, _: f, made, other, is_leaf=lambda x: x is leaf) is made


@pytest.mark.parametrize("transform", [ps.pure, ps.checkpoint, lambda f: ps.jit(ps.checkpoint(f))])
def test_another_transform_inside(transform):
    """A transform put into the place of another one, or of the function."""
    made, inner = ps.jit(ps.jit(add)), transform(add)
    longer = eqx.tree_at(lambda made: made.fun.fun, made, inner)
    shorter = eqx.tree_at(lambda made: made.fun, made, inner, is_leaf=lambda x: x is made.fun)
    assert structure(shorter) == structure(ps.jit(transform(add)))
    expected = ps.jit(ps.jit(transform(add)))
    assert repr(longer) == repr(expected)
    assert structure(longer) == structure(expected)
    assert repr(put_together(made)) == repr(ps.jit(ps.jit(add)))


def test_transforms_of_equinox():
    """Equinox makes trees of axes and of flags of a callable."""
    counters = {"n": ps.State(jnp.arange(3.0))}
    pure = ps.pure(ps.jit(ps.checkpoint(add)))
    _, new = eqx.filter_jit(eqx.filter_vmap(pure))(counters, jnp.ones(3))
    assert new["n"].value.tolist() == [1, 2, 3]
    arrays, rest = eqx.partition(pure, eqx.is_array)
    assert eqx.combine(arrays, rest) is pure


def test_copies():
    """A copy of a transform is the transform, and a copied tree has it still."""
    made = chain(add)
    assert copy.deepcopy(made) is not None
    assert repr(copy.copy(made)) == repr(made)
    assert jax.tree.map(lambda x: x, {"f": made})["f"] is made


def test_a_callable_that_carries_states():
    """It is taken apart down to its arrays, and a transform of other arrays is another transform."""
    made = ps.jit(ps.checkpoint(jtu.Partial(add, {"n": ps.State(2.0)})))
    paths = [jtu.keystr(path) for path, _ in jtu.tree_leaves_with_path(made)]
    assert paths == [".fun.fun.func", ".fun.fun.args[0]['n'].value"]
    other = jtu.tree_map(lambda x: 2 * x if eqx.is_array(x) else x, made)
    assert other is not made
    assert [made.fun.fun.args[0]["n"].value, other.fun.fun.args[0]["n"].value] == [2, 4]
