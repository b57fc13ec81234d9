"""`Kind[hint]` as a run-time annotation, under jaxtyping and beartype."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import Array, Float, Int, PyTree, TypeCheckError, jaxtyped

import pstate as ps


checked = jaxtyped(typechecker=beartype)
Vector = Float[Array, "n"]


@pytest.fixture
def add():
    @checked
    def add(a: ps.ShortTermState[Vector], b: ps.State[Vector]) -> Vector:
        return a.value + b.value

    return add


@pytest.fixture
def scale():
    @checked
    def scale(state: ps.State[Vector], by: Vector) -> Float[Array, ""]:
        return state.value @ by

    return scale


def test_right_arguments_pass(add, scale):
    """A state of the kind, or of a kind below it, with a fitting value, is accepted."""
    assert add(ps.ShortTermState(jnp.ones(2)), ps.State(jnp.ones(2))).shape == (2,)
    assert add(ps.HiddenState(jnp.ones(2)), ps.ParamState(jnp.ones(2))).shape == (2,)
    assert scale(ps.State(jnp.ones(3)), jnp.ones(3)) == 3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (ps.ParamState(jnp.ones(2)), ps.State(jnp.ones(2))),
        (ps.State(jnp.ones(2)), ps.State(jnp.ones(2))),
        (ps.ShortTermState(jnp.ones((2, 2))), ps.State(jnp.ones(2))),
        (ps.ShortTermState(jnp.ones(2, int)), ps.State(jnp.ones(2))),
        (ps.ShortTermState({"a": jnp.ones(2)}), ps.State(jnp.ones(2))),
        (jnp.ones(2), ps.State(jnp.ones(2))),
        (ps.ShortTermState(jnp.ones(2)), ps.State(jnp.ones(3))),
    ],
    ids=["sibling", "parent", "shape", "dtype", "container", "bare array", "shared dimension"],
)
def test_wrong_arguments_are_refused(add, a, b):
    """Kind, shape, dtype and the dimension that the arguments share are all checked."""
    with pytest.raises(TypeCheckError):
        add(a, b)


def test_dimensions_are_shared_with_arrays(scale):
    """A state's dimension names are those of the whole signature, arrays included."""
    with pytest.raises(TypeCheckError):
        scale(ps.State(jnp.ones(2)), jnp.ones(3))


def test_each_call_binds_its_dimensions_anew(add):
    """Names are bound for one call, not permanently."""
    for n in (2, 3, 5):
        assert add(ps.HiddenState(jnp.ones(n)), ps.State(jnp.ones(n))).shape == (n,)


def test_empty_states_pass():
    """A declared state without a value has no value that could be wrong; its kind still counts."""

    @checked
    def take(state: ps.HiddenState[Vector]) -> None:
        return None

    take(ps.HiddenState())
    with pytest.raises(TypeCheckError):
        take(ps.State())


def test_container_hints():
    """Hints of containers are checked leaf by leaf, dimension names included."""

    @checked
    def take(state: ps.State[dict[str, Vector]], other: Vector) -> None:
        return None

    take(ps.State({"a": jnp.ones(2)}), jnp.ones(2))
    for wrong in ({"a": jnp.ones((2, 2))}, {1: jnp.ones(2)}, [jnp.ones(2)], {"a": jnp.ones(3)}):
        with pytest.raises(TypeCheckError):
            take(ps.State(wrong), jnp.ones(2))


def test_pytree_hints():
    """`PyTree[...]` is a hint like any other."""

    @checked
    def take(state: ps.State[PyTree[Float[Array, " _"]]]) -> None:
        return None

    take(ps.State([jnp.ones(2), {"a": jnp.ones(3)}]))
    with pytest.raises(TypeCheckError):
        take(ps.State([jnp.ones((2, 2))]))


def test_fields_of_modules():
    """Fields of a module are checked when it is made, in one scope."""

    @checked
    class Net(eqx.Module):
        weight: ps.ParamState[Float[Array, "n m"]]
        hidden: ps.HiddenState[Float[Array, " n"]]
        steps: ps.State[Int[Array, ""]] = eqx.field(default_factory=lambda: ps.State(0))

    net = Net(ps.ParamState(jnp.ones((2, 3))), ps.HiddenState(jnp.ones(2)))
    assert net.steps.value == 0
    Net(ps.ParamState(), ps.HiddenState())
    with pytest.raises(TypeCheckError):
        Net(ps.ParamState(jnp.ones((2, 3))), ps.HiddenState(jnp.ones(3)))
    with pytest.raises(TypeCheckError):
        Net(ps.ParamState(jnp.ones((2, 3))), ps.ShortTermState(jnp.ones(2)))


def test_live_and_traced_states(add):
    """Annotations hold in bodies too, where states are live and values are tracers."""
    tree = {"a": ps.ShortTermState(jnp.ones((3, 2)))}

    def body(tree, x):
        tree["a"].value = add(tree["a"], ps.State(x))

    _, tree = ps.pure(ps.vmap2(body))(tree, jnp.ones((3, 2)))
    assert tree["a"].value.shape == (3, 2)
    with pytest.raises(TypeCheckError):
        jax.eval_shape(ps.pure(body), tree, jnp.ones(5))


def test_the_annotation_is_a_class():
    """It answers `isinstance`, is made once for each hint, and shows what it asks for."""
    hint = Float[Array, "2"]
    annotation = ps.HiddenState[hint]
    assert isinstance(ps.HiddenState(jnp.ones(2)), annotation)
    assert not isinstance(ps.HiddenState(jnp.ones(3)), annotation)
    assert annotation is ps.HiddenState[hint]
    assert "HiddenState[Float[" in repr(annotation)


def test_a_user_kind_is_annotated_alike():
    """Subclasses inherit the annotation."""

    class Membrane(ps.HiddenState):
        pass

    assert isinstance(Membrane(jnp.ones(2)), Membrane[Vector])
    assert not isinstance(ps.HiddenState(jnp.ones(2)), Membrane[Vector])


def test_checking_reads_nothing():
    """An annotation only looks: `written` stays empty and a random state is not advanced."""

    @checked
    def take(rng: ps.RandomState, state: ps.State[Vector]) -> None:
        return None

    def body(tree, x):
        take(tree["rng"], tree["s"])
        return x

    tree = {"rng": ps.RandomState(0), "s": ps.State(jnp.ones(2))}
    _, new = ps.pure(ps.vmap2(body, in_axes=(None, 0)))(tree, jnp.ones(3))
    assert new["rng"].value is tree["rng"].value
