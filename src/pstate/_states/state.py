"""`State`: a pytree node with one child, its value, and static tags.

A state is *frozen*, which is the normal case, or *live*: then it shares a cell with a recording, which
takes its writes (`cell.py`).

Invariants:

- `tree_unflatten` validates nothing: JAX and Equinox put placeholders into trees.
- An empty state's child is `None`, so it has no leaves but otherwise the structure of a filled one.
- A copy made by flattening and unflattening is live only if its child is the cell's own value.
"""

import functools as ft
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, overload

import jax.tree_util as jtu
import wadler_lindig as wl
from jax import Array
from jax.typing import ArrayLike
from typing_extensions import TypeVar

from .._ground.annotations import annotation
from .._ground.errors import FrozenStateError, UninitializedStateError
from .._ground.public import public
from .._ground.values import as_value, copy, is_leaf, same
from .cell import Cell, Recording
from .deferred import Deferred
from .exporting import register_for_export
from .forgotten_value import ForgottenValue
from .messages import empty_message, frozen_message, kind_code
from .showing import doc_of, text_of, treescope_of
from .threads import local, note_read, watch_read


#: What a state holds: arrays, or a pytree of them. Numbers become arrays.
if TYPE_CHECKING:
    V = TypeVar("V", default=Array)
else:  # without the default, by which beartype would check every value on Python 3.13
    V = TypeVar("V")
S = TypeVar("S", bound="State[Any]")
Tag = str | Iterable[str] | None

_VALUE_KEY = jtu.GetAttrKey("value")
_new = object.__new__


@public
class State(ForgottenValue, Generic[V]):
    """One value of a model that calls may change.

    States are immutable. Inside `pstate.record` or a function run by `pstate.pure` they are live:
    assigning to `.value` is recorded, and the new value comes back in the returned tree.

    The class of a state is its kind, by which filters select; subclass one to make your own:
    `class Membrane(ps.HiddenState): ...`.

    **Arguments:**

    - `value`: any pytree of arrays. Python numbers and NumPy arrays become strongly typed JAX
        arrays; containers are copied. Left out (or `None`), the state is declared but empty.
    - `tag`: a string, or several, by which filters can select the state.

    **Raises:** `TypeError` for a value that is not a pytree of arrays.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> state = ps.State(jnp.zeros(3), tag="trace")
        >>> state
        State(f32[3], tag='trace')
        >>> state.replace(jnp.ones(2)).value
        Array([1., 1.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_cell", "_child", "_tag")

    _cell: Cell | None
    _child: Any
    _tag: tuple[str, ...]

    if TYPE_CHECKING:

        @overload
        def __init__(self, value: ArrayLike | None = None, *, tag: Tag = ()): ...
        @overload
        def __init__(self, value: V, *, tag: Tag = ()): ...

    def __init__(self, value: Any = None, *, tag: Tag = ()):
        tags = as_tags(tag)
        for catcher in local.catchers:
            tags += tuple(t for t in catcher.tags if t not in tags)
        _set_child(self, self._as_value(value, None))
        _set_cell(self, None)
        _set_tag(self, tags)
        for catcher in local.catchers:
            catcher.states.append(self)
        if local.watch is not None:
            local.watch.born.add(self)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        _register(cls)

    if not TYPE_CHECKING:
        # To a type checker `State[V]` is generic; at run time `State[hint]` is an annotation that
        # jaxtyping and beartype check.
        def __class_getitem__(cls, hint: Any) -> Any:
            return cls if hint is Any or isinstance(hint, TypeVar) else annotation(cls, hint)

    @property
    def value(self) -> V:
        """The value: any pytree of arrays. A container is a copy.

        **Raises:** `UninitializedStateError` if the state is empty. Assigning raises
        `FrozenStateError` outside a recording, and `TraceScopeError` under a trace or in a thread
        other than the recording's.
        """
        cell = self._cell
        if local.threaded:
            note_read(self)
        value = self._received()
        value = copy(value) if cell is None else cell.hand_out()
        if value is None:
            raise UninitializedStateError(empty_message(self))
        return value

    @value.setter
    def value(self, value: V | ArrayLike) -> None:
        cell = self._cell
        if cell is None:
            raise FrozenStateError(frozen_message(self))
        cell.check_writable(type(self).__name__)
        cell.put(self._as_value(value, cell.value))

    @property
    def tag(self) -> tuple[str, ...]:
        """The tags. Static: they are part of the tree's structure."""
        return tuple(self._tag)

    def replace(self: S, value: Any) -> S:
        """A new frozen state of the same kind and tags, with another value."""
        state = make_frozen(type(self), self.tag, self._as_value(value, self._peek()))
        if local.watch is not None:
            local.watch.born.add(state)
        return state

    def _as_value(self, value: Any, old: Any) -> Any:
        """A given value in the form in which the state keeps it; `old` is the value before."""
        if not is_leaf(value):
            _refuse_states_inside(type(self), value)
        return as_value(value, old)

    def _received(self) -> Any:
        """The value as it is, `None` if empty. A body that is being compiled notices the read."""
        value, watch, cell = self._peek(), local.watch, self._cell
        # A live state from outside the compiled body is captured, wherever it was last written.
        if watch is not None and (cell is None or not cell.written or cell.recording.watch is not watch):
            watch_read(self, value)
        return value

    def _peek(self) -> Any:
        """The value as it is, `None` if empty, without any check or copy."""
        cell = self._cell
        if cell is not None:
            return cell.get()
        if type(self._child) is Deferred:
            _set_child(self, self._child.get())
        return self._child

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "value":
            raise FrozenStateError(
                f"The only attribute of `{type(self).__name__}` that can be assigned is `value`; got "
                f"{name!r}. Put static data in the tag: {kind_code(type(self))}(value, tag=...)."
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenStateError(
            f"Attribute {name!r} of `{type(self).__name__}` cannot be deleted. To make an empty state, "
            f"write {kind_code(type(self))}()."
        )

    def __getstate__(self) -> tuple[tuple[str, ...], Any]:
        return self.tag, self._peek()

    def __setstate__(self, state: tuple[tuple[str, ...], Any]) -> None:
        tag, child = state
        _set_child(self, child)
        _set_cell(self, None)
        _set_tag(self, tag)

    def __copy__(self: S) -> S:
        return make_frozen(type(self), self.tag, copy(self._peek()))

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        return doc_of(self, **kwargs)

    def __repr__(self) -> str:
        return text_of(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Callable[..., Any]) -> Any:
        return treescope_of(self, path, subtree_renderer)


_set_child = State.__dict__["_child"].__set__
_set_cell = State.__dict__["_cell"].__set__
_set_tag = State.__dict__["_tag"].__set__


def _refuse_states_inside(cls: type, value: Any) -> None:
    if isinstance(value, State):
        raise TypeError(
            f"A state cannot hold a state; got {value!r}. Take its value: {kind_code(cls)}(other.value)."
        )
    for key_path, item in jtu.tree_flatten_with_path(value, is_leaf=is_state)[0]:
        if isinstance(item, State):
            raise TypeError(
                f"A state holds a pytree of arrays, not of states; got {item!r} at "
                f"`.value{jtu.keystr(key_path)}`. Keep the tree of states in a separate field."
            )


def as_tags(tag: Tag) -> tuple[str, ...]:
    """The tags in the form in which a state keeps them."""
    several = () if tag is None else tag if isinstance(tag, Iterable) else (tag,)
    tags = (tag,) if isinstance(tag, str) else tuple(dict.fromkeys(several))
    if not all(isinstance(t, str) for t in tags):
        raise TypeError(f"A tag is a string, or several; got {tag!r}. Write tag='name'.")
    return tags


def make_frozen(cls: type, tag: tuple[str, ...], child: Any) -> Any:
    """A frozen state, without looking at the child."""
    state = _new(cls)
    _set_child(state, child)
    _set_cell(state, None)
    _set_tag(state, tag)
    return state


def make_live(cls: type, recording: Recording, tag: tuple[str, ...], child: Any) -> Any:
    state = _new(cls)
    _set_child(state, None)
    _set_cell(state, Cell(child, tag, recording))
    _set_tag(state, tag)
    return state


# A state as a pytree node --------------------------------------------------------------------------


def _flatten(state: State) -> tuple[tuple[Any], tuple[str, ...]]:
    # Equinox takes modules apart whenever it binds a method: that looks at a deferred key, but does
    # not count as drawing from it. But the leaves of a state that did not come in through the
    # arguments are read.
    cell = state._cell
    collected = local.collected
    if local.threaded:
        note_read(state)
    if collected is not None:
        # Collecting takes deferred values as they are and keeps them deferred.
        collected.append(state)
        return ((state._child,), state._tag) if cell is None else ((cell.value,), cell.link)
    child = state._child if cell is None else cell.value
    if type(child) is Deferred:
        child = child.value()
    watch = local.watch
    if watch is not None and (cell is None or cell.recording.watch is not watch):
        watch_read(state, child)
    return (child,), state._tag if cell is None else cell.link


def _flatten_with_keys(state: State) -> tuple[Any, tuple[str, ...]]:
    (child,), tag = _flatten(state)
    return ((_VALUE_KEY, child),), tag


def _unflatten(cls: type, tag: tuple[str, ...], children: Iterable[Any]) -> Any:
    (child,) = children
    rebuild, watch = local.rebuild, local.watch
    if rebuild is not None:
        state = rebuild(cls, tag, child)
        if watch is not None:
            watch.born.add(state)
        return state
    state = _new(cls)
    _set_child(state, child)
    _set_tag(state, tag)
    if watch is not None:
        watch.born.add(state)  # its leaves came from somewhere, and that read was watched
    if type(tag) is tuple:
        _set_cell(state, None)
    else:
        cell = tag.cell()  # pyright: ignore[reportAttributeAccessIssue]
        _set_cell(state, cell if cell is not None and _is_value_of(child, cell) else None)
    return state


def _is_value_of(child: Any, cell: Cell) -> bool:
    # A container is rebuilt on the way, around the same array objects.
    value = cell.value
    if type(value) is Deferred:
        return child is value or (child is not None and child is value.computed)
    return child is value or (not is_leaf(child) and same(child, value))


def _register(cls: type) -> None:
    jtu.register_pytree_with_keys(
        cls, _flatten_with_keys, ft.partial(_unflatten, cls), flatten_func=_flatten
    )
    register_for_export(cls)


_register(State)


def is_plain(state: Any) -> bool:
    """Whether a state is not live, and is not a copy of one that was; and its value is computed."""
    return state._cell is None and type(state._tag) is tuple and type(state._child) is not Deferred


def is_state(x: Any) -> bool:
    """Whether `x` is a state. Meant for `is_leaf=`."""
    return isinstance(x, State)
