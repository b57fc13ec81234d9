"""Trees that come back from a call: what stays the same object, and what pstate remembers of them."""

import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import pytest

import pstate as ps
from laws.table import CASES, Case
from laws.test_laws import CALLED_AGAIN, assert_same, every_case
from pstate._calls.callables import Method, carrier_of, directly_bound, is_bound_method
from pstate._trees.known import known


def _modules(tree: Any) -> Iterator[Any]:
    """The modules of a tree, at any depth."""
    inside = lambda x: isinstance(x, eqx.Module) and x is not tree
    for item in jtu.tree_leaves(tree, is_leaf=inside):
        if isinstance(item, eqx.Module):
            yield item
            yield from _modules(item)


def _content(module: Any) -> tuple[int, ...]:
    """The states and other leaves of a module, by identity."""
    return tuple(map(id, jtu.tree_leaves(module, is_leaf=lambda x: isinstance(x, ps.State))))


@pytest.mark.once
@every_case
def test_modules_without_a_written_state(case: Case):
    """L1: a module in which no state was written comes back as the same object."""
    args, kwargs = case.args(), case.kwargs()
    pure = case.pure()
    came = list(_modules((args, kwargs, pure)))
    contents = {_content(module) for module in came} - {()}
    _, updated = pure(*args, **kwargs)
    for module in _modules((updated,)):
        unwritten = _content(module) in contents
        assert not unwritten or any(module is one for one in came)


def _outcome(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call returns, or the error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(*args, **kwargs)
        except Exception as error:
            return type(error), str(error)


@pytest.mark.once
@every_case
@CALLED_AGAIN
def test_remembered_is_what_flattening_gives(case: Case):
    """A call with the tree that the last call gave back, and one with a copy of it, do the same."""
    args, kwargs = case.args(), case.kwargs()
    pure = case.pure()
    if carrier_of(pure.fun) is not None and case.argnums is None:
        return  # below
    numbers = case.argnums if isinstance(case.argnums, tuple) else (case.argnums or 0,)
    for _ in range(3):
        found = _outcome(pure, args, kwargs)
        if isinstance(found[0], type):
            return
        updated = found[1] if isinstance(case.argnums, tuple) else (found[1],)
        following, copies = list(args), list(args)
        for number, tree in zip(numbers, updated, strict=True):
            following[number], copies[number] = tree, jtu.tree_map(lambda x: x, tree)
            remembered = known(tree)
            if remembered is None:
                continue
            leaves, treedef = jtu.tree_flatten(tree)
            assert len(leaves) == len(remembered.leaves)
            assert all(a is b for a, b in zip(leaves, remembered.leaves, strict=True))
            assert treedef == remembered.form.treedef
        args = tuple(following)
        got, expected = _outcome(pure, args, kwargs), _outcome(pure, tuple(copies), kwargs)
        if isinstance(expected[0], type):
            assert got == expected
            return
        assert_same(got, expected)


def _bound_to(transform: Any, module: Any) -> Any:
    """The same transform, of the same method of another module."""
    fun = transform.fun
    if isinstance(fun, Method):
        return transform._of(Method(fun.function, module))
    return transform._of(fun.__func__.__get__(module) if is_bound_method(fun) else module)


def _directly_bound(case: Case) -> Any:
    return directly_bound(getattr(case.make(), "fun", print))


BOUND = [case for case in CASES if case.argnums is None and _directly_bound(case) is not None]


@pytest.mark.parametrize("case", BOUND, ids=lambda case: case.name)
def test_remembered_modules_are_what_flattening_gives(case: Case):
    """A method of the module that the last call gave back, and one of a copy of it, do the same."""
    transform = case.make()
    module = directly_bound(transform.fun)
    for _ in range(4):
        found = _outcome(ps.pure(_bound_to(transform, module)), case.args(), case.kwargs())
        copied = jtu.tree_map(lambda x: x, module)
        expected = _outcome(ps.pure(_bound_to(transform, copied)), case.args(), case.kwargs())
        if isinstance(expected[0], type):
            assert found == expected
            return
        assert_same(found, expected)
        module = found[1]
    assert known(module) is not None
