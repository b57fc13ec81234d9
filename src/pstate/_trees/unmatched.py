"""Filters that select nothing: nearly always a typo, so a warning or an error names them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .._ground.errors import UnmatchedFilterWarning
from .._states.messages import warn
from .._states.state import State
from ..filter import All, Any as AnyOf, Everything, Not, Nothing, Trainable


def names_something(predicate: Callable[..., bool]) -> bool:
    """Whether a filter names what it selects, so that it should select something."""
    match predicate:
        case Not():
            return names_something(predicate.filter)
        case AnyOf() | All():
            return any(map(names_something, predicate.filters))
        case _:
            return predicate not in (Everything, Nothing)


def unmatched_message(given: str, where: str, states: Iterable[Any]) -> str:
    """The message for a filter that matches none of the states. `given` is code."""
    kinds = sorted({type(state).__name__ for state in states})
    return (
        f"{given} matches no state of the {where}, which has "
        f"{'states of the kinds ' + ', '.join(kinds) if kinds else 'none'}. Leave the filter out, or "
        "select states that exist."
    )


def unmatched_rules(
    option: str, fn: str, rules: Iterable[Any], states: Sequence[tuple[Any, State]]
) -> list[str]:
    """The messages for the rules of an option of `fn` that match none of `states`, given with paths."""
    there = [state for _, state in states]
    return [
        unmatched_message(f"{option}={rule} of {fn}", "call", there)
        for rule in rules
        if rule.wants_a_match and not any(rule.predicate(*each) for each in states)
    ]


def with_more(error: ValueError, unmatched: list[str]) -> ValueError:
    """An error about axes that also names filters that match nothing, a likely cause of it."""
    if not unmatched:
        return error
    longer = type(error)(" ".join([str(error), *unmatched]))
    for note in getattr(error, "__notes__", ()):
        longer.add_note(note)
    return longer


def warn_of_unmatched(predicate: Callable[..., bool], given: str, leaves: Iterable[Any]) -> None:
    """Warn that a filter selected nothing in a tree, unless it may: `Trainable` is a common default."""
    if names_something(predicate) and predicate != Trainable:
        states = [leaf for leaf in leaves if isinstance(leaf, State)]
        warn(unmatched_message(given, "tree", states), UnmatchedFilterWarning)
