"""Donation: exactly which buffers are deleted, and which calls delete none."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import pstate as ps
from programs.steps import add, deleted, nothing_left_over, zeros


clean_thread = pytest.fixture(autouse=True)(nothing_left_over)


def test_only_selected_written_states_are_donated():
    """Of four states the one that is selected and written is deleted, and nothing else."""

    def body(tree, x):
        tree["read"].value.sum()
        tree["other"].value += x
        tree["mine"].value += x

    tree = {
        "mine": zeros(ps.HiddenState),
        "other": zeros(ps.ParamState),
        "read": zeros(ps.HiddenState),
        "unused": zeros(ps.HiddenState),
    }
    x = jnp.ones(3)
    _, new = ps.pure(ps.jit(body, donate=ps.HiddenState))(tree, x)
    assert {name: deleted(state) for name, state in tree.items()} == {
        "mine": [True],
        "other": [False],
        "read": [False],
        "unused": [False],
    }
    assert not x.is_deleted()
    assert new["read"].value is tree["read"].value
    np.testing.assert_array_equal(new["mine"].value, np.ones(3))


@pytest.mark.parametrize(
    "write",
    [
        lambda value: jnp.zeros(4),
        lambda value: value.astype(jnp.int32),
        lambda value: None,
        lambda value: {"inner": [value + 1, value]},
    ],
    ids=["shape", "dtype", "emptied", "structure"],
)
def test_another_type_is_not_donated(write):
    """A value of another shape, dtype or structure leaves the old buffer alone."""

    def body(state):
        state.value = write(state.value)

    state = zeros()
    ps.pure(ps.jit(body, donate=...))(state)
    assert deleted(state) == [False]


def test_what_is_returned_as_it_came_in_is_kept():
    """The old value is in the output, as the same array, and is therefore not given up."""

    def body(state):
        old = state.value
        state.value = old + 1
        return old

    state = zeros()
    out, new = ps.pure(ps.jit(body, donate=...))(state)
    assert out is state.value
    np.testing.assert_array_equal(out, np.zeros(3))
    np.testing.assert_array_equal(new.value, np.ones(3))


def test_states_that_swap_their_values():
    """Donated buffers that come back as each other's values hold the right numbers."""

    def body(tree):
        tree["a"].value, tree["b"].value = tree["b"].value, tree["a"].value

    tree = {"a": ps.State(jnp.zeros(3)), "b": ps.State(jnp.ones(3))}
    _, new = ps.pure(ps.jit(body, donate=...))(tree)
    np.testing.assert_array_equal(new["a"].value, np.ones(3))
    np.testing.assert_array_equal(new["b"].value, np.zeros(3))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("donate", "given_up"), [(ps.BatchState, False), (..., True)], ids=["one", "both"]
)
def test_one_buffer_at_two_places(packed, donate, given_up):
    """An average that starts as the same array as the parameters: given up if both places give it up."""
    weight = jnp.ones(3)

    def body(tree):
        tree["weight"].value += 1
        tree["mean"].value = (tree["mean"].value + tree["weight"].value) / 2

    tree = {"mean": ps.BatchState(weight), "weight": ps.ParamState(weight)}
    step = ps.pure(ps.jit(body, donate=donate))
    _, once = step(ps.pack(tree) if packed else tree)
    assert weight.is_deleted() == given_up
    _, twice = step(once)
    assert deleted(once) == [True, given_up]
    twice = twice.unpack() if packed else twice
    np.testing.assert_array_equal(twice["mean"].value, np.full(3, 2.25))
    np.testing.assert_array_equal(twice["weight"].value, np.full(3, 3.0))


def test_a_key_at_two_places():
    """Two random states of one typed key are donated and draw alike."""
    key = jax.random.key(0)
    tree = {"a": ps.RandomState(key), "b": ps.RandomState(key)}
    draws, new = ps.pure(ps.jit(lambda t: (t["a"].normal(), t["b"].normal()), donate=...))(tree)
    assert draws[0] == draws[1]
    assert new["a"].value == new["b"].value


def test_the_written_set_depends_on_shapes():
    """One wrapper, two shapes, two written sets: each call donates its own."""

    def body(tree, x):
        tree["many" if x.size > 1 else "one"].value += x.sum()

    step = ps.pure(ps.jit(body, donate=...))
    for size, expected in [(1, [False, True]), (5, [True, False]), (1, [False, True])]:
        tree = {"many": ps.State(jnp.zeros(())), "one": ps.State(jnp.zeros(()))}
        step(tree, jnp.ones(size))
        assert deleted(tree) == expected


def test_donation_traces_once():
    """Learning what is written costs no run of the body."""
    runs = []

    def body(state, x):
        runs.append(None)
        return add(state, x)

    state = zeros()
    for _ in range(3):
        _, state = ps.pure(ps.jit(body, donate=...))(state, jnp.ones(3))
    assert len(runs) == 1


def test_donate_argnums_without_pure():
    """Where nobody goes on with the argument it is given up whole, as in `jax.jit`, and nothing else."""

    @ps.jit(donate_argnums=0)
    def step(tree, x):
        return jtu.tree_map(lambda leaf: leaf + x, tree)

    tree, x = {"a": zeros(), "raw": jnp.zeros(3)}, jnp.ones(3)
    new = step(tree, x)
    assert deleted(tree) == [True, True]
    assert not x.is_deleted()
    np.testing.assert_array_equal(new["raw"], np.ones(3))


@pytest.mark.parametrize("live", [False, True])
def test_donate_argnums_where_somebody_goes_on(live):
    """In `pure` and in a recording only overwritten states of the argument are given up."""

    def body(tree, x):
        tree["n"].value += x + tree["w"].value + tree["raw"]

    tree = {"n": zeros(), "raw": jnp.zeros(3), "w": zeros()}
    step = ps.jit(body, donate_argnums=0)
    if live:
        with ps.record(tree) as copy:
            step(copy, jnp.ones(3))
        new = ps.freeze(copy)
    else:
        _, new = ps.pure(step)(tree, jnp.ones(3))
    assert deleted(tree) == [True, False, False]
    np.testing.assert_array_equal(new["n"].value + new["w"].value + new["raw"], np.ones(3))


@pytest.mark.parametrize("live", [False, True])
def test_donate_argnums_of_another_argument(live):
    """The optimiser's state is not given back by `pure`, so it is given up whole."""

    def body(state, moments):
        state.value += 1
        return {"m": moments["m"] + 1}

    state, moments = zeros(), {"m": jnp.zeros(3)}
    step = ps.jit(body, donate_argnums=(0, 1))
    if live:
        with ps.record(state) as copy:
            step(copy, moments)
    else:
        ps.pure(step)(state, moments)
    assert deleted(state) == [True]
    assert deleted(moments) == [True]


def test_donate_argnums_out_of_range():
    """A position that no argument has is refused, and no other argument is given up for it."""
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="donate_argnums"):
        ps.jit(lambda state, x: x + state.value, donate_argnums=3)(zeros(), x)
    assert not x.is_deleted()


def test_numpy_operands():
    """NumPy arrays can be donated, and come back as JAX arrays."""
    x = np.ones(3, np.float32)
    (out, same), _ = ps.pure(ps.jit(lambda s, x: (add(s, x), x), donate_argnums=(0, 1)))(zeros(), x)
    assert isinstance(same, jax.Array)
    np.testing.assert_array_equal(x, np.ones(3))
    np.testing.assert_array_equal(out, np.full(3, 2.0))


def test_under_another_trace_nothing_is_donated():
    """Inside `jax.jit` and inside `jit` donation is left to the outer call."""
    inner = ps.pure(ps.jit(add, donate=...))
    for outer in (jax.jit(inner), ps.jit(inner)):
        state = zeros()
        outer(state, jnp.ones(3))
        assert deleted(state) == [False]
    with jax.disable_jit():
        state = zeros()
        inner(state, jnp.ones(3))
        assert deleted(state) == [False]


def test_donation_in_a_recording():
    """Each step of a recording gives up the value of the step before."""
    step = ps.jit(add, donate=...)
    state = zeros()
    with ps.record(state) as live:
        for _ in range(3):
            step(live, jnp.ones(3))
    assert state.value is not None
    assert deleted(state) == [True]
    np.testing.assert_array_equal(ps.freeze(live).value, np.full(3, 3.0))


def test_a_donated_input_used_again():
    """Whoever is called names the argument that is gone, and the advice runs."""
    step = ps.pure(ps.jit(add, donate=ps.State))
    first = zeros()
    _, second = step(first, jnp.ones(3))
    message = (
        r"`state` was donated to an earlier call and its buffer is gone, so ps\.\w+\(add.*\) cannot "
        r"read it\. Go on with the tree that the earlier call gave back, or do not donate: leave donate "
        r"and donate_argnums out\."
    )
    others = (ps.pure(f) for f in (add, ps.jit(add), ps.vmap2(add), ps.checkpoint(add)))
    for again in (step, *others):
        with pytest.raises(ps.StateError, match=message):
            again(first, jnp.ones(3))
    _, third = ps.pure(ps.jit(add))(second, jnp.ones(3))
    _, fourth = ps.pure(ps.jit(add))(second, jnp.ones(3))
    np.testing.assert_array_equal(third.value, fourth.value)


def test_idle_donation():
    """A filter that selects nothing written is told so, once, and the advice runs."""
    step = ps.jit(add, donate=ps.ParamState)
    message = (
        r"donate=OfType\(ParamState\) of ps\.jit\(add.*\) gives up nothing: it selects none of the "
        r"states that the function writes, which are `state`\. For an argument whose new tree is "
        r"returned, name the argument: donate_argnums=\(0,\)\."
    )
    with pytest.warns(ps.UnmatchedFilterWarning, match=message):
        ps.pure(step)(zeros(), jnp.ones(3))
    ps.pure(step)(zeros(), jnp.ones(3))
    state = zeros()
    ps.pure(ps.jit(add, donate_argnums=(0,)))(state, jnp.ones(3))
    assert deleted(state) == [True]


def _unthreaded(step, state):
    step(state, jnp.ones(3))


def _outside_a_contract(step, state):
    ps.pure(step, writes=ps.ParamState)(state, jnp.ones(3))


def _outside_the_contract_of_a_recording(step, state):
    with ps.record(state, writes=ps.ParamState) as live:
        step(live, jnp.ones(3))


def _outside_argnums(step, state):
    ps.pure(step, argnums=1)(state, jnp.ones(3))


def _in_a_keyword(step, state):
    ps.pure(lambda x, **kwargs: step(x=x, **kwargs))(jnp.ones(3), state=state)


@pytest.mark.parametrize("options", [{"donate": ps.State}, {"donate_argnums": 0}], ids=str)
@pytest.mark.parametrize(
    "refused",
    [_unthreaded, _outside_a_contract, _outside_the_contract_of_a_recording, _outside_argnums],
)
def test_a_refused_call_donates_nothing(refused, options):
    """A call that raises leaves its inputs as they were (L8): nothing came back in their place."""
    state = zeros()
    with pytest.raises(ps.FrozenStateError, match="was written"):
        refused(ps.jit(add, **options), state)
    assert deleted(state) == [False]


def test_a_refused_echo_donates_nothing():
    """A state that comes back twice is refused, and is still there."""

    def body(state, x):
        state.value += x
        return state

    state = zeros()
    with pytest.raises(ps.AliasedStateError, match="is also in the output as `out`"):
        ps.pure(ps.jit(body, donate=...))(state, 1.0)
    assert deleted(state) == [False]


def test_a_refused_keyword_donates_nothing():
    """A written keyword argument is refused, and is still there."""
    state = zeros()
    with pytest.raises(ps.FrozenStateError, match="keyword argument 'state'"):
        ps.pure(ps.jit(lambda x, *, state: add(state, x), donate=...))(jnp.ones(3), state=state)
    assert deleted(state) == [False]


def test_a_state_that_is_written_and_never_read():
    """Whether the body reads the old value makes no difference to what is given up."""

    def reset(state, x):
        state.value = x * 2

    state = zeros()
    ps.pure(ps.jit(reset, donate=...))(state, jnp.ones(3))
    assert deleted(state) == [True]


def test_two_arrays_of_one_buffer():
    """`jax.device_put` gives a second array of the same buffer, as a copied model has."""
    weight = jnp.ones(3)
    twin = jax.device_put(weight, weight.sharding)

    def body(tree):
        tree["mean"].value = tree["mean"].value + tree["weight"].value
        tree["weight"].value += 1

    tree = {"mean": ps.LongTermState(twin), "weight": ps.ParamState(weight)}
    if weight.unsafe_buffer_pointer() != twin.unsafe_buffer_pointer():
        pytest.fail("copied, so that nothing is shown")
    _, new = ps.pure(ps.jit(body, donate=...))(tree)
    np.testing.assert_array_equal(new["mean"].value, np.full(3, 2.0))
