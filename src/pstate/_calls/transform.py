"""The base of all transforms: a stateful function in, a stateful function out.

A transform is a pytree whose one child is the callable that it wraps; its options are static. A
call of it is *taken apart* and *run*, and its writes are *given back*: by `pure`, which has a
contract for this, or else into the live states that came in.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, overload

import jax.tree_util as jtu

from .._ground.tracebacks import hide_own_frames
from .call import Call
from .callables import Method, Wrapper, anchor_of, as_tree, as_users
from .contract import Carrier, Contract
from .giving_back import line_giving_back, refuse_echo, write_back
from .naming import name_of, signature
from .notes import Note
from .running import Run, Writes
from .static_part import StaticPart
from .typed import C, Instance, Out, P, Q, R


_set = object.__setattr__

#: What a transform tells of the function that it transforms.
_TOLD = ("__module__", "__qualname__")


class _OfWrapped:
    """An attribute that a transform takes from the callable that it wraps."""

    def __init__(self, get: Callable[[Any], Any], *own: Any):
        self._get = get
        self._own = own

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None:
            return self._get(instance)
        if not self._own:
            raise AttributeError("a class of transforms wraps nothing")
        return self._own[0]


class Transform(Wrapper, Generic[P, R, C]):
    """A callable made from a callable. It is hashed by identity, like a function, so JAX accepts it.

    The options of a subclass are its `__slots__`, and keywords of its constructor.
    """

    # The dictionary is for `__module__` and `__qualname__`: no property can have these names. A
    # `__getattr__` would do for the latter, but it makes every attribute slower to read.
    __slots__ = ("__dict__", "__weakref__", "_as_code", "_memo", "_static_part", "fun")

    fun: Callable[..., Any]
    #: Its static part, once it is needed.
    _static_part: StaticPart | None
    #: The transform as code, once it is needed. A chain of transforms would be read many times.
    _as_code: str | None
    #: What calls remember from one to the next.
    _memo: Any
    #: The names of the options.
    _static: ClassVar[tuple[str, ...]] = ()

    def __init__(self, fun: Any, **options: Any):
        self._fill(as_tree(fun), [options[name] for name in self._static])

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        below = [c for c in reversed(cls.__mro__) if issubclass(c, Transform) and c is not Transform]
        cls._static = tuple(name for c in below for name in c.__dict__.get("__slots__", ()))
        cls.__doc__ = _OfWrapped(  # pyright: ignore[reportAttributeAccessIssue]
            lambda transform: anchor_of(transform.fun).__doc__, cls.__doc__
        )
        jtu.register_pytree_with_keys(cls, _flatten_with_keys, cls._unflatten, flatten_func=_flatten)

    def _fill(self, fun: Any, options: Iterable[Any]) -> None:
        _set(self, "fun", fun)
        _set(self, "_memo", None)
        _set(self, "_static_part", None)
        _set(self, "_as_code", None)
        for name, option in zip(self._static, options, strict=True):
            _set(self, name, option)
        own = self.__dict__
        if isinstance(fun, Transform):
            own.update({name: told for name, told in fun.__dict__.items() if name in _TOLD})
            return
        anchor = anchor_of(fun)
        for name in _TOLD:
            told = getattr(anchor, name, None)
            if told is not None:
                own[name] = told

    @classmethod
    def _unflatten(cls, static: Any, children: Iterable[Any]) -> Any:
        (fun,) = children
        return static.around(fun, cls._make) if type(static) is StaticPart else cls._make(static, fun)

    @classmethod
    def _make(cls, options: Iterable[Any], fun: Any) -> Any:
        transform = object.__new__(cls)
        transform._fill(fun, options)
        return transform

    def _set_static(self, static: StaticPart) -> None:
        _set(self, "_static_part", static)

    def _of(self, fun: Any) -> Any:
        """The same transform, of another callable."""
        return self._make(_options_of(self), fun)

    # Calling ------------------------------------------------------------------------------------

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        try:
            call = self._take_apart(args, kwargs)
            out, writes = self._run(call)
            write_back(call, writes, lambda index: self._line(call, index))
            return out
        except BaseException as error:
            hide_own_frames(error)
            raise

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Call(self.fun, args, kwargs)

    def _run(self, call: Call, contract: Contract | None = None) -> tuple[Any, Writes]:
        """Run a call of the wrapped callable: its output, and what was written.

        `contract` is that of the `pure` that gives back the written states, if there is one.
        """
        raise NotImplementedError

    def _call_flat(
        self, carrier: Carrier, tree: Any, flat: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """`(out, tree)` if there is a fast path for a call that gives back this tree; else `None`.

        The tree is argument 0, or (`carrier` is `None`) the module that the callable is bound to. `flat`
        is the tree if it is packed, or what is remembered of it.
        """
        return None

    def _refuse(self, call: Call, found: Note | Run, contract: Contract | None) -> None:
        """Raise if a state that is given back is also in the output; and for lost edits."""
        if found.edited and contract is not None:
            contract.refuse_edits(found.edited, self._code())
        if found.echoed:
            given = contract is not None
            echoed = [e for e in found.echoed if given or call.states[e[0]]._cell is not None]
            refuse_echo(call, echoed, lambda index: self._line(call, index))

    # What it is called --------------------------------------------------------------------------

    def _code(self) -> str:
        """The transform as code, for messages."""
        return f"ps.{_class_name(self).lower()}({code_of(self.fun)})"

    def _line(self, call: Call, index: int) -> str:
        """The line of code that gives back the state of a slot, for messages."""
        return line_giving_back(call, code_of(self), index)

    def __repr__(self) -> str:
        return self._code()

    __signature__ = _OfWrapped(lambda transform: signature(transform.fun))
    __wrapped__ = _OfWrapped(lambda transform: as_users(transform.fun))

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(anchor_of(self.fun), "__name__", _class_name(self))

    # As an object -------------------------------------------------------------------------------

    if TYPE_CHECKING:  # see `typed.py`

        @property
        def __class__(self) -> type[C]: ...  # pyright: ignore[reportIncompatibleMethodOverride]

        @overload
        def __get__(self, instance: None, owner: Any = None) -> "Transform[P, R, C]": ...
        @overload
        def __get__(
            self: "Transform[Concatenate[Any, Q], Out, Any]", instance: Instance, owner: Any = None
        ) -> "Transform[Q, Out, Instance]": ...

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # On a method in a class body, `self` is the implicit first argument.
        if instance is None:
            return self
        inner = self.fun
        return self._of(
            inner.__get__(instance) if isinstance(inner, Transform) else Method(inner, instance)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{self!r} is immutable; got {name}={value!r}. Make another with the options that you need."
        )

    def __reduce__(self) -> Any:
        if _named_alike(self) is self:
            return self.__dict__["__qualname__"]
        return self._maker(), (self.__wrapped__,)

    def _maker(self) -> Callable[[Any], Any]:
        """The public function that makes this transform from its callable, for pickles."""
        raise TypeError(f"{self!r} is part of a call, and cannot be pickled.")

    # A callable equals only itself, whatever arrays it holds.
    def __hash__(self) -> int:
        return object.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _class_name(transform: Any) -> str:
    return type(transform).__name__


_FUN = jtu.GetAttrKey("fun")


def _options_of(transform: Any) -> tuple[Any, ...]:
    return tuple([getattr(transform, name) for name in transform._static])


def _static_of(transform: Any) -> Any:
    """The static part of a transform; its options as they are, if one is unhashable."""
    static = transform._static_part
    if static is None:
        options = _options_of(transform)
        try:
            static = StaticPart(transform, options)
        except TypeError:
            return options
        transform._set_static(static)
    return static


def _flatten(transform: Any) -> tuple[tuple[Any], Any]:
    return (transform.fun,), _static_of(transform)


def _flatten_with_keys(transform: Any) -> tuple[Any, Any]:
    return ((_FUN, transform.fun),), _static_of(transform)


def code_of(fn: Any) -> str:
    """A callable as code, `ps.vmap2(step)`."""
    if not isinstance(fn, Transform):
        return name_of(fn)
    code = fn._as_code
    if code is None:
        code = name_of(fn) if _is_decorated(fn) else fn._code()
        _set(fn, "_as_code", code)
    return code


def _is_decorated(fn: Transform) -> bool:
    """Whether the function's name refers to a transform of it, as after `@ps.vmap2`."""
    found = _named_alike(fn)
    return isinstance(found, Transform) and anchor_of(found) is anchor_of(fn)


def _named_alike(fn: Transform) -> Any:
    """The object that the function's name refers to."""
    anchor = anchor_of(fn)
    first, *rest = getattr(anchor, "__qualname__", "").split(".")
    found = getattr(anchor, "__globals__", {}).get(first)
    for name in rest:
        found = getattr(found, "__dict__", {}).get(name)
    return found
