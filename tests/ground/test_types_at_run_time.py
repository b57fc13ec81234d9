"""What annotations and options are at run time, where type checkers do not look."""

import inspect
import typing
from typing import Any

import pytest
from beartype import beartype
from jax import Array
from jaxtyping import TypeCheckError, jaxtyped
from typing_extensions import TypeVar

import pstate as ps
from pstate._mapping.pmap import KeywordsOfPmap
from pstate._mapping.vmap import KeywordsOfVmap, OptionsOfVmap
from pstate._shard_map.shard_map import KeywordsOfShardMap
from pstate._transforms.checkpoint import CheckpointOptions
from pstate._transforms.custom_rules import RuleOptions
from pstate._transforms.derivative_types import OfAny
from pstate._transforms.jit import JitOptions


def test_a_state_of_any_value():
    """`State[Any]` takes any state, and nothing else."""

    @jaxtyped(typechecker=beartype)
    def first(state: ps.HiddenState[Any]) -> Any:
        return state

    assert ps.HiddenState[Any] is ps.HiddenState
    assert first(ps.HiddenState({"a": 1.0})).value["a"] == 1
    with pytest.raises(TypeCheckError):
        first(ps.ParamState(1.0))


def test_a_kind_with_a_default():
    """A kind of a user is generic by a type variable with a default, and is itself at run time."""
    V = TypeVar("V", default=Array)

    class Slow(ps.HiddenState[V]):
        pass

    assert Slow.__bases__ == (ps.HiddenState,)
    assert Slow(0.0).value == 0


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (ps.jit, JitOptions),
        (ps.vmap2, OptionsOfVmap),
        (ps.pmap2, KeywordsOfPmap),
        (ps.shard_map2, KeywordsOfShardMap),
        (ps.checkpoint, CheckpointOptions),
        (ps.custom_vjp, RuleOptions),
        (ps.custom_jvp, RuleOptions),
        (ps.grad, OfAny),
        (ps.value_and_grad, OfAny),
        (ps.hessian, OfAny),
    ],
    ids=lambda x: x.__name__,
)
def test_checkers_know_all_options(function: Any, options: Any):
    """The options that type checkers know are those that a transform has; `axis_name` they see apart."""
    known = set(typing.get_type_hints(options)) | ({"axis_name"} if function is ps.pmap2 else set())
    assert known == set(inspect.signature(function).parameters) - {"fn"}


def test_options_of_vmap_by_name():
    """Those options of `vmap2` that are passed by name alone are the ones in `KeywordsOfVmap`."""
    parameters = inspect.signature(ps.vmap2).parameters.values()
    by_name = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert by_name == set(typing.get_type_hints(KeywordsOfVmap))


def test_a_wrong_policy_is_named():
    """At run time a misspelt policy raises an error that names the right ones."""
    with pytest.raises(ValueError, match=r"'raise'.*'warn'.*'ignore'"):
        ps.vmap2(lambda x: x, unexpected_out_state_mapping="rasie")  # type: ignore
