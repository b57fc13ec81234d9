"""The changes between two trees, one for each array, empty state, static leaf and static field.

A *side* is what one of the trees has at a path.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx

from .._ground.paths import Path, to_path, to_place
from .._ground.typing import PyTree
from .._ground.values import short_type
from .comparing import Comparison, compare, norm_of
from .entries import Entry, Part, entries_of, is_array
from .static_differences import StaticDifference, same_structure, static_differences


@dataclasses.dataclass(frozen=True)
class Side:
    """What one of the trees has at a path.

    `shape` and `dtype` are those of an array, `norm` is that of an inexact array whose value is
    known, and `shown` is a short form of the whole.
    """

    kind: str
    tag: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: Any
    norm: float | None
    shown: str


@dataclasses.dataclass(frozen=True)
class Change:
    """What was found at a place. If `what` is empty, nothing changed, and there are no sides.

    `kind` names both kinds if it changed. `differing` counts elements, and `distance` is the norm
    of the difference of inexact arrays. `known` says whether values could be compared.
    """

    path: Path
    place: str
    kind: str
    what: tuple[str, ...]
    old: Side | None = None
    new: Side | None = None
    differing: int | None = None
    distance: float | None = None
    known: bool = True


def changes_of(old: PyTree, new: PyTree, root: str) -> list[Change]:
    """What was found at each place of two trees, unchanged places included."""
    olds = {entry.path: entry for entry in entries_of(old, root)}
    news = {entry.path: entry for entry in entries_of(new, root)}
    paths = dict.fromkeys([*olds, *news])
    found = [change for path in paths for change in _of_entries(olds.get(path), news.get(path))]
    if same_structure(old, new):
        return found
    found += [_of_static(each, root) for each in static_differences(old, new)]
    if not any(change.what for change in found):
        # For example a masked leaf that only one tree has: it is at no path, but the trees differ.
        found.append(_of_static(StaticDifference((), False, old, new), root))
    return found


def _of_entries(old: Entry | None, new: Entry | None) -> Iterator[Change]:
    olds = {} if old is None else old.parts
    news = {} if new is None else new.parts
    # Two empty states, or one alone, have no parts, but are a place nevertheless.
    for inner in dict.fromkeys([*olds, *news]) or [()]:
        yield _of_parts(old, new, olds.get(inner), news.get(inner))


def _of_parts(old: Entry | None, new: Entry | None, a: Part | None, b: Part | None) -> Change:
    at: Any = new or old
    place = (b or a or at).place
    kind = " -> ".join(dict.fromkeys(entry.kind for entry in (old, new) if entry is not None))
    found = _found(old, new, a, b)
    if not found.what:
        return Change(at.path, place, kind, (), known=found.known)
    before, after = (_side(entry, part, "tag" in found.what) for entry, part in ((old, a), (new, b)))
    return Change(
        at.path, place, kind, found.what, before, after, found.differing, found.distance, found.known
    )


def _found(old: Entry | None, new: Entry | None, a: Part | None, b: Part | None) -> Comparison:
    if old is None or new is None:
        return Comparison(("appeared",) if old is None else ("disappeared",))
    outside = ("kind",) * (_class(old) != _class(new)) + ("tag",) * (old.tag != new.tag)
    if a is not None and b is not None:
        inside = compare(a.leaf, b.leaf)
        return dataclasses.replace(inside, what=outside + inside.what)
    if a is not None:
        return Comparison((*outside, "emptied" if new.is_empty else "disappeared"))
    if b is not None:
        return Comparison((*outside, "filled" if old.is_empty else "appeared"))
    return Comparison(outside)


def _class(entry: Entry) -> Any:
    return entry.kind if entry.kind in ("array", "static") else type(entry.leaf)


def _side(entry: Entry | None, part: Part | None, with_tag: bool) -> Side | None:
    if entry is None or (part is None and not entry.is_empty):
        return None
    tag = f" tag={entry.tag!r}" if with_tag else ""
    if part is None:
        return Side(entry.kind, entry.tag, None, None, None, f"empty{tag}")
    leaf = part.leaf
    if not is_array(leaf):
        return Side(entry.kind, entry.tag, None, None, None, _short(leaf) + tag)
    shown = short_type(leaf) + tag
    return Side(entry.kind, entry.tag, tuple(leaf.shape), leaf.dtype, norm_of(leaf), shown)


def _of_static(found: StaticDifference, root: str) -> Change:
    what = "value" if found.is_field else "structure"
    old, new = _short(found.old), _short(found.new)
    if type(found.old) is not type(found.new):
        old, new = type(found.old).__name__, type(found.new).__name__
    before, after = (Side("static", (), None, None, None, shown) for shown in (old, new))
    return Change(
        to_path(found.key_path), to_place(root, found.key_path), "static", (what,), before, after
    )


def _short(x: Any) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(eqx.tree_pformat(x).split()))
    return text if len(text) <= 40 else text[:37] + "..."
