"""Random states: what they hold, the rule of a draw, and each distribution."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import pstate as ps


def same_key(a, b):
    return jr.key_data(a).tolist() == jr.key_data(b).tolist() and a.dtype == b.dtype


# What they hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [3, np.int64(3), np.uint8(3), jnp.int32(3), np.array(3), jnp.uint32(3)], ids=repr
)
def test_seeds(seed):
    """An integer of any origin is a seed, and becomes a typed key."""
    assert same_key(ps.RandomState(seed).value, jr.key(3))


def test_keys():
    """Typed keys, raw keys and batches of either are kept as they are."""
    for key in (jr.key(0), jr.PRNGKey(0), jr.split(jr.key(0), 3), jr.split(jr.PRNGKey(0), 3)):
        assert ps.RandomState(key).value is key
    of_numpy = ps.RandomState(np.array([0, 7], np.uint32)).value
    assert isinstance(of_numpy, jax.Array)
    assert of_numpy.dtype == "uint32"
    other = jr.key(0, impl="rbg")
    assert ps.RandomState(other).value is other


def test_reseeding():
    """A seed or a key may be written, and `replace` takes either."""
    with ps.record(ps.RandomState(0)) as rng:
        rng.value = 5
        assert same_key(rng.value, jr.key(5))
        rng.value = jr.key(6)
    assert same_key(ps.freeze(rng).value, jr.key(6))
    assert same_key(ps.RandomState(0).replace(7).value, jr.key(7))


# The rule of a draw -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [jr.key, jr.PRNGKey, lambda seed: jr.key(seed, impl="rbg")])
def test_split_key(make):
    """One key: `split(key, 2)`; `n` keys: `split(key, n + 1)`. The state keeps the first."""
    key = make(1)
    drawn, rng = ps.pure(lambda rng: rng.split_key())(ps.RandomState(key))
    assert same_key(jnp.stack([rng.value, drawn]), jr.split(key))
    for n in (0, 1, 4):
        drawn, rng = ps.pure(lambda rng, n=n: rng.split_key(n))(ps.RandomState(key))
        assert same_key(drawn, jr.split(key, n + 1)[1:])
        assert same_key(rng.value, jr.split(key, n + 1)[0])


def test_key_feeds_any_function():
    """`key()` is `split_key()`, for what has no method here."""
    out, rng = ps.pure(lambda rng: jr.orthogonal(rng.key(), 3))(ps.RandomState(0))
    np.testing.assert_array_equal(out, jr.orthogonal(jr.split(jr.key(0))[1], 3))
    assert same_key(rng.value, jr.split(jr.key(0))[0])


def test_draws_differ_and_repeat():
    """Each draw advances, and the same state gives the same stream."""

    def three(rng):
        return [rng.normal().item() for _ in range(3)]

    first, _ = ps.pure(three)(ps.RandomState(0))
    again, _ = ps.pure(three)(ps.RandomState(0))
    assert first == again
    assert len(set(first)) == 3


# Distributions ------------------------------------------------------------------------------------

VECTOR, MATRIX = jnp.array([0.5, 1.0, 2.0]), jnp.eye(3)

# Each: a draw, the same by hand from the key, the shape without `size`, the dtype.
DRAWS = {
    "random": (lambda r, **k: r.random(**k), lambda k, s: jr.uniform(k, s), (), "float32"),
    "uniform": (
        lambda r, **k: r.uniform(1.0, VECTOR + 3, **k),
        lambda k, s: jr.uniform(k, s, minval=1.0, maxval=VECTOR + 3),
        (3,),
        "float32",
    ),
    "normal": (
        lambda r, **k: r.normal(VECTOR, 2.0, **k),
        lambda k, s: VECTOR + 2.0 * jr.normal(k, s),
        (3,),
        "float32",
    ),
    "truncated_normal": (
        lambda r, **k: r.truncated_normal(-1.0, VECTOR, 5.0, 2.0, **k),
        lambda k, s: 5.0 + 2.0 * jr.truncated_normal(k, -1.0, VECTOR, s),
        (3,),
        "float32",
    ),
    "lognormal": (
        lambda r, **k: r.lognormal(1.0, VECTOR, **k),
        lambda k, s: jnp.exp(1.0 + VECTOR * jr.normal(k, s)),
        (3,),
        "float32",
    ),
    "integers": (
        lambda r, **k: r.integers(-2, jnp.array([3, 9]), **k),
        lambda k, s: jr.randint(k, s, -2, jnp.array([3, 9])),
        (2,),
        "int32",
    ),
    "integers below": (
        lambda r, **k: r.integers(9, **k),
        lambda k, s: jr.randint(k, s, 0, 9),
        (),
        "int32",
    ),
    "bernoulli": (
        lambda r, **k: r.bernoulli(VECTOR / 4, **k),
        lambda k, s: jr.bernoulli(k, VECTOR / 4, s),
        (3,),
        "bool",
    ),
    "binomial": (
        lambda r, **k: r.binomial(10, VECTOR / 4, **k),
        lambda k, s: jr.binomial(k, 10, VECTOR / 4, s),
        (3,),
        "float32",
    ),
    "poisson": (
        lambda r, **k: r.poisson(VECTOR, **k),
        lambda k, s: jr.poisson(k, VECTOR, s),
        (3,),
        "int32",
    ),
    "exponential": (
        lambda r, **k: r.exponential(VECTOR, **k),
        lambda k, s: VECTOR * jr.exponential(k, s),
        (3,),
        "float32",
    ),
    "gamma": (
        lambda r, **k: r.gamma(VECTOR, 2.0, **k),
        lambda k, s: 2.0 * jr.gamma(k, VECTOR, s),
        (3,),
        "float32",
    ),
    "beta": (
        lambda r, **k: r.beta(VECTOR, 2.0, **k),
        lambda k, s: jr.beta(k, VECTOR, 2.0, s),
        (3,),
        "float32",
    ),
    "laplace": (
        lambda r, **k: r.laplace(1.0, VECTOR, **k),
        lambda k, s: 1.0 + VECTOR * jr.laplace(k, s),
        (3,),
        "float32",
    ),
}


# Rejection samplers take a second to compile for each shape.
SLOW = {"beta", "binomial", "gamma", "poisson"}


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "lead"), [(n, lead) for n in DRAWS for lead in [None, (2,)] if not (lead and n in SLOW)]
)
def test_distributions(name, lead):
    """Each method is a line over `jax.random`, in shape, dtype and every digit."""
    draw, by_hand, shape, dtype = DRAWS[name]
    size = None if lead is None else lead + shape
    got, rng = ps.pure(lambda rng: draw(rng, size=size))(ps.RandomState(0))
    kept, key = jr.split(jr.key(0))
    np.testing.assert_array_equal(got, by_hand(key, shape if size is None else size))
    assert (got.shape, got.dtype) == (shape if size is None else size, dtype)
    assert same_key(rng.value, kept)


def drawn(draw):
    """What a draw gives, and the key it was made with."""
    return ps.pure(draw)(ps.RandomState(0))[0], jr.split(jr.key(0))[1]


def test_an_integer_size():
    """`size=n` means `(n,)`, and nothing may be drawn."""
    assert drawn(lambda rng: rng.normal(size=4))[0].shape == (4,)
    assert drawn(lambda rng: rng.normal(size=(2, 0)))[0].shape == (2, 0)


def test_multivariate_normal():
    """Vectors of a mean and a covariance, `size` of them, batches of parameters included."""
    got, key = drawn(lambda rng: rng.multivariate_normal(VECTOR, MATRIX))
    np.testing.assert_array_equal(got, jr.multivariate_normal(key, VECTOR, MATRIX))
    got, key = drawn(lambda rng: rng.multivariate_normal([0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], 5))
    assert got.shape == (5, 2)
    means = jnp.ones((4, 3))
    assert drawn(lambda rng: rng.multivariate_normal(means, MATRIX))[0].shape == (4, 3)


def test_categorical():
    """Indices along the last axis of the logits."""
    logits = jnp.ones((4, 3))
    got, key = drawn(lambda rng: rng.categorical(logits))
    np.testing.assert_array_equal(got, jr.categorical(key, logits))
    got, key = drawn(lambda rng: rng.categorical(logits, (2, 4)))
    np.testing.assert_array_equal(got, jr.categorical(key, logits, shape=(2, 4)))


def test_choice():
    """Of an array or of a range, with probabilities, with and without replacement."""
    items = jnp.array([10.0, 20.0, 30.0])
    got, key = drawn(lambda rng: rng.choice(items, 2, False, VECTOR))
    np.testing.assert_array_equal(got, jr.choice(key, items, (2,), False, VECTOR))
    got, key = drawn(lambda rng: rng.choice(5))
    assert got == jr.choice(key, 5)
    assert drawn(lambda rng: rng.choice([1, 2, 3], (2, 2)))[0].shape == (2, 2)


def test_permutation():
    """Of an array along its first axis, or of a range."""
    rows = jnp.arange(8).reshape(4, 2)
    got, key = drawn(lambda rng: rng.permutation(rows))
    np.testing.assert_array_equal(got, jr.permutation(key, rows))
    got, key = drawn(lambda rng: rng.permutation(4))
    np.testing.assert_array_equal(got, jr.permutation(key, 4))


# In lanes -----------------------------------------------------------------------------------------


def lane_keys(n, seed=0):
    keys = jr.split(jr.key(seed), n + 1)
    return keys[0], keys[1:]


def test_lanes_draw_by_their_own_keys():
    """A mapping splits once, `split_key(n)`; each lane draws any number of times."""

    def draw(rng, x):
        return rng.normal() + x, rng.uniform(size=2)

    (a, b), rng = ps.pure(ps.vmap2(draw))(ps.RandomState(0), jnp.zeros(3))
    kept, keys = lane_keys(3)
    assert same_key(rng.value, kept)

    def by_hand(key):
        key, first = jr.split(key)
        return jr.normal(first), jr.uniform(jr.split(key)[1], (2,))

    for got, expected in zip((a, b), jax.vmap(by_hand)(keys), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_copied_random_state_draws_the_same():
    """`eqx.partition` and friends in a lane carry the lane's key along."""

    def draw(tree, x):
        copied = jax.tree.map(lambda leaf: leaf, tree)
        return copied["rng"].normal() + x

    tree = {"rng": ps.RandomState(0), "w": jnp.ones(2)}
    out, new = ps.pure(ps.vmap2(draw, in_axes=(None, 0)))(tree, jnp.zeros(3))
    kept, keys = lane_keys(3)
    np.testing.assert_array_equal(out, jax.vmap(lambda k: jr.normal(jr.split(k)[1]))(keys))
    assert same_key(new["rng"].value, kept)


def test_shared_keys_and_batches():
    """`{None: RandomState}` gives all lanes one key; a batch of keys maps by its axis."""
    shared = ps.vmap2(lambda rng, x: rng.normal() + x, state_in_axes={None: ps.RandomState})
    out, rng = ps.pure(shared)(ps.RandomState(0), jnp.zeros(3))
    assert len(set(out.tolist())) == 1
    assert same_key(rng.value, jr.split(jr.key(0))[0])
    keys = jr.split(jr.key(1), 3)
    out, rng = ps.pure(ps.vmap2(lambda rng: rng.normal()))(ps.RandomState(keys))
    np.testing.assert_array_equal(out, jax.vmap(lambda k: jr.normal(jr.split(k)[1]))(keys))
    assert rng.value.shape == (3,)


def test_lanes_that_do_not_draw():
    """Where no lane draws the state comes back as the same object."""
    rng = ps.RandomState(0)
    assert ps.pure(ps.vmap2(lambda rng, x: x))(rng, jnp.zeros(3))[1] is rng


@pytest.mark.parametrize("write", [True, False])
def test_lanes_that_do_not_draw_inside_pure(write):
    """The same where the lane runs `pure` over the tree that holds the random state."""

    def step(tree, x):
        if write:
            tree["n"].value = x
        return tree["n"].value + x

    tree = {"n": ps.State(0.0), "rng": ps.RandomState(0)}
    mapped = ps.vmap2(lambda tree, x: ps.pure(step)(tree, x)[0], in_axes=(None, 0))
    _, new = ps.pure(mapped)(tree, jnp.zeros(3))
    assert new["rng"].value is tree["rng"].value


@pytest.mark.parametrize("transform", [jax.grad, jax.jit], ids=["grad", "jit"])
def test_draws_in_a_pure_closure(transform):
    """A pure call closed over by a raw transform works in a lane as it does outside."""

    def loss(rng, w):
        return w * rng.normal()

    def body(rng, w):
        return transform(lambda w: ps.pure(loss)(rng, w)[0])(w)

    assert ps.pure(body)(ps.RandomState(0), 1.0)[0].shape == ()
    assert ps.pure(ps.vmap2(body))(ps.RandomState(0), jnp.ones(3))[0].shape == (3,)


def test_an_advanced_state_written_back_in_a_lane():
    """`update` puts what an inner `pure` advanced back into the lane, random states included."""

    def body(tree, x):
        y, new = ps.pure(lambda tree: tree["rng"].normal())(tree)
        ps.update(tree, ps.states(new))
        return x + y

    tree = {"rng": ps.RandomState(0)}
    ps.pure(body)(tree, 1.0)
    _, new = ps.pure(ps.vmap2(body, in_axes=(None, 0)))(tree, jnp.ones(3))
    assert new["rng"].value.shape == ()


def test_no_key_is_used_twice():
    """Draws in recordings, lanes and nested lanes pass JAX's check of key reuse."""

    def draw(rng, x):
        return rng.normal() + rng.uniform() + x

    with jax.debug_key_reuse(True):
        _, rng = ps.pure(draw)(ps.RandomState(0), 1.0)
        _, rng = ps.pure(ps.vmap2(ps.vmap2(draw)))(rng, jnp.ones((2, 2)))
        ps.pure(lambda rng: rng.split_key(3))(rng)
