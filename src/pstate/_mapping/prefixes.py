"""`in_axes` and `out_axes`, prefixes of trees, spread over leaves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.tree_util as jtu

from .._calls.signature import Described, Signature
from .._states.deferred import Deferred
from .._trees.flattening import unflatten_frozen, unread


def spread_in_axes(
    signature: Signature, in_axes: Any, described: Described, leaves: Sequence[Any]
) -> list[int | None]:
    """The axis of each leaf, by `in_axes` alone. The callable's own leaves are broadcast."""
    # Only counted: taking its tree apart would compute a deferred leaf.
    known = [0 if type(leaf) is Deferred else leaf for leaf in leaves]
    _, args, kwargs = unflatten_frozen(signature.treedef, known)
    result: list[int | None] = [None] * len(leaves)
    by_position, by_name = _per_argument(signature, in_axes, described)
    for position, arg in enumerate(args):
        name = described.names[position] if position < len(described.names) else f"args[{position}]"
        _spread_one(by_position[position], arg, name, result, signature.starts[position])
    for position, name in enumerate(signature.keywords):
        start = signature.keyword_starts[position]
        _spread_one(by_name.get(name, 0), kwargs[name], name, result, start)
    return result


def _per_argument(
    signature: Signature, in_axes: Any, described: Described
) -> tuple[list[Any], Mapping[str, Any]]:
    n = signature.n_args
    if in_axes is None or _is_axis(in_axes):
        return [in_axes] * n, {}
    if callable(in_axes):
        return [in_axes] * n, dict.fromkeys(signature.keywords, in_axes)
    if isinstance(in_axes, Mapping):
        names = described.names[:n]
        unknown = set(in_axes) - set(names) - set(signature.keywords)
        if unknown:
            raise ValueError(
                f"in_axes names {sorted(map(str, unknown))}, which {described.fn} was not called "
                f"with; its arguments are {[*names, *signature.keywords]}. Name one of these: "
                f"in_axes={{{[*names, *signature.keywords, 'x'][0]!r}: 0}}."
            )
        return [in_axes.get(name, 0) for name in names] + [0] * (n - len(names)), in_axes
    if isinstance(in_axes, tuple | list):
        if len(in_axes) != n:
            extra = (
                " Leave out the module that the function is bound to." if signature.has_carrier else ""
            )
            # Usually the bound module was included by mistake.
            given = in_axes[1:] if signature.has_carrier and len(in_axes) == n + 1 else in_axes
            right = f"in_axes={tuple(given[i] if i < len(given) else 0 for i in range(n))}"
            raise ValueError(
                f"in_axes={tuple(in_axes)} has {len(in_axes)} entries, but {described.fn} was called "
                f"with {n} positional arguments.{extra} Give one entry for each: {right}."
            )
        return list(in_axes), {}
    raise TypeError(
        f"in_axes is an integer, None, a function of the leaf, a tuple with an entry per argument, or a "
        f"dict by argument name; got {in_axes!r}. Write in_axes=0."
    )


def _is_axis(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _spread_one(spec: Any, arg: Any, name: str, result: list[int | None], start: int) -> None:
    try:
        spread_prefix(spec, arg, result, start, _of_each_leaf)
    except _NoAxisError as error:
        raise TypeError(
            f"The axes of `{name}` in in_axes are integers, None and functions of the leaf; {error}. "
            f"Write in_axes={{{name!r}: 0}}."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"in_axes={spec!r} for `{name}` is not a prefix of its structure, "
            f"{jtu.tree_structure(arg)}: "
            f"{error}. Give one axis for the whole argument, in_axes={{{name!r}: 0}}, or the axes "
            "that ps.axes(tree, {0: ...}) makes."
        ) from None


def spread_out_axes(out: Any, out_axes: Any) -> list[int | None]:
    """The axis of each leaf of an output, by the prefix `out_axes`.

    **Raises:** `ValueError` if `out_axes` is not a prefix of the output.
    """
    leaves, treedef = jtu.tree_flatten(out)
    result: list[int | None] = [None] * len(leaves)
    try:
        spread_prefix(out_axes, out, result, 0, _of_all_leaves)
    except _NoAxisError as error:
        raise TypeError(f"out_axes are integers and None; {error}. Write out_axes=0.") from None
    except ValueError as error:
        raise ValueError(
            f"out_axes={out_axes!r} is not a prefix of the output's structure, {treedef}: {error}. Give "
            "one axis for the whole output: out_axes=0."
        ) from None
    return result


def spread_prefix(
    prefix: Any,
    tree: Any,
    result: list[Any],
    start: int,
    axes_of: Callable[[Any, Sequence[Any]], list[Any]],
) -> None:
    """Put the entries of a prefix into `result`, where the leaves of the tree begin at `start`.

    `axes_of(entry, leaves)` returns the entry of each leaf below an entry of the prefix.
    """
    position = start

    def assign(axis: Any, subtree: Any) -> None:
        nonlocal position
        axes = axes_of(axis, jtu.tree_leaves(subtree))
        result[position : position + len(axes)] = axes
        position += len(axes)

    with unread():  # otherwise a body that is being compiled would seem to capture the states
        jtu.tree_map(assign, prefix, tree, is_leaf=lambda x: x is None)


class _NoAxisError(Exception):
    """An entry of a prefix that is not an axis."""


def _of_all_leaves(axis: Any, leaves: Sequence[Any]) -> list[int | None]:
    if axis is not None and not _is_axis(axis):
        raise _NoAxisError(f"got {axis!r}")
    return [axis] * len(leaves)


def _of_each_leaf(axis: Any, leaves: Sequence[Any]) -> list[int | None]:
    """The axes of leaves by an axis, or by a function of the leaf, such as `eqx.if_array(0)`."""
    if not callable(axis):
        return _of_all_leaves(axis, leaves)
    return [found for leaf in leaves for found in _of_all_leaves(axis(leaf), [leaf])]
