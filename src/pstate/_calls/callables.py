"""Callables as pytrees.

A callable may carry states: a bound method those of its module, a callable module its own, a
partial those of its arguments. Here each is treated as a pytree, so that a call is just
`(callable, args, kwargs)`; a plain function is a static leaf of that tree.

The *carrier* of a callable is the part that is threaded and given back: the module of a bound
method, a callable module itself, a partial that holds states. A *transform* wraps a callable, and
its carrier is the carrier of what it wraps. The *anchor* is the innermost function, to which
compiled programs belong.
"""

import functools as ft
import types
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._ground.values import is_leaf
from .._states.state import is_state
from .._trees.packed import Packed


class Wrapper:
    """The base of transforms: a callable whose field `fun` is the callable that it wraps."""

    __slots__ = ()

    fun: Callable[..., Any]

    @property
    def beside(self) -> tuple[Callable[..., Any], ...]:
        """Functions that may run instead of the innermost one."""
        return ()


class Method:
    """A function bound to a pytree, which is its implicit first argument."""

    __slots__ = ("function", "instance")

    def __init__(self, function: Callable[..., Any], instance: Any):
        self.function = function
        self.instance = instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.instance, *args, **kwargs)


jtu.register_pytree_with_keys(
    Method,
    lambda m: (((jtu.GetAttrKey("instance"), m.instance),), m.function),
    lambda function, children: Method(function, *children),
)


class Partial:
    """A partial whose function and arguments are all children.

    `cls` is the type that the user made: `functools.partial`, `jax.tree_util.Partial` or a
    subclass.
    """

    __slots__ = ("args", "cls", "function", "keywords")

    def __init__(self, cls: type, function: Any, args: tuple[Any, ...], keywords: dict[str, Any]):
        self.cls = cls
        self.function = function
        self.args = args
        self.keywords = keywords

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*self.args, *args, **{**self.keywords, **kwargs})

    def restore(self) -> Any:
        """The partial in the user's own type."""
        function = self.function
        while isinstance(function, Partial):
            function = function.restore()
        return self.cls(function, *self.args, **self.keywords)


_FUNC, _ARGS, _KEYWORDS = (jtu.GetAttrKey(name) for name in ("func", "args", "keywords"))

jtu.register_pytree_with_keys(
    Partial,
    lambda p: (((_FUNC, p.function), (_ARGS, p.args), (_KEYWORDS, p.keywords)), p.cls),
    lambda cls, children: Partial(cls, *children),
)


class Several:
    """Several callables of one call, such as the branches of `ps.cond`.

    `lead` names arguments that come before those of the callables.
    """

    __slots__ = ("callables", "lead")

    def __init__(self, callables: tuple[Any, ...], lead: tuple[str, ...] = ()):
        self.callables = callables
        self.lead = lead


jtu.register_pytree_with_keys(
    Several,
    lambda s: ([(jtu.SequenceKey(i), fn) for i, fn in enumerate(s.callables)], s.lead),
    lambda lead, children: Several(tuple(children), lead),
)


def as_tree(fn: Any) -> Any:
    """The callable as a pytree, if it carries anything.

    **Raises:** `TypeError` for an object that is not callable.
    """
    if isinstance(fn, Several):
        return fn
    if not callable(fn):
        raise TypeError(
            f"A function, a bound method or a callable module was expected; got {fn!r} of type "
            f"{type(fn).__name__}. Pass options by keyword: @ps.vmap2(in_axes=1)."
        )
    if isinstance(fn, ft.partial):
        return Partial(type(fn), as_tree(fn.func), fn.args, dict(fn.keywords))
    if isinstance(fn, types.MethodType) and not is_leaf(fn.__self__):
        return Method(fn.__func__, fn.__self__)
    return fn


def is_bound_method(fn: Any) -> bool:
    # Equinox binds methods of modules to a module of its own, which looks like a method.
    return isinstance(fn, eqx.Module) and hasattr(fn, "__self__") and hasattr(fn, "__func__")


def is_callable_module(fn: Any) -> bool:
    # `eqx.filter_jit(f)` and similar ones are modules too, but only wrap the function `f`.
    return callable(fn) and not is_leaf(fn) and not hasattr(fn, "__wrapped__")


#: Where a wrapper remembers the callable inside all wrappers.
_INNERMOST = "innermost"


def innermost(fn: Any) -> Any:
    """The callable inside all wrappers.

    Each wrapper remembers it: a step of a call would otherwise walk the whole chain, and a call of
    many nested transforms takes many steps for each of them.
    """
    inner = fn
    while isinstance(inner, Wrapper):  # not by recursion: a chain may be longer than Python's stack
        inner = vars(inner).get(_INNERMOST, inner.fun)
    if inner is not fn:
        vars(fn)[_INNERMOST] = inner
    return inner


def carrier_of(fn: Any) -> Any:
    """The part of a callable that is threaded and given back, or `None`."""
    match fn:
        case Wrapper():
            return carrier_of(innermost(fn))
        case Method():
            return fn.instance
        case Partial():
            return fn if _holds_states(fn) else carrier_of(fn.function)
        case _ if is_bound_method(fn):
            return fn.__self__
        case _ if is_callable_module(fn):
            return fn
        case _:
            return None


def directly_bound(fn: Any) -> Any:
    """The module of a bound method, or a callable module, without anything around it; or `None`."""
    if type(fn) is types.FunctionType or isinstance(fn, Wrapper | Partial):
        return None
    return carrier_of(fn)


def restore(carrier: Any) -> Any:
    """A carrier in the user's own type."""
    return carrier.restore() if isinstance(carrier, Partial) else carrier


def as_users(fn: Any) -> Any:
    """A callable in the form in which the user made it."""
    match fn:
        case Partial():
            return fn.restore()
        case Method():
            return types.MethodType(fn.function, fn.instance)
        case _:
            return fn


def carrier_depth(fn: Any) -> int:
    """How many entries of a key path lead from the callable to its carrier."""
    depth = 0
    while isinstance(fn, Wrapper):
        depth, fn = depth + 1, fn.fun
    return depth + _depth_in(fn)


def _depth_in(fn: Any) -> int:
    match fn:
        case Method():
            return 1
        case Partial():
            return 0 if _holds_states(fn) else 1 + carrier_depth(fn.function)
        case _ if is_bound_method(fn):
            return 1
        case _:
            return 0


def _holds_states(tree: Any) -> bool:
    # Not by flattening the states: a running call would take that for a read.
    is_one = lambda x: is_state(x) or type(x) is Packed
    return any(map(is_one, jtu.tree_leaves(tree, is_leaf=is_one)))


def anchor_of(fn: Any) -> Any:
    """The innermost function of a callable."""
    match fn:
        case Wrapper():
            # Not remembered itself: the `__call__` of a class may be replaced.
            return anchor_of(innermost(fn))
        case Method() | Partial():
            return anchor_of(fn.function)
        case Several():
            # Programs live and die with their anchor, and keep the others alive. So prefer one with a
            # closure, which is likely to be made again on each call.
            anchors = [anchor_of(one) for one in fn.callables]
            return next((a for a in anchors if getattr(a, "__closure__", None)), anchors[0])
        case _ if is_bound_method(fn):
            return anchor_of(fn.__func__)
        case _ if is_callable_module(fn):
            return type(fn).__call__
        case types.MethodType():
            # A method of a plain object: the object is part of the key, as any static leaf.
            return fn.__func__
        case _:
            return fn


def anchors_of(fn: Any) -> tuple[Any, ...]:
    """The innermost functions of a callable, one or several; then those that may run instead."""
    beside: tuple[Any, ...] = ()
    while isinstance(fn, Wrapper):
        beside = *fn.beside, *beside
        fn = fn.fun
    several = fn.callables if isinstance(fn, Several) else (fn,)
    return *map(anchor_of, several), *beside


def n_bound(fn: Any) -> int:
    """How many leading parameters of the anchor the callable has already filled."""
    match fn:
        case Wrapper():
            return n_bound(innermost(fn))
        case Method():
            return 1 + n_bound(fn.function)
        case Partial():
            return len(fn.args) + n_bound(fn.function)
        case Several():
            return n_bound(fn.callables[0])
        case _ if is_bound_method(fn) or is_callable_module(fn) or isinstance(fn, types.MethodType):
            return 1
        case _:
            return 0
