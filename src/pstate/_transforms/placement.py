"""Where the operands and the results of a compiled call live.

`in_shardings` and `out_shardings` come first. Otherwise operands are taken where they are, results
are left to the compiler, and a written state goes back to the sharding that its array came with:
left to the compiler, it might come out with another one, and then the next call would be compiled
again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.tree_util as jtu
from jax.sharding import NamedSharding, PartitionSpec

from .._calls.notes import NEXT, Note
from .._calls.signature import ARGS
from .._ground.paths import to_path, to_place
from .._mapping.prefixes import spread_prefix
from .._programs.donation import Donation
from .._sharding.specs import spec_code
from .._sharding.wanted import Wanted, resolved
from .._states.state import State, is_state, make_frozen
from .._trees.flattening import unflatten_frozen


class Result(NamedTuple):
    """Where a result of a compiled call is to live; `None` for anywhere.

    `operand` is the position of the array of a written state that it replaces, if its shape is the
    same.
    """

    operand: int | None
    sharding: Any


class Placement:
    """Where the operands and results of calls of one structure live."""

    def __init__(self, program: Donation, into: Wanted | None, out: Wanted | None):
        self.program = program
        self.into = into
        self.out = out
        static = {index for index, _ in program.statics}
        n_leaves = len(program.signature.layout.slot_of_leaf)
        #: The leaves of the call that are operands.
        self.operands = [i for i in range(n_leaves) if i not in static]
        self._entries = [None] * n_leaves if into is None else self._spread(into)

    # Operands -----------------------------------------------------------------------------------

    def of_operands(self, arrays: Sequence[Any]) -> list[Any]:
        """The wanted sharding of each operand, or `None`."""
        if self.into is None:
            return [None] * len(arrays)
        program, layout = self.program, self.program.signature.layout
        leaves = program.leaves(arrays)
        what = f"in_shardings of {program.described.fn}"

        def wanted(index: int) -> Any:
            slot, key_path, leaf = (
                layout.slot_of_leaf[index],
                layout.key_path_of_leaf[index],
                leaves[index],
            )
            if self._entries[index] is None:
                return None
            if slot is None:
                path, item = to_path(program.signature.within(key_path)), leaf
                place = f"`{program.place_of(key_path)}`"
            else:
                path, item = program.signature.path(slot.index), slot.state(leaves)
                place = f"`{program.place(slot.index)}` ({slot.kind.__name__})"
            sharding = resolved(self._entries[index], path, item, leaf, place, what)
            _refuse_elsewhere(leaf, sharding, place, what)
            return sharding

        return list(map(wanted, self.operands))

    def _spread(self, into: Wanted) -> list[Any]:
        """The entry of each leaf of the call."""
        signature, described = self.program.signature, self.program.described
        n_leaves, n = len(signature.layout.slot_of_leaf), signature.n_args
        if into.rules is not None:
            return [into.rules] * n_leaves
        entries: list[Any] = [None] * n_leaves
        prefix = into.prefix
        if not isinstance(prefix, tuple | list):
            start, stop = signature.starts[0], signature.starts[-1]
            entries[start:stop] = [prefix] * (stop - start)
            return entries
        if len(prefix) != n:
            raise ValueError(
                f"in_shardings has {len(prefix)} entries, but {described.fn} was called with {n} "
                "positional arguments, not counting a bound module. Give one entry for "
                f"each, None if nothing is wanted: in_shardings=({'None, ' * n})."
            )
        args = unflatten_frozen(signature.treedef, range(n_leaves))[ARGS]
        for position, (one, arg) in enumerate(zip(prefix, args, strict=True)):
            name = described.names[position] if position < len(described.names) else f"args[{position}]"
            try:
                spread_prefix(one, arg, entries, signature.starts[position], _of_all)
            except ValueError:
                raise ValueError(
                    f"in_shardings for `{name}` of {described.fn} is not a prefix of its structure, "
                    f"{jtu.tree_structure(arg)}. Give one entry for the whole argument, rules by "
                    f"filter, or the result of ps.shardings({name}, rules, mesh)."
                ) from None
        return entries

    # Results ------------------------------------------------------------------------------------

    def of_results(
        self, note: Note, outs: Sequence[Any], incoming: Sequence[Any], arrays: Sequence[Any]
    ) -> list[Result]:
        """Where each result is to live.

        `outs` are the shapes of the results, and `incoming` the shardings of the operands that are to be
        kept, or `None`.
        """
        n_out = len(outs) - sum(count for _, _, count in note.writes)
        output = [Result(None, sharding) for sharding in self._of_output(note, outs[:n_out])]
        return output + self._of_writes(note, outs[n_out:], incoming, arrays)

    def _of_output(self, note: Note, outs: Sequence[Any]) -> list[Any]:
        if self.out is None:
            return [None] * len(outs)
        supply = iter(outs)
        leaves = [next(supply) if leaf is NEXT else leaf for leaf in note.out_leaves]
        tree = unflatten_frozen(note.out_treedef, leaves)
        entries: list[Any] = [None] * len(leaves)
        fn = self.program.described.fn
        try:
            spread_prefix(self.out.prefix, tree, entries, 0, _of_all)
        except ValueError:
            raise ValueError(
                f"out_shardings of {fn} is not a prefix of the structure of its output, "
                f"{note.out_treedef}. Give one entry for the whole output, or rules by filter; written "
                "states are not part of the output: use rules for them."
            ) from None
        found: list[Any] = []
        for key_path, item in jtu.tree_flatten_with_path(tree, is_leaf=is_state)[0]:
            kind = f" ({type(item).__name__})" if isinstance(item, State) else ""
            place = f"`{to_place('out', key_path)}`{kind}"
            for leaf in jtu.tree_leaves(item):
                entry, what = entries[len(found)], f"out_shardings of {fn}"
                is_array = note.out_leaves[len(found)] is NEXT
                path = to_path(key_path)
                found.append(resolved(entry, path, item, leaf, place, what) if is_array else None)
        return [s for s, leaf in zip(found, note.out_leaves, strict=True) if leaf is NEXT]

    def _of_writes(
        self, note: Note, outs: Sequence[Any], incoming: Sequence[Any], arrays: Sequence[Any]
    ) -> list[Result]:
        program, rules = self.program, None if self.out is None else self.out.rules
        position_of = {leaf: position for position, leaf in enumerate(self.operands)}
        result: list[Result] = []
        for index, treedef, count in note.writes:
            slot = program.signature.layout.slots[index]
            new = outs[len(result) : len(result) + count]
            value = new[0] if treedef is None else treedef.unflatten(new)
            path, state = program.signature.path(index), make_frozen(slot.kind, slot.tag, value)
            rule = None if rules is None else rules.match(path, state)
            place = f"`{program.place(index)}` ({slot.kind.__name__})"
            what = f"out_shardings of {program.described.fn}"
            for i, leaf in enumerate(new):
                at = position_of.get(slot.start + i) if count == slot.stop - slot.start else None
                if at is not None and tuple(arrays[at].shape) != tuple(leaf.shape):
                    at = None
                kept = None if at is None else incoming[at]
                wanted = kept if rule is None else resolved(rules, path, state, leaf, place, what)
                result.append(Result(at, wanted))
        return result


def spread_sharding(sharding: Any) -> Any:
    """A sharding that is worth keeping, over several devices of a mesh; otherwise `None`."""
    several = isinstance(sharding, NamedSharding) and sharding.num_devices > 1
    return sharding if several else None


def whole_on(mesh: Any) -> NamedSharding:
    """The sharding of an array that is whole on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())


def _of_all(entry: Any, leaves: Sequence[Any]) -> list[Any]:
    return [entry] * len(leaves)


def _refuse_elsewhere(leaf: Any, wanted: Any, place: str, what: str) -> None:
    """Raise if an array is already placed differently, as `jax.jit` does."""
    if wanted is None or not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return
    if leaf.committed and not leaf.sharding.is_equivalent_to(wanted, leaf.ndim):
        here = leaf.sharding
        lies = f"by {spec_code(here.spec)}" if isinstance(here, NamedSharding) else f"on {here}"
        spec = spec_code(wanted.spec) if isinstance(wanted, NamedSharding) else wanted
        raise ValueError(
            f"{place} was put {lies}, but {what} wants {spec}. Put it there once, before the call: "
            f"ps.shard(tree, {{{spec}: ...}}, mesh); or leave out the entry that does not fit."
        )
