"""Rules that say where arrays live: `{spec: filter}` in priority order.

The first filter that selects a state, or an array outside states, gives its spec; all leaves of a
state follow the same rule. The spec may be a function of the leaf, called for each array.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec, Sharding

from .._ground.exact import Exact
from .._ground.paths import Path
from .._states.state import State
from .._trees.unmatched import names_something, warn_of_unmatched
from ..filter import to_predicate
from .largest import Largest
from .specs import check_divides, check_spec, spec_code


@dataclasses.dataclass(frozen=True)
class ShardingRule:
    """One line of the rules: `spec`, a spec or a function, for the leaves that a predicate selects."""

    spec: Any = dataclasses.field(compare=False)
    predicate: Callable[..., bool]
    spec_key: Any

    def __str__(self) -> str:
        return f"{{{_code(self.spec)}: {self.predicate!r}}}"

    def on(self, mesh: Any, leaf: Any, place: str) -> PartitionSpec:
        """The spec of an array, checked against the mesh and the array.

        **Raises:** `ValueError` if it does not fit; `TypeError` for a function that does not return
        a spec.
        """
        spec = self.spec
        if isinstance(spec, Largest):
            spec = spec.of(leaf, mesh)
        elif not isinstance(spec, PartitionSpec):
            spec = spec(leaf)
        spec = PartitionSpec() if spec is None else spec
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"{_code(self.spec)} returned {spec!r} for {place}; the function of a rule returns a "
                "PartitionSpec: lambda leaf: P('data') if leaf.ndim else P()."
            )
        check_spec(spec, mesh, place)
        check_divides(leaf.shape, spec, mesh, place)
        return spec


def _code(spec: Any) -> str:
    if isinstance(spec, PartitionSpec):
        return spec_code(spec)
    return getattr(spec, "__name__", None) or repr(spec)


class ShardingRules(tuple[ShardingRule, ...]):
    """Rules that have been parsed."""

    __slots__ = ()

    def match(self, path: Path, item: Any) -> ShardingRule | None:
        """The first rule that selects a state or an array, if there is one."""
        return next((rule for rule in self if rule.predicate(path, item)), None)

    def warn_of_unmatched(self, used: Iterable[Any], what: str, leaves: Iterable[Any]) -> None:
        """Warn about rules that select nothing in a tree. `used` are those that gave specs."""
        used = set(used)
        for rule in self:
            if rule not in used and names_something(rule.predicate):
                # An earlier rule may have matched everything.
                candidates = [leaf for path, leaf in leaves if rule.predicate(path, leaf)]
                if not candidates:
                    warn_of_unmatched(rule.predicate, f"{rule} of {what}", (x for _, x in leaves))


def is_rules(given: Any) -> bool:
    """Whether this is a dict of rules, not a tree of shardings that happens to be a dict."""
    return isinstance(given, ShardingRules) or (
        isinstance(given, Mapping) and bool(given) and all(map(_is_spec, given))
    )


def parse_rules(rules: Any, what: str) -> ShardingRules:
    """The rules of `{spec: filter}`, in order; a spec alone is for everything.

    **Raises:** `TypeError` for anything but rules, and for a filter of an unusable type.
    """
    if isinstance(rules, ShardingRules):
        return rules
    if _is_spec(rules):
        rules = {rules: ...}
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"The rules of {what} are {{PartitionSpec: filter}}; got {rules!r} of type "
            f"{type(rules).__name__}. Write {{P('data'): ps.HiddenState, P(): ...}}."
        )
    return ShardingRules(_rule(spec, filter_, what) for spec, filter_ in rules.items())


def _rule(spec: Any, filter_: Any, what: str) -> ShardingRule:
    if not _is_spec(spec):
        right = f"P({spec!r})" if isinstance(spec, str) else "P('data')"
        right = spec_code(spec.spec) if isinstance(spec, NamedSharding) else right
        code = "ps.ParamState"
        if isinstance(spec, type) and issubclass(spec, State):
            code = f"ps.{spec.__name__}"
            right = spec_code(filter_) if isinstance(filter_, PartitionSpec) else right
        also = "; the mesh is a separate argument" if isinstance(spec, Sharding) else ""
        raise TypeError(
            f"The keys of the rules of {what} are specs: a PartitionSpec, or a function of the leaf "
            f"that returns one{also}; got {spec!r}. Write {{{right}: {code}}}."
        )
    if isinstance(filter_, PartitionSpec):
        raise TypeError(
            f"The values of the rules of {what} are filters; got {filter_!r}. Write "
            f"{{{spec_code(filter_)}: ps.ParamState}}."
        )
    return ShardingRule(spec, to_predicate(filter_), Exact(spec))


def _is_spec(x: Any) -> bool:
    if isinstance(x, PartitionSpec):
        return True
    return callable(x) and not isinstance(x, type | Sharding)
