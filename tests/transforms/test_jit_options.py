"""`jit`: arguments named by position and by name, that are static or give up buffers; XLA's options."""

import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import pstate as ps
from programs.steps import deleted, nothing_left_over


clean_thread = pytest.fixture(autouse=True)(nothing_left_over)


def counter():
    return ps.State(jnp.zeros(2))


def scaled(counter, config, x):
    counter.value += x * config[0]
    return counter.value


@pytest.fixture
def counted():
    """A function of its own, with no programs yet, and the configurations with which its body ran."""
    runs = []

    def counted(counter, config, x):
        runs.append(config)
        return scaled(counter, config, x)

    return counted, runs


@pytest.fixture
def as_users_run_it():
    """Without the type checker of the test run, which would raise before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Static arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"static_argnums": 1}, {"static_argnums": -2}, {"static_argnames": "config"}], ids=str
)
def test_a_static_argument_is_whole(options, counted):
    """A tuple with numbers of Python and NumPy reaches the function as it is, and is traced once."""
    fn, runs = counted
    step = ps.pure(ps.jit(fn, **options))
    config = (2, np.float32(0.5))
    state = counter()
    for _ in range(2):
        _, state = step(state, config, jnp.ones(2))
    np.testing.assert_array_equal(state.value, [4.0, 4.0])
    step(state, (2.0, np.float32(0.5)), jnp.ones(2))
    assert runs == [config, config]
    assert [list(map(type, run)) for run in runs] == [[int, np.float32], [float, np.float32]]


@pytest.mark.parametrize("options", [{"static_argnums": 1}, {"static_argnames": ["config"]}], ids=str)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_positions_and_names_are_one(options, by_keyword):
    """An argument is static by position or name, passed by either; alone and in another transform."""
    x, config = jnp.ones(2), (3,)
    for make in (ps.jit, lambda f, **o: ps.jit(ps.checkpoint(ps.jit(f, **o)), **o)):
        step = ps.pure(make(scaled, **options))
        out, _ = step(counter(), config=config, x=x) if by_keyword else step(counter(), config, x)
        np.testing.assert_array_equal(out, [3.0, 3.0])


def test_mappings_take_names_alike(counted):
    """In a mapping, too, a name finds an argument that was passed by position."""
    fn, runs = counted
    mapped = ps.StatefulMapping(fn, in_axes=(0, None, 0), static_argnames="config")
    config = (np.int32(3),)
    for _ in range(2):
        ys, _ = ps.pure(mapped)(counter(), config, jnp.ones(2))
    np.testing.assert_array_equal(ys, [3.0, 3.0])
    assert [type(run[0]) for run in runs] == [np.int32]


def test_a_method_and_a_carrier():
    """On a method, `self` is not counted; a static argument that is given back comes as it is."""

    class Model(eqx.Module):
        n: ps.State

        @ps.jit(static_argnames="how", donate_argnames="x")
        def __call__(self, x, how):
            self.n.value += 1
            return x if how == "as it is" else 2 * x

    model = Model(ps.State(0))
    x = jnp.ones(3)
    y, model = ps.pure(model.__call__)(x, "twice")
    assert (y.tolist(), model.n.value.item(), x.is_deleted()) == ([2.0] * 3, 1, True)
    out, how = ps.pure(ps.jit(lambda how: how + "!", static_argnums=0))("go")
    assert (out, how) == ("go!", "go")


def test_what_cannot_be_static():
    """An array is refused where it has to be hashable, and can be passed afterwards."""
    step = ps.jit(scaled, static_argnames="config")
    with pytest.raises(TypeError, match=r"`args\[1\]` is static and therefore part of the program"):
        ps.pure(step)(counter(), jnp.ones(1), jnp.ones(2))
    with pytest.raises(TypeError, match="`config` is static"):
        ps.pure(step)(counter(), config=[jnp.ones(1)], x=jnp.ones(2))
    out, _ = ps.pure(ps.jit(scaled))(counter(), jnp.ones(1), jnp.ones(2))
    np.testing.assert_array_equal(out, [1.0, 1.0])


# Names ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("static_argnames", lambda f, **o: ps.jit(f, **o)),
        ("donate_argnames", lambda f, **o: ps.jit(f, **o)),
        ("static_argnames", lambda f, **o: ps.StatefulMapping(f, **o)),
    ],
)
def test_unknown_names(option, make):
    """A name that is no parameter is refused when the transform is made; `**kwargs` takes any."""
    with pytest.raises(ValueError, match=rf"{option} names \['confg'\], and the parameters") as caught:
        make(scaled, **{option: "confg"})
    advised = re.findall(rf"{option}='(\w+)'", str(caught.value))
    assert advised
    assert make(scaled, **{option: advised[0]})
    assert make(lambda x, **more: x, **{option: "anything"})
    with pytest.raises(
        TypeError, match=rf"{option} names arguments, by a string or several; got \(1,\)"
    ):
        make(scaled, **{option: (1,)})
    with pytest.raises(TypeError, match=rf"{option} names arguments.*got 1. Write {option}='x'"):
        make(scaled, **{option: 1})


# Donation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_keyword", [False, True])
def test_donation_by_name(by_keyword):
    """Exactly the named argument gives up its buffers, passed by position or by keyword."""

    def step(counter, old, x):
        counter.value += x
        return old + x

    state, old, x = counter(), jnp.ones(2), jnp.ones(2)
    fn = ps.pure(ps.jit(step, donate_argnames=("old",)))
    out, new = fn(state, old=old, x=x) if by_keyword else fn(state, old, x)
    assert (old.is_deleted(), x.is_deleted(), deleted(state)) == (True, False, [False])
    np.testing.assert_array_equal(out, [2.0, 2.0])
    np.testing.assert_array_equal(new.value, [1.0, 1.0])


def test_a_named_argument_that_pure_gives_back():
    """Only what is overwritten is given up; a parameter that was not passed is none."""

    def step(tree, scale=None):
        tree["a"].value += 1
        return tree["b"].value * (1 if scale is None else scale)

    tree = {"a": counter(), "b": counter()}
    _, new = ps.pure(ps.jit(step, donate_argnames=("tree", "scale")))(tree)
    assert (deleted(tree["a"]), deleted(tree["b"])) == ([True], [False])
    np.testing.assert_array_equal(new["a"].value, [1.0, 1.0])


# XLA's options --------------------------------------------------------------------------------------


def test_compiler_options(counted):
    """They reach XLA, which refuses one that it does not know; programs are told apart by them."""
    options = {"xla_embed_ir_in_executable": True}
    fn, runs = counted
    step = ps.jit(fn, static_argnums=1, compiler_options=options)
    out, _ = ps.pure(step)(counter(), (1,), jnp.ones(2))
    ps.pure(ps.jit(fn, static_argnums=1))(counter(), (1,), jnp.ones(2))
    np.testing.assert_array_equal(out, [1.0, 1.0])
    assert len(runs) == 2
    unknown = ps.jit(fn, static_argnums=1, compiler_options={"no_such_option": 1})
    state = counter()
    with pytest.raises(RuntimeError, match="No such compile option: 'no_such_option'"):
        ps.pure(unknown)(state, (1,), jnp.ones(2))
    ps.pure(step)(state, (1,), jnp.ones(2))


def test_compiler_options_of_packed_trees_and_donating_calls():
    """They hold on the short way of a packed tree, and where buffers are given up."""

    def step(tree, x):
        tree["n"].value += x

    unknown = {"no_such_option": 1}
    tree = {"n": counter()}
    ps.pure(ps.jit(step))(ps.pack(tree), jnp.ones(2))
    for options in ({}, {"donate": ...}):
        fn = ps.pure(ps.jit(step, compiler_options=unknown, **options))
        for argument in (ps.pack(tree), tree):
            with pytest.raises(RuntimeError, match="No such compile option"):
                fn(argument, jnp.ones(2))
    assert not tree["n"].value.is_deleted()


def test_options_in_what_it_is_called():
    """The options show in the repr, and travel in a pickle."""
    options = {"donate_argnames": "x", "static_argnums": 1, "compiler_options": {"xla_flag": 2}}
    made = ps.jit(scaled, **options)
    for shown in ("donate_argnames=('x',)", "static_argnums=(1,)", "compiler_options={'xla_flag': 2}"):
        assert shown in repr(made)
    assert repr(pickle.loads(pickle.dumps(made))) == repr(made)
    assert jax.tree.structure(made) == jax.tree.structure(ps.jit(scaled, **options))
