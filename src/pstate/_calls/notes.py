"""The results of a run, as arrays and a note.

JAX's transforms return arrays. The *note* says what they are: how the output is put together, and which
states were written. It is a pytree without leaves, so that it passes through `jax.jit` and similar
transforms in the structure of the output.
"""

import dataclasses
import functools as ft
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import jax.tree_util as jtu

from .._ground.exact import Identity, exact_key
from .._ground.paths import to_place
from .._ground.values import as_value
from .._trees.leaves import operand_mask
from .._trees.slots import LEAF
from .._trees.structures import exact_structure
from .edits import Edit
from .running import Echo, Run, Writes


#: A placeholder for an array among the leaves of an output.
NEXT = object()


@dataclasses.dataclass(frozen=True)
class Operand:
    """A placeholder for an operand of the call among the leaves of an output."""

    index: int


#: A slot; the structure of its written value, `None` if it is one array; and its number of arrays.
WriteNote = tuple[int, Any, int]


@dataclasses.dataclass(eq=False)
class Note:
    """What the arrays from a transform mean: first those of the output, then those of the writes.

    `out_leaves` has `NEXT` for each leaf that is the next array, an `Operand` for one that came in,
    and the leaf itself if it is static. `writes` lists `(slot, structure, count)`, without a
    structure if the value is one array.

    Notes that say the same are equal: JAX keeps the structure of an output, and with it the note, in
    caches that would grow with every function that is made anew.
    """

    is_exact: ClassVar[bool] = True

    out_treedef: Any
    out_leaves: list[Any]
    writes: list[WriteNote]
    echoed: tuple[Echo, ...]
    reads: frozenset[int]
    edited: tuple[Edit, ...]

    @ft.cached_property
    def _key(self) -> Any:
        said = [getattr(self, field.name) for field in dataclasses.fields(self)]
        structures = [self.out_treedef, *(structure for _, structure, _ in self.writes)]
        try:
            key = exact_key(said), tuple([exact_structure(s) for s in structures if s is not None])
            hash(key)
        except TypeError:  # something unhashable: it equals only itself
            return Identity(self)
        return key

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and other._key == self._key)

    def result(self, arrays: Sequence[Any], operands: Sequence[Any] = ()) -> tuple[Any, Writes]:
        """The output and the writes."""
        supply = iter(arrays)

        def found(leaf: Any) -> Any:
            if leaf is NEXT:
                return next(supply)
            return as_value(operands[leaf.index]) if type(leaf) is Operand else leaf

        out = self.out_treedef.unflatten([found(leaf) for leaf in self.out_leaves])
        writes = {
            index: next(supply)
            if treedef is None
            else treedef.unflatten([next(supply) for _ in range(count)])
            for index, treedef, count in self.writes
        }
        return out, writes


def write_note(index: int, treedef: Any, count: int) -> WriteNote:
    """How a written value is put together."""
    return index, None if treedef == LEAF else treedef, count


def taken_apart(run: Run, operands: Sequence[Any] = ()) -> tuple[list[Any], Note]:
    """The arrays that a run gives, and what they mean.

    A leaf that is one of the `operands`, the same object, is not returned as an array.
    """
    leaves, treedef = jtu.tree_flatten(run.out)
    is_array = arrays_of(run.out, leaves)
    refuse_tracers(run.out, leaves, is_array)
    came_in = {id(operand): Operand(i) for i, operand in enumerate(operands)}
    arrays: list[Any] = []
    out_leaves: list[Any] = []
    for leaf, is_one in zip(leaves, is_array, strict=True):
        same = came_in.get(id(leaf)) if is_one else None
        if is_one and same is None:
            arrays.append(leaf)
        out_leaves.append(leaf if not is_one else same or NEXT)
    notes = []
    for index, value in sorted(run.writes.items()):
        new, structure = jtu.tree_flatten(value)
        arrays += new
        notes.append(write_note(index, structure, len(new)))
    return arrays, Note(treedef, out_leaves, notes, run.echoed, run.reads, run.edited)


def refuse_tracers(out: Any, leaves: Sequence[Any], is_array: Sequence[bool]) -> None:
    """Raise if an output holds a tracer inside something that JAX cannot look into."""
    for i, (leaf, is_one) in enumerate(zip(leaves, is_array, strict=True)):
        if not is_one and any(isinstance(x, jax.core.Tracer) for x in _held_by(leaf)):
            key_path = jtu.tree_flatten_with_path(out)[0][i][0]
            raise TypeError(
                f"`{to_place('out', key_path)}` is a {type(leaf).__name__}, which is not a pytree, and "
                "holds a tracer that would leak. Return arrays, or make it a pytree: class "
                f"{type(leaf).__name__}(eqx.Module): ..."
            )


def _held_by(leaf: Any) -> list[Any]:
    held = list(getattr(leaf, "__dict__", {}).values())
    if isinstance(leaf, ft.partial):
        held += jtu.tree_leaves((leaf.args, leaf.keywords))
    for cell in getattr(leaf, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # the name is not bound yet
            continue
    return held


def arrays_of(out: Any, leaves: Sequence[Any]) -> list[bool]:
    """For each leaf of an output, whether it is returned as an array.

    Python numbers do, as in JAX, except inside modules, where they are configuration and stay numbers.
    """
    mask = list(operand_mask(leaves))
    numbers = [i for i, leaf in enumerate(leaves) if isinstance(leaf, bool | int | float | complex)]
    configuration = _inside_modules(out) if numbers else ()
    for i in numbers:
        mask[i] = i not in configuration
    return mask


def _inside_modules(out: Any) -> set[int]:
    indices: set[int] = set()
    position = 0
    for item in jtu.tree_leaves(out, is_leaf=lambda x: isinstance(x, eqx.Module)):
        n = len(jtu.tree_leaves(item))
        if isinstance(item, eqx.Module):
            indices |= set(range(position, position + n))
        position += n
    return indices


jtu.register_pytree_node(Note, lambda note: ((), note), lambda note, _: note)
