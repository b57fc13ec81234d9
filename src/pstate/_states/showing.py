"""How a state is shown, as text and in treescope.

Looking is not reading: a live state does not record it, and a value that was not yet drawn stays
so.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import wadler_lindig as wl

from .._ground.values import short_dtype
from .deferred import Deferred


class _NotDrawn:
    """A placeholder for the key that a random state will have."""

    def __repr__(self) -> str:
        return "<not drawn yet>"


_NOT_DRAWN = _NotDrawn()


def held(state: Any) -> Any:
    """What a state holds now: `None` if it is empty, a `Deferred` if it is not computed yet."""
    cell = state._cell
    return state._child if cell is None else cell.value


def _shown_value(state: Any) -> Any:
    value = held(state)
    return _NOT_DRAWN if type(value) is Deferred else value


def doc_of(state: Any, **kwargs: Any) -> wl.AbstractDoc:
    """A state as `wadler_lindig` prints it, and with it `eqx.tree_pformat`."""
    value = _shown_value(state)
    parts = [] if value is None else [wl.pdoc(value, **kwargs)]
    if state.tag:
        shown = state.tag[0] if len(state.tag) == 1 else state.tag
        parts.append(wl.TextDoc("tag=") + wl.pdoc(shown, **kwargs))
    return wl.bracketed(
        begin=wl.TextDoc(type(state).__name__ + "("),
        docs=parts,
        sep=wl.comma,
        end=wl.TextDoc(")"),
        indent=kwargs.get("indent", 2),
    )


def text_of(state: Any) -> str:
    """A state as `repr` prints it: arrays by shape and dtype."""
    return wl.pformat(state, custom=_shown_array, width=100)


def _shown_array(value: Any) -> Any:
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return wl.array_summary(value.shape, short_dtype(value.dtype), None)
    return None


def treescope_of(state: Any, path: str | None, subtree_renderer: Callable[..., Any]) -> Any:
    """A state as treescope shows it: its attributes, in the colour of its kind.

    Only treescope calls this, so it is imported already. It is not imported here because that costs
    about 80 ms, which users without treescope would pay at each start.
    """
    treescope: Any = sys.modules["treescope"]
    value, attributes = _shown_value(state), {}
    if value is not None:
        attributes["value"] = value
    if state.tag:
        attributes["tag"] = state.tag
    return treescope.repr_lib.render_object_constructor(
        object_type=type(state),
        attributes=attributes,
        path=path,
        subtree_renderer=subtree_renderer,
        color=treescope.formatting_util.color_from_string(type(state).__name__),
    )
