"""Arguments that an option names: by position, or by name, however they are passed.

As in JAX, `argnums` and `argnames` are two ways to say the same. An argument that is given by
position may be passed by keyword, and one that is given by name may be passed by position.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .naming import names_of, signature
from .signature import Static


def refuse_unknown(fn: Any, names: Collection[str], option: str) -> None:
    """Raise if a callable has no parameter of one of these names.

    **Raises:** `ValueError`.
    """
    if not names:
        return
    try:
        known = signature(fn).parameters
    except AttributeError:  # for example a builtin, which does not say
        return
    unknown = [name for name in names if name not in known]
    if not unknown or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    right = f"Name one of these: {option}={next(iter(known))!r}." if known else f"Leave {option} out."
    raise ValueError(f"{option} names {unknown}, and the parameters are {list(known)}. {right}")


def positions_of(
    names: Sequence[str], n: int, argnums: Iterable[int], argnames: Collection[str]
) -> set[int]:
    """The positions of the arguments, of `n` that are passed by position, that two options name.

    `names` are those of the parameters. Positions that do not exist are left out.
    """
    by_position = {number % n for number in argnums if -n <= number < n}
    return by_position | {i for i, name in enumerate(names[:n]) if name in argnames}


def with_statics(
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: Sequence[int],
    argnames: Collection[str],
    code: str,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with those that the two options name made static.

    `code` is the transform as code.

    **Raises:** `ValueError` for a position that the call does not have; `TypeError` for an argument that
    is unhashable.
    """
    names, n = names_of(fn), len(args)
    by_keyword = {*argnames, *(names[i] for i in argnums if 0 <= i < len(names))}
    for number in argnums:
        passed = number < len(names) and names[number] in kwargs
        if not -n <= number < n and not passed:
            raise ValueError(
                f"static_argnums={tuple(argnums)} counts the arguments that the caller passes, and {n} "
                f"were passed to {code}: positions {list(range(n))}. Write "
                f"static_argnums={max(n - 1, 0)}."
            )
    positions = positions_of(names, n, argnums, argnames)
    args = tuple(_static(a, f"args[{i}]") if i in positions else a for i, a in enumerate(args))
    return args, {k: _static(v, k) if k in by_keyword else v for k, v in kwargs.items()}


def _static(value: Any, place: str) -> Static:
    try:
        return Static(value)
    except TypeError:
        raise TypeError(
            f"`{place}` is static and therefore part of the program, so it must be hashable; got "
            f"{value!r} of type {type(value).__name__}. Pass a tuple for a list, or take it out of "
            "static_argnums=(...) and static_argnames=(...)."
        ) from None
