"""The machinery of the table of habits: a habit, what comes of it, and how a page shows that.

A *habit* is something that users do apart from writing to `.value`. It is a *program*, written as a
user would, and it has a *twin*, which does the same and threads states by hand. What comes of it is

- kept: what the program gives equals what the twin gives;
- refused: an error;
- warned: a warning, and what the program gives equals the twin;
- not seen: neither. What the program gives is what the twin gives under `jax.jit`.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from habits.ways import WAYS, Group, Way, step_by_hand


X = jnp.float32(0.75)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What comes of a habit; an error or a warning is one of `categories` and its message matches."""

    what: str
    categories: tuple[type[Exception], ...] = ()
    match: str = ""

    @property
    def words(self) -> str:
        if self.what not in ("refused", "warned"):
            return self.what
        return f"{self.what}, {' or '.join(f'`{_named(c)}`' for c in self.categories)}"


PREFIXES = {"pstate": "ps.", "jax": "jax.errors."}


def _named(category: type) -> str:
    return PREFIXES.get(category.__module__.partition(".")[0], "") + category.__name__


KEPT = Outcome("kept")
UNSEEN = Outcome("not noticed")
#: Nothing was written in the first place, and nothing says so.
UNWRITTEN = Outcome("not noticed, and not written")


def refused(match: str, *categories: type[Exception]) -> Outcome:
    return Outcome("refused", categories, match)


def warned(match: str, category: type[Warning]) -> Outcome:
    return Outcome("warned", (category,), match)


#: What a program and a twin give: what each call gave, and the model or its values after it.
Results = Sequence[tuple[Any, Any]]


def once(by_hand: Any, values: Any) -> Results:
    """The twin of most habits: the step, run once."""
    return [by_hand(lambda values, x: step_by_hand(values, x))(values, X)]


def twice(by_hand: Any, values: Any) -> Results:
    """The step, run twice from the same values."""
    return once(by_hand, values) * 2


@dataclasses.dataclass(frozen=True)
class Habit:
    """A habit.

    `says` is what a page says of it. `but` has ways in which something else comes of it than `outcome`.
    `starts` makes of the model what the program starts from; `holds` says what, beyond states, the
    program has to have kept in the model where it is kept.
    """

    name: str
    kind: str
    says: str
    program: Callable[[Way, Any], Results]
    outcome: Outcome = KEPT
    but: dict[Group, Outcome] = dataclasses.field(default_factory=dict)
    ways: Collection[str] = tuple(WAYS)
    twin: Callable[[Any, Any], Results] = once
    starts: Callable[[Any], Any] = lambda model: model
    holds: Callable[[Any], bool] = lambda model: True

    def outcome_in(self, way: Way) -> Outcome:
        for group, outcome in self.but.items():
            if way.name in group.ways:
                return outcome
        return self.outcome

    def expected(self, way: Way, values: Any) -> Results:
        """What the twin gives: eagerly, or compiled where a change is not seen."""
        if self.outcome_in(way) is UNSEEN:
            return self.twin(lambda g: jax.jit(way.by_hand(g)), values)
        # By a new function on each call, since JAX also remembers some that it has traced.
        anew = lambda g: lambda values, x: way.by_hand(lambda *args: g(*args))(values, x)
        with jax.disable_jit():
            return self.twin(anew, values)


HABITS: list[Habit] = []


def habit(kind: str, says: str, outcome: Outcome = KEPT, **fields: Any) -> Callable[..., Any]:
    """Put a habit into the table; the decorated function is its program and gives it its name."""

    def add(program: Callable[[Way, Any], Results]) -> Callable[[Way, Any], Results]:
        HABITS.append(Habit(program.__name__, kind, says, program, outcome, **fields))
        return program

    return add


def habit_of_a_step(kind: str, says: str, outcome: Outcome = KEPT, **fields: Any) -> Callable[..., Any]:
    """The same, for a program that calls the decorated step once."""

    def add(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def program(way: Way, model: Any) -> Results:
            return [way.call(lambda model, x: step(model, x))(model, X)]

        HABITS.append(Habit(step.__name__, kind, says, program, outcome, **fields))
        return step

    return add


def rows(kind: str) -> list[str]:
    """The habits of a kind as the rows of a page's table."""
    found = []
    for one in HABITS:
        but = [f"{group.words}: {outcome.words}" for group, outcome in one.but.items()]
        if one.kind == kind:
            found.append(f"| {one.says} | {'; '.join([one.outcome.words, *but])} |")
    return found
