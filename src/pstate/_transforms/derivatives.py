"""Transforms that take derivatives.

The leaves of one argument, or of several, are differentiated; all others are constants. Writes made
inside are kept, as the auxiliary output of the underlying JAX transform.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._calls.call import Call
from .._calls.callables import carrier_of
from .._calls.code import as_code
from .._calls.contract import Contract
from .._calls.flat_function import flat_function_of
from .._calls.lifting import Lifted
from .._calls.notes import Note, arrays_of, refuse_tracers, taken_apart
from .._calls.running import Writes
from .._calls.transform import code_of
from .._calls.typed import C, P, R
from .._ground.integers import Positions, as_argnums
from .._ground.typing import Filter
from ..filter import Trainable, to_predicate
from .statements import Statement, callable_code, shown_arguments
from .wrt import Chosen, Options, Trees, Wrt


class Derivative(Lifted[P, R, C]):
    """A stateful function that returns derivatives of another."""

    __slots__ = ("argnums", "has_aux", "holomorphic", "wrt")

    wrt: Any
    argnums: int | tuple[int, ...] | None
    has_aux: bool
    holomorphic: bool

    _name: ClassVar[str]
    #: The public functions that make derivatives, by name.
    makers: ClassVar[dict[str, Callable[..., Any]]] = {}

    def _differentiate(self, function: Callable[..., Any], chosen: Chosen, wrt: Wrt) -> Any:
        """`(result, kept)`, where `function(chosen)` returns `(out, kept)`."""
        raise NotImplementedError

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        # As in JAX, a number can be differentiated where it is an argument by itself.
        argnums = self.argnums
        if argnums is None:
            argnums = () if carrier_of(self.fun) is not None else (0,)
        numbers = (argnums,) if isinstance(argnums, int) else argnums
        chosen = {number % len(args) for number in numbers if args}
        converted = tuple(
            jnp.asarray(a) if i in chosen and type(a) in (float, complex) else a
            for i, a in enumerate(args)
        )
        return Call(self.fun, converted, kwargs)

    def _run_leaves(
        self, call: Call, leaves: list[Any], contract: Contract | None
    ) -> tuple[Note, tuple[Any, Writes]]:
        body = flat_function_of(call, code_of(self))
        wrt = Wrt(Options(self.wrt, self.argnums, self._code()), call, leaves)

        def function(chosen: Sequence[Any]) -> tuple[Any, tuple[list[Any], Note]]:
            run = body.run(wrt.put(leaves, chosen))
            out, aux = _pair(self, run.out) if self.has_aux else (run.out, None)
            arrays, rest = self._parted(out)
            return arrays, taken_apart(dataclasses.replace(run, out=(rest, aux)))

        result, (arrays, note) = self._differentiate(function, wrt.chosen(leaves), wrt)
        (rest, aux), writes = note.result(arrays)
        return note, (self._with_aux(self._whole(result, rest), aux), writes)

    def _parted(self, out: Any) -> tuple[Any, Any]:
        """The differentiated part of an output, a tree of arrays; and the rest, its non-arrays."""
        leaves, treedef = jtu.tree_flatten(out)
        mask = arrays_of(out, leaves)
        if all(mask):
            return out, Rest(None)
        refuse_tracers(out, leaves, mask)
        arrays = [leaf if is_one else None for leaf, is_one in zip(leaves, mask, strict=True)]
        rest = [None if is_one else leaf for leaf, is_one in zip(leaves, mask, strict=True)]
        return treedef.unflatten(arrays), Rest(treedef, tuple(rest))

    def _whole(self, result: Any, rest: "Rest") -> Any:
        """The result, with the non-array leaves put back into the output if that is part of it."""
        return result

    def _with_aux(self, result: Any, aux: Any) -> Any:
        return (result, aux) if self.has_aux else result

    def _argument_or_several(self, trees: tuple[Any, ...]) -> Any:
        return trees if isinstance(self.argnums, tuple) else trees[0]

    def _code(self) -> str:
        return f"ps.{self._public_name()}({', '.join([code_of(self.fun), *self._options()])})"

    def _public_name(self) -> str:
        return self._name

    def _maker(self) -> Callable[[Any], Any]:
        given = {name: getattr(self, name) for name in Derivative._static}
        return ft.partial(self.makers[self._public_name()], **given)

    def _options(self) -> list[str]:
        """The non-default options, as code."""
        options = (
            ("wrt", self.wrt, Trainable),
            ("argnums", self.argnums, None),
            ("has_aux", self.has_aux, False),
            ("holomorphic", self.holomorphic, False),
        )
        return [f"{name}={as_code(value)}" for name, value, default in options if value != default]


def derivative_of(
    cls: type[Derivative], fn: Any, wrt: Filter, argnums: Positions | None, **options: Any
) -> Any:
    """The derivative of `fn`, or a decorator if there is no `fn` yet."""
    chosen = to_predicate(wrt)
    numbers = as_argnums(argnums)
    make = lambda fn: cls(fn, wrt=chosen, argnums=numbers, **options)
    return make if fn is None else make(fn)


def _pair(derivative: Derivative, out: Any) -> tuple[Any, Any]:
    if isinstance(out, tuple) and len(out) == 2:
        return out
    raise TypeError(
        f"{derivative._code()} has has_aux=True, so the function returns a pair, "
        f"(what is differentiated, auxiliary data); got {type(out).__name__}. Write return loss, aux."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Rest:
    """The non-array leaves of an output, at their places. A pytree without leaves."""

    treedef: Any
    leaves: tuple[Any, ...] = ()

    def put(self, out: Any) -> Any:
        """The whole output, from its arrays."""
        if self.treedef is None:
            return out
        arrays = self.treedef.flatten_up_to(out)
        both = zip(arrays, self.leaves, strict=True)
        return self.treedef.unflatten([array if array is not None else leaf for array, leaf in both])


jtu.register_pytree_node(Rest, lambda rest: ((), rest), lambda rest, _: rest)


class ValueAndGrad(Derivative):
    __slots__ = ()

    _name: ClassVar[str] = "value_and_grad"

    def _parted(self, out: Any) -> tuple[Any, Any]:
        if not jtu.all_leaves([out]) or not all(arrays_of(out, [out])):
            self._refuse_output(out)
        return out, Rest(None)

    def _refuse_output(self, out: Any) -> None:
        if isinstance(out, tuple) and len(out) == 2 and not self.has_aux:
            fix = f"Anything else that it returns is auxiliary: {self._code()[:-1]}, has_aux=True)."
        else:
            fix = "Return the number that is differentiated: return loss."
        raise TypeError(
            f"{self._code()} differentiates a number, an array of shape (), but the function returned "
            f"{_shown_output(out)}. {fix}"
        )

    def _differentiate(self, function: Callable[..., Any], chosen: Chosen, wrt: Wrt) -> Any:
        differentiate = jax.value_and_grad(function, has_aux=True, holomorphic=self.holomorphic)
        (value, kept), gradients = differentiate(chosen)
        return (value, self._argument_or_several(wrt.trees(gradients))), kept

    def _with_aux(self, result: Any, aux: Any) -> Any:
        value, gradients = result
        return ((value, aux), gradients) if self.has_aux else result


def _shown_output(out: Any) -> str:
    """An output by its types, as Equinox shows trees."""
    return eqx.tree_pformat(out).replace("\n", " ") if not isinstance(out, str) else repr(out)


class Grad(ValueAndGrad):
    __slots__ = ()

    _name: ClassVar[str] = "grad"

    def _with_aux(self, result: Any, aux: Any) -> Any:
        _, gradients = result
        return (gradients, aux) if self.has_aux else gradients


class Jacobian(Derivative):
    """A Jacobian, or a Hessian: `jacobian` is JAX's."""

    __slots__ = ("jacobian",)

    jacobian: Callable[..., Any]

    def _differentiate(self, function: Callable[..., Any], chosen: Chosen, wrt: Wrt) -> Any:
        differentiate = self.jacobian(function, has_aux=True, holomorphic=self.holomorphic)
        result, kept = differentiate(chosen)

        def as_trees(item: Any) -> Any:
            if not isinstance(item, Chosen):
                return item
            return self._argument_or_several(wrt.trees([spread(each) for each in item]))

        def spread(result: Any) -> Any:
            return jtu.tree_map(as_trees, result, is_leaf=lambda x: isinstance(x, Chosen))

        return spread(result), kept

    def _public_name(self) -> str:
        return self.jacobian.__name__


class Vjp(Statement, Derivative):
    __slots__ = ()

    _name: ClassVar[str] = "vjp"

    def _options(self) -> list[str]:
        return Derivative._options(self)

    def _differentiate(self, function: Callable[..., Any], chosen: Chosen, wrt: Wrt) -> Any:
        out, pull, kept = jax.vjp(function, chosen, has_aux=True)
        return (out, jtu.Partial(_PullBack(wrt.trees), pull)), kept

    def _whole(self, result: Any, rest: Rest) -> Any:
        out, pull_back = result
        return rest.put(out), pull_back

    def _with_aux(self, result: Any, aux: Any) -> Any:
        return (*result, aux) if self.has_aux else result


@dataclasses.dataclass(frozen=True)
class _PullBack:
    """The function from cotangents of the output to those of the arguments."""

    trees: Trees

    def __call__(self, pull: Callable[..., Any], cotangents: Any) -> tuple[Any, ...]:
        (chosen,) = pull(cotangents)
        return self.trees(chosen)


class Jvp(Statement, Derivative):
    __slots__ = ("tangents",)

    tangents: tuple[Any, ...]

    _name: ClassVar[str] = "jvp"

    def _options(self) -> list[str]:
        return Derivative._options(self)

    def _shown(self, call: Call, index: int) -> str:
        primals = ", ".join(shown_arguments(call))
        arguments = [callable_code(self.fun), f"({primals},)", "tangents", *self._options()]
        return f"ps.jvp({', '.join(arguments)})"

    def _differentiate(self, function: Callable[..., Any], chosen: Chosen, wrt: Wrt) -> Any:
        tangents = self._chosen_tangents(wrt, chosen)
        out, tangent, kept = jax.jvp(function, (chosen,), (tangents,), has_aux=True)
        return (out, tangent), kept

    def _whole(self, result: Any, rest: Rest) -> Any:
        out, tangent = result
        return rest.put(out), tangent

    def _with_aux(self, result: Any, aux: Any) -> Any:
        return (*result, aux) if self.has_aux else result

    def _chosen_tangents(self, wrt: Wrt, chosen: Chosen) -> Chosen:
        try:
            found = wrt.trees.lined_up(tuple(self.tangents))
        except ValueError:
            raise ValueError(
                f"The tangents of {self._code()} do not fit: a tuple with an entry for each argument "
                "that is differentiated is expected, each with the argument's tree, and None where "
                f"nothing is differentiated; got {jtu.tree_structure(tuple(self.tangents))} for "
                f"{jtu.tree_structure(wrt.trees(range(len(wrt.leaves))))}. Write tangents = "
                "(jax.tree.map(jnp.ones_like, ps.trainable(model)),), and name further "
                "arguments in argnums."
            ) from None
        return Chosen(_tangent(found[i], leaf) for i, leaf in enumerate(chosen))


def _tangent(value: Any, leaf: Any) -> Any:
    """A given tangent of an array; an empty state has none, which is zero."""
    if value is None:
        return jnp.zeros_like(leaf)
    return jnp.asarray(value, leaf.dtype) if type(value) in (bool, int, float, complex) else value
