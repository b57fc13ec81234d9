"""The machinery of the table of cases: a case, and how it gets into the table."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pstate as ps


#: Bodies call `tick` when they run, so that a law can count how often they are traced.
_ticks: list[None] = []


def tick() -> None:
    _ticks.append(None)


def ticks() -> int:
    return len(_ticks)


@dataclasses.dataclass(frozen=True)
class Case:
    """A stateful function with its twin.

    `make` gives the function under test, freshly wrapped; `args` its arguments; `twin(*args)` returns
    what `ps.pure(make())(*args)` must return. `mapping` says that `make` gives a mapping, so that the
    lane laws apply. `runs` is how often the body runs in a call that is cold, `warm` in one that is not;
    `same_program` says that the twin goes through the same JAX transform, and `leaks` that JAX takes the
    twin, too, for one that leaks. `unwritten` picks, from the
    updated tree, what nobody wrote.
    """

    name: str
    make: Callable[[], Any]
    args: Callable[[], tuple[Any, ...]]
    twin: Callable[..., Any]
    kwargs: Callable[[], dict[str, Any]] = dict
    argnums: Any = None
    mapping: bool = True
    collective: bool = False
    commutes: bool = True
    runs: int = 1
    warm: int = 0
    same_program: bool = True
    leaks: bool = False
    unwritten: Callable[[Any], Any] = lambda tree: None

    def pure(self) -> Any:
        return ps.pure(self.make(), argnums=self.argnums)


CASES: list[Case] = []


def case(**fields: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put a case into the table; the decorated function is its twin and gives it its name."""

    def add(twin: Callable[..., Any]) -> Callable[..., Any]:
        CASES.append(Case(name=twin.__name__, twin=twin, **fields))
        return twin

    return add
