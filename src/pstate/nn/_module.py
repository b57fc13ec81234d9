"""`Module`: an Equinox module whose states can be made after it was built."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx

from .._ground.errors import FrozenStateError
from .._ground.public import public_in
from .._ground.tracebacks import short_tracebacks
from .._states.state import State
from .._trees.flattening import collect
from .._trees.initialising import assign, run_init_states, with_tags
from .._trees.recording import freeze, record


M = TypeVar("M", bound=eqx.Module)


@public_in("pstate.nn")
@short_tracebacks
def init_all_states(module: M, **kwargs: Any) -> M:
    """Run `init_state` on every submodule, children first.

    **Arguments:**

    - `module`: any Equinox module. It is not changed. Each module in it that defines `init_state`
        takes part, also in lists, tuples and dicts. A `pstate.nn.Map` makes the states of its module
        for its lanes.
    - `kwargs`: passed to each `init_state` whose signature names them. Inside a recording, a live
        random state among them is advanced; a frozen one serves as a seed.

    **Returns:** the module with its states filled.

    **Raises:** `TypeError` for a keyword that no `init_state` names, and for a missing one, with
    the path of the module.
    """
    _, _, states = collect(kwargs)
    if any(state._cell is not None for state in states):
        with record(module) as live:
            run = run_init_states(live, kwargs)
    else:
        with record(module) as live, record(kwargs) as live_kwargs:
            run = run_init_states(live, live_kwargs)
    return with_tags(freeze(live), run.tags)


@public_in("pstate.nn")
class Module(eqx.Module):
    """An Equinox module with `init_state`.

    Models that build their states in `__init__` need none of this. Here a state is declared empty
    and filled by `init_state`, by writing its `.value` or by assigning the declared field.

    !!! example

        >>> import jax.numpy as jnp
        >>> import pstate as ps
        >>> class Linear(ps.nn.Module):
        ...     weight: ps.ParamState = ps.ParamState()
        ...     def init_state(self, size):
        ...         self.weight.value = jnp.zeros(size)
        >>> Linear().init_all_states(size=3)
        Linear(weight=ParamState(f32[3]))
    """

    def __check_init__(self):
        # Equinox leaves a field's default on the class if a module has its own `__init__`; an
        # empty state there would not be part of the tree.
        for field in dataclasses.fields(self):
            default = getattr(type(self), field.name, None)
            if field.name not in self.__dict__ and isinstance(default, State):
                object.__setattr__(self, field.name, default)

    def init_all_states(self: M, **kwargs: Any) -> M:
        """Run `init_state` on this module and all in it, children first, and return the result.

        Each gets the keywords that its signature names. See `pstate.nn.init_all_states`.
        """
        return init_all_states(self, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        declared = {field.name for field in dataclasses.fields(self)}
        if name in declared and assign(self, name, value):
            return
        try:
            super().__setattr__(name, value)
        except dataclasses.FrozenInstanceError:
            kind = type(self).__name__
            raise FrozenStateError(
                f"`{kind}.{name}` was assigned outside init_state. A module is immutable: assign "
                f"declared fields ({', '.join(sorted(declared)) or 'none'}) in init_state, which "
                "module = module.init_all_states() runs; write states by self.state.value = ..."
            ) from None
