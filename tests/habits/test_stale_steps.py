"""A bound pure function that is called again: it starts from the module that it was built from."""

import functools as ft
import gc
import re
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pstate as ps


class Rnn(eqx.Module):
    hidden: ps.HiddenState

    def __call__(self, x):
        self.hidden.value = self.hidden.value + x
        return self.hidden.value

    def peek(self, x):
        return self.hidden.value + x


def rnn(shape=()):
    return Rnn(ps.HiddenState(jnp.zeros(shape)))


def call(model, x):
    return model(x)


LANES = {"state_in_axes": {0: ps.HiddenState}}

#: What is bound, how it is wrapped, the root's name, and the module's shape.
BOUND = {
    "module": (rnn, ps.pure, "rnn", ()),
    "method": (rnn, lambda m: ps.pure(m.__call__), "rnn", ()),
    "jit": (rnn, lambda m: ps.pure(ps.jit(m)), "rnn", ()),
    "compiled ahead": (rnn, lambda m: ps.pure(ps.jit(m)).lower(jnp.ones(())).compile(), "rnn", ()),
    "checkpoint": (rnn, lambda m: ps.pure(ps.checkpoint(m)), "rnn", ()),
    "mapping": (lambda: rnn((3,)), lambda m: ps.pure(ps.vmap2(m, **LANES)), "rnn", (3,)),
    "partial": (lambda: ft.partial(call, rnn()), ps.pure, "partial", ()),
    "jit of a partial": (lambda: ft.partial(call, rnn()), lambda p: ps.pure(ps.jit(p)), "partial", ()),
}


@pytest.mark.parametrize(("make", "wrap", "root", "shape"), BOUND.values(), ids=BOUND)
def test_a_second_call_warns_once(make, wrap, root, shape):
    """The second call warns, with the line that goes on from what came back; later ones do not."""
    x = jnp.ones(shape)
    step = wrap(make())
    step(x)
    with pytest.warns(ps.StaleStateWarning, match="was called again") as caught:
        step(x)
    assert [w.filename for w in caught] == [__file__]
    step(x)  # warnings are errors in these tests
    line = str(caught[0].message).rpartition("\n")[2].strip()
    names = {"ps": ps, "jnp": jnp, "x": x, root: make()}
    for _ in range(3):
        exec(line, names)
    assert jnp.all(names["out"] == 3.0)


def test_the_message():
    """The whole message."""
    step = ps.pure(ps.jit(rnn()))
    step(1.0)
    message = (
        "ps.pure(ps.jit(rnn)) was called again. Each call starts from the `rnn` that it was built "
        "from, which does not have what the last call wrote to `rnn.hidden`. Continue with the `rnn` "
        "that came back; nothing is compiled again:\n    out, rnn = ps.pure(ps.jit(rnn))(x)"
    )
    with pytest.warns(ps.StaleStateWarning, match=re.escape(message)):
        step(1.0)


def test_nothing_is_compiled_anew():
    """The advised line, in a loop, traces the module once."""
    runs = []

    class Counted(Rnn):
        def __call__(self, x):
            runs.append(x)
            return super().__call__(x)

    model = Counted(ps.HiddenState(jnp.zeros(())))
    for _ in range(3):
        _, model = ps.pure(ps.jit(model))(1.0)
    assert (len(runs), model.hidden.value) == (1, 3.0)


def test_the_unbound_form_starts_where_it_is_told():
    """A function that gets its module may get the same one again: that is on purpose."""
    model, step = rnn(), ps.pure(ps.jit(Rnn.__call__))
    assert [step(model, 1.0)[0].item() for _ in range(3)] == [1.0, 1.0, 1.0]
    for _ in range(3):
        out, model = step(model, 1.0)
    assert out == 3.0


def test_what_wrote_nothing_may_be_called_again():
    """Evaluation that only reads, and writes into other arguments, are no reason to warn."""
    look = ps.pure(ps.jit(rnn().peek))
    assert [look(1.0)[0].item() for _ in range(3)] == [1.0, 1.0, 1.0]

    class Reader(eqx.Module):
        gain: ps.ParamState

        def __call__(self, total, x):
            total.value = total.value + self.gain.value * x

    add, total = ps.pure(Reader(ps.ParamState(2.0)), argnums=(0,)), ps.State(0.0)
    for _ in range(3):
        _, (_, total) = add(total, 1.0)
    assert total.value == 6.0


def test_a_call_that_failed_is_no_first_call():
    """A call that raised wrote nothing that came back."""
    step = ps.pure(rnn())
    with pytest.raises(TypeError):
        step("no number")
    assert step(1.0)[0] == 1.0


def test_a_live_module_may_be_called_again():
    """A live module has what was written to it in the meantime."""
    with ps.record(rnn()) as live:
        step = ps.pure(live)
        for i in range(3):
            out, _ = step(1.0)
            live.hidden.value = out
            assert out == i + 1


def test_in_a_body():
    """In one body calls follow each other; that JAX runs a body again, for other shapes, is no call."""
    step = ps.pure(rnn())

    @jax.jit
    def once(x):
        return step(x)[0].sum()

    assert once(jnp.ones(())) == 1.0
    assert once(jnp.ones(2)) == 2.0

    @jax.jit
    def twice(x):
        own = ps.pure(rnn())
        return own(x)[0] + own(x)[0]

    with pytest.warns(ps.StaleStateWarning):
        assert twice(1.0) == 2.0


def test_methods_that_are_pure():
    """`@ps.pure` in a class binds again on each access, and so starts from the current module."""

    class Own(eqx.Module):
        hidden: ps.HiddenState

        @ps.pure
        @ps.jit
        def step(self, x):
            self.hidden.value = self.hidden.value + x

    model = Own(ps.HiddenState(jnp.zeros(())))
    for _ in range(3):
        _, model = model.step(1.0)
    assert model.hidden.value == 3.0
    kept = model.step
    kept(1.0)
    with pytest.warns(ps.StaleStateWarning, match=re.escape("out, own = ps.pure(")):
        kept(1.0)


def test_no_model_is_kept():
    """Neither the module that came back nor the trace is kept by the function."""
    step = ps.pure(ps.jit(rnn()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.StaleStateWarning)
        results = [weakref.ref(step(1.0)[1].hidden) for _ in range(3)]
    gc.collect()
    assert [ref() for ref in results] == [None] * 3


# Boundaries inside mappings -------------------------------------------------------------------------

XS = jnp.arange(3.0)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"axis_name": "i"}], ids=str)
def test_a_bound_boundary_in_a_mapping_loses_nothing(options):
    """Lanes do not follow each other: the output and the module come back, both with lanes."""
    out, after = ps.vmap2(ps.pure(rnn()), **options)(XS)
    assert (out.tolist(), after.hidden.value.tolist()) == ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    around, model = ps.pure(ps.vmap2(rnn((3,)), **LANES, **options))(XS)
    inside, lanes = ps.vmap2(ps.pure(rnn((3,))), **LANES, **options)(XS)
    assert around.tolist() == inside.tolist()
    assert model.hidden.value.tolist() == lanes.hidden.value.tolist()


@pytest.mark.parametrize("wrap", [ps.jit, ps.vmap2, ps.checkpoint, lambda f: ps.jit(ps.vmap2(f))])
@pytest.mark.parametrize("bound", [True, False])
def test_two_boundaries_are_refused(wrap, bound):
    """A boundary around another would give back the old tree, beside the new one in the output."""
    inner = wrap(ps.pure(rnn() if bound else Rnn.__call__))
    with pytest.raises(TypeError, match=r"is already pure: it returns \(out, tree\)"):
        ps.pure(inner)
