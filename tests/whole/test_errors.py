"""Every message: who raises it, what it says, and that the code which it recommends is right."""

import contextlib
import dataclasses

import jaxtyping
import pytest

import pstate as ps
from whole import (  # noqa: F401 (they fill the table)
    messages_of_lanes,
    messages_of_shards,
    messages_of_states,
)
from whole.messages import CASES, Case


@pytest.fixture
def as_users_run_it():
    """Without the type checker of the test run, which would raise before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("case", CASES)
def test_messages(case: Case):
    """The message says what it must, and its advice runs and helps."""
    generator = case.body()
    slip = next(generator)
    if issubclass(case.error, Warning):
        with pytest.warns(case.error) as caught:
            slip()
        text = str(next(w.message for w in caught if isinstance(w.message, case.error)))
    else:
        with pytest.raises(case.error) as error:
            slip()
        text = error.value.args[0]
    for part in case.says:
        assert part in text
    with contextlib.suppress(StopIteration):
        generator.send(text)
        raise AssertionError("a case yields once")


def test_errors_are_of_one_family():
    """Each error is a `StateError` and of the fitting builtin, each warning a `StateWarning`."""
    builtins = {
        ps.FrozenStateError: dataclasses.FrozenInstanceError,
        ps.TraceScopeError: RuntimeError,
        ps.CapturedStateError: RuntimeError,
        ps.AliasedStateError: ValueError,
        ps.UninitializedStateError: ValueError,
        ps.BatchAxisError: ValueError,
    }
    assert all(issubclass(error, (ps.StateError, builtin)) for error, builtin in builtins.items())
    assert all(issubclass(error, builtin) for error, builtin in builtins.items())
    named = [getattr(ps, name) for name in dir(ps) if name.endswith("Warning")]
    assert all(issubclass(warning, ps.StateWarning) for warning in named)
