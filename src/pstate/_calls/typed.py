"""What type checkers know of stateful functions. At run time next to nothing happens here.

A stateful function has parameters `P`, returns `R`, and has a carrier of type `C`: the module that it is
bound to, or `None` for a function that is bound to nothing and gets its carrier as argument 0.

To a checker a bound method is a function of what parameters are left, and its module is forgotten. So
`Any` is given back unless the first parameter can only be a tree of states.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import equinox as eqx
from typing_extensions import ParamSpec, TypeVar

from .._states.state import State
from .._trees.packed import Packed


#: The parameters of a stateful function, what it returns, and what it is bound to.
P = ParamSpec("P", default=...)
R = TypeVar("R", covariant=True, default=Any)
C = TypeVar("C", covariant=True, default=object)

#: Those of a function that is passed.
Q = ParamSpec("Q")
Out = TypeVar("Out")
Aux = TypeVar("Aux")
Module = TypeVar("Module", bound=eqx.Module)
Instance = TypeVar("Instance")
Given = TypeVar("Given")
Carry = TypeVar("Carry")

if TYPE_CHECKING:
    #: What may hold states: modules, states, packed trees, and containers of nothing else.
    Node: TypeAlias = eqx.Module | State[Any] | Packed[Any] | Mapping[Any, "Node"] | Sequence["Node"]
else:
    Node = Any

#: Argument 0, where it is a tree of states.
Tree = TypeVar("Tree", bound=Node)

#: The function that something is made of, whole.
F = TypeVar("F", bound=Callable[..., Any])

#: The same, of protocols.
FIn = TypeVar("FIn", bound=Callable[..., Any], covariant=True)
OutIn = TypeVar("OutIn", covariant=True)
ModuleIn = TypeVar("ModuleIn", covariant=True)


class Bound(Protocol[Q, OutIn, ModuleIn]):
    """What is bound to a module: a module that can be called, or a transform of something bound.

    A module tells its class. A transform tells that of its module: to checkers, and to nobody else.
    """

    @property
    def __class__(self) -> type[ModuleIn]: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> OutIn: ...


class Body:
    """A function that loops take, and no function of a user does.

    By it `pure` knows `for_loop` and `scan`, whose argument 0 is a tree of states that can be called.
    """
