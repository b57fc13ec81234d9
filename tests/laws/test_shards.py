"""L5 for shards: a mapping over lanes, cut into shards of lanes, gives what the lanes give
together."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import pytest
from jax.sharding import PartitionSpec as P

import pstate as ps
from laws.cases import CASES, Case, ticks
from laws.test_laws import CALLED_AGAIN, assert_same


def spec(axis: int | None) -> P:
    """Lanes on an axis, cut into shards."""
    return P() if axis is None else P(*[None] * axis, "lanes")


def specs(axes: Any) -> Any:
    return jtu.tree_map(spec, axes, is_leaf=lambda x: x is None)


def fits(case: Case) -> bool:
    """Whether lanes that are cut into shards mean the same.

    Not where lanes see each other or are reduced, for one shard has not all of them; nor where a
    key is split, once for the shards and once for their lanes. Specs count axes from the front,
    and have no policy that makes one up.
    """
    if not case.mapping or case.collective:
        return False
    mapped = case.make()
    options = mapped.options
    if options.policy != "raise" or options.axis_size is not None or case.argnums is not None:
        return False
    if any(rule.reducer is not None for rule in options.rules_out):
        return False
    rules = [rule.axis for rule in (*options.rules_in, *options.rules_out)]
    axes = jtu.tree_leaves((options.in_axes, options.out_axes))
    if any(not isinstance(axis, int) or axis < 0 for axis in [*axes, *filter(None, rules)]):
        return False
    args, kwargs = case.args(), case.kwargs()
    if set(kwargs) - set(options.in_axes if isinstance(options.in_axes, dict) else ()):
        return False
    leaves = jtu.tree_leaves((mapped, args, kwargs), is_leaf=lambda x: isinstance(x, ps.State))
    return not any(isinstance(leaf, ps.RandomState) for leaf in leaves)


FITTING = [case for case in CASES if fits(case)]


def has_sown(tree: Any) -> bool:
    leaves = jtu.tree_leaves(tree, is_leaf=lambda x: isinstance(x, ps.State))
    return any(isinstance(leaf, ps.SownState) for leaf in leaves)


def over_shards(mapped: ps.StatefulMapping, n_lanes: int, sown: bool) -> Any:
    """The mapping in shards. What is sown is stacked by lanes, and so needs a rule over shards."""
    options = mapped.options
    out_specs = {spec(axis): filter_ for axis, filter_ in options.state_out_axes.items()}
    n = math.gcd(n_lanes, 4) if n_lanes != 3 else 3
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((n,), ("lanes",), devices=jax.devices()[:n], axis_types=auto)
    in_axes = options.in_axes
    if isinstance(in_axes, dict):
        in_specs = {name: specs(axes) for name, axes in in_axes.items()}
    else:
        in_specs = specs(in_axes)
    return ps.shard_map2(
        mapped,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=specs(options.out_axes),
        state_in_specs={spec(axis): filter_ for axis, filter_ in options.state_in_axes.items()},
        state_out_specs={**out_specs, **({P("lanes"): ps.SownState} if sown else {})},
    )


def test_enough_cases_fit():
    """The law is not about an empty table."""
    assert len(FITTING) > 12


@pytest.mark.parametrize("case", FITTING, ids=lambda case: case.name)
@CALLED_AGAIN
def test_shards_of_lanes(case: Case):
    """L5 and L6: shards of lanes agree with lanes, eagerly and compiled; the body runs once, then
    never."""
    args, kwargs = case.args(), case.kwargs()
    mapped = case.make()
    expected = ps.pure(mapped)(*args, **kwargs)
    n_lanes = mapped.explain(*args, **kwargs).axis_size
    pure = ps.pure(over_shards(mapped, n_lanes, has_sown((args, kwargs))))
    before = ticks()
    assert_same(pure(*args, **kwargs), expected, exact=False)
    assert ticks() - before <= case.runs
    before = ticks()
    assert_same(pure(*args, **kwargs), expected, exact=False)
    assert ticks() == before
    assert_same(eqx.filter_jit(pure)(*args, **kwargs), expected, exact=False)
