"""A call taken apart: the leaves, the structure and the states of `(callable, args, kwargs)`.

Everything that runs a stateful function, `pure` and each transform, takes the same three steps:
take the call apart, here; run something on the leaves, which also says which states were written;
and give back the result (`giving_back.py`).
"""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core

from .._ground.errors import StateError
from .._states.threads import Watch, local, watch_read
from .._trees.aliases import find_aliases, is_live
from .._trees.flattening import collect
from .._trees.guard import Guard
from .._trees.known import Known, Lent, known
from .._trees.leaves import LeafKinds, kinds_of
from .._trees.packed import Packed, find_aliases_of_packed, met_in, owners, spread
from .._trees.slots import states_of
from .naming import Names, names_of
from .signature import Signature, signature_of, signature_of_known


#: What JAX says about a buffer that is gone.
_GIVEN_UP = re.compile("^Array has been deleted with shape=|buffer has been deleted or donated", re.I)

_tag_of = operator.attrgetter("_tag")


def _known_among(args: tuple[Any, ...]) -> tuple[Known | None, ...]:
    """What is remembered of each argument; nothing at all if no argument is known."""
    found = tuple(map(known, args))
    return found if any(found) else ()


class Call:
    """One call of a stateful function.

    `leaves`, `treedef` and `states` are those of `(fn, args, kwargs)`. Leaves may be deferred values.
    `known` has what is remembered of arguments, by their positions: these are not taken apart.
    """

    __slots__ = (
        "_aliases",
        "_collected",
        "_signature",
        "_states",
        "_treedef",
        "args",
        "fn",
        "known",
        "kwargs",
        "leaves",
    )

    def __init__(
        self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], uses_states: bool = False
    ):
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        # A running function is told about each state of another tree that it reads.
        # Nor does it pay to look for known trees if each of their states will be needed.
        self.known = () if local.threaded or uses_states else _known_among(args)
        if self.known:
            pairs = zip(args, self.known, strict=True)
            args = tuple([x if one is None else Lent(one) for x, one in pairs])
        self.leaves, self._treedef, self._collected = collect((fn, args, kwargs))
        self._aliases: Any = None
        self._signature: Signature | None = None
        self._states: list[Any] | None = None

    @property
    def treedef(self) -> Any:
        """The structure of the call."""
        return self.signature.treedef if self.known else self._treedef

    @property
    def states(self) -> list[Any]:
        """The states that came in. Those of packed trees have no values."""
        states = self._states
        if states is None:
            met = self._met()
            states = spread(met) if self.has_packed else met
            if len(states) != len(self.signature.layout.slots):
                # A node took its children apart while it was taken apart itself.
                states = states_of((self.fn, self.args, self.kwargs))
            self._states = states
        return states

    def watch_reads(self, indices: Iterable[int], watch: Watch) -> None:
        """Tell a body that is being compiled that the states at these indices were read for it."""
        owned = owners(self._met()) if self.has_packed else self.states
        for index in indices:
            owner = owned[index]
            cell = owner._cell
            if cell is not None and cell.recording.watch is watch:
                continue  # it came in through the arguments of the body
            value = self.signature.layout.slots[index].value(self.leaves)
            if type(owner) is not Packed:
                watch_read(owner, value)
            elif owner not in watch.born:
                watch_read(self.state(index), value)

    def _met(self) -> list[Any]:
        """The states and packed trees that came in."""
        return met_in((self.fn, self.args, self.kwargs)) if self.known else self._collected

    def state(self, index: int) -> Any:
        """The state of a slot with its value, packed or not."""
        if self.has_packed and self.states[index]._cell is None:
            return self.signature.layout.slots[index].state(self.leaves)
        return self.states[index]

    @property
    def has_packed(self) -> bool:
        """Whether any tree that came in is packed."""
        return self._collected.has_packed

    @property
    def is_live(self) -> bool:
        """Whether any state that came in is live."""
        return is_live(self._collected)

    @property
    def is_plain(self) -> bool:
        """Whether no state that came in is packed, or is or ever was live."""
        states = self._collected
        plain = not is_live(states) and set(map(type, map(_tag_of, states))) <= {tuple}
        return plain and not self.has_packed

    @property
    def aliases(self) -> tuple[tuple[int, int], ...]:
        """Pairs of slots that hold the same state."""
        if self._aliases is None:
            if not self._collected and sum(one is not None for one in self.known) == 1:
                self._aliases = ()  # a known tree has none
            elif self.has_packed:
                self._aliases = find_aliases_of_packed(self._met())
            else:
                self._aliases = find_aliases(self.states)
        return self._aliases

    @property
    def signature(self) -> Signature:
        # Looked up once per call: comparing two structures of 100 modules costs 70 us.
        if self._signature is None:
            of = signature_of_known if self.known else signature_of
            self._signature = of(self._treedef, (self.fn, self.args, self.kwargs))
        return self._signature

    @property
    def kinds(self) -> LeafKinds:
        """Which leaves are operands."""
        return kinds_of(self.leaves)

    @property
    def names(self) -> Names:
        return names_of(self.fn)

    def place(self, index: int) -> str:
        """A slot as code, `counter.layers[0].count`."""
        return self.place_of(self.signature.layout.slots[index].key_path)

    def place_of(self, key_path: Sequence[Any]) -> str:
        """A key path of the call as code."""
        return self.signature.place(key_path, self.names)

    def guard(self, writes: Any = ...) -> Guard:
        """The guard with which recordings of this call refuse writes."""
        return Guard(
            self.place,
            lambda index: self.signature.path(index),
            lambda index: self.states[index],
            self.aliases,
            writes,
        )

    def explain(self, error: Exception, fn_code: Callable[[], str]) -> None:
        """Say more if an error is JAX's about a donated buffer. Any other is the user's.

        **Raises:** `StateError`.
        """
        if _GIVEN_UP.search(str(error)):
            self.refuse_deleted(fn_code)

    def refuse_deleted(self, fn_code: Callable[[], str]) -> None:
        """Raise if a buffer of the call was donated before."""
        for leaf, key_path in zip(self.leaves, self.signature.layout.key_path_of_leaf, strict=True):
            is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
            if is_array and leaf.is_deleted():
                place = self.place_of(key_path)
                raise StateError(
                    f"`{place}` was donated to an earlier call and its buffer is gone, so "
                    f"{fn_code()} cannot read it. Go on with the tree that the earlier call gave back, "
                    "or do not donate: leave donate and donate_argnums out."
                ) from None
