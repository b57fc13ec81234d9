"""Every habit in every way: kept, refused, warned of, or not seen, as the table says; never lost."""

import re
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
import pytest

import pstate as ps
from habits import habits_between_calls, habits_in_a_step, ways
from habits.table import HABITS, UNSEEN, Habit, X, rows
from habits.ways import WAYS, Way, step, step_by_hand
from laws import transforms
from pages.repository import DOCS
from programs.steps import nothing_left_over


clean_thread = pytest.fixture(autouse=True)(nothing_left_over)
#: The ways that run on every version of JAX; the others share their code with these.
EVERYWHERE = {"pure", "jit", "vmap2", "shard_map2", "grad", "scan", "cond", "custom_vjp"}
CELLS = [
    pytest.param(
        habit,
        WAYS[name],
        id=f"{habit.name}-{name}",
        marks=[pytest.mark.once] * (name not in EVERYWHERE),
    )
    for habit in HABITS
    for name in habit.ways
]


#: Importing a part of the table puts it there.
PARTS = habits_in_a_step, habits_between_calls


def watch(tree: Any) -> Any:
    """The structure and the leaf objects of a tree."""
    return jax.tree.structure(tree), jax.tree.leaves(tree)


@pytest.mark.parametrize(("habit", "way"), CELLS)
def test_cell(habit: Habit, way: Way):
    """What comes of it is what the table says; the model that came in is as it was, and works."""
    model = habit.starts(ways.model())
    structure, leaves = watch(model)
    outcome = habit.outcome_in(way)
    warns = outcome.what == "warned"
    if outcome.categories and not warns:
        with pytest.raises(outcome.categories, match=outcome.match):
            habit.program(way, model)
    else:
        with pytest.warns(*outcome.categories, match=outcome.match) if warns else nullcontext():
            results = habit.program(way, model)
        compare(habit, way, model, results)
    assert jax.tree.structure(model) == structure
    assert all(a is b for a, b in zip(jax.tree.leaves(model), leaves, strict=True))
    if habit.starts is not habits_in_a_step.tied:
        y, _ = ps.pure(step)(model, X)
        assert y == step_by_hand(transforms.values(model), X)[0]


def compare(habit: Habit, way: Way, model: Any, results: Any) -> None:
    """Results equal the twin's, and what nobody wrote is what came in."""
    expected = habit.expected(way, transforms.values(model))
    for (y, new), (y_by_hand, values) in zip(results, expected, strict=True):
        np.testing.assert_allclose(y, y_by_hand, rtol=1e-6)
        np.testing.assert_allclose(new.count.value, values["count"], rtol=1e-6)
        assert new.weight.value is model.weight.value
        assert new.untouched.value is model.untouched.value
        assert new.rng.value is model.rng.value
        assert habit.holds(new)
    if habit.outcome_in(way) is UNSEEN:
        assert results[0][0] == results[1][0]


def test_the_page():
    """docs/habits.md has a section for each kind of habit, with the rows of this table and no others."""
    sections = re.split(r"^## ", (DOCS / "habits.md").read_text(), flags=re.MULTILINE)[1:]
    shown = {
        name: re.findall(r"^\| (?!-|what you do).*\|$", text, re.M)
        for name, _, text in (section.partition("\n") for section in sections)
    }
    kinds = dict.fromkeys(habit.kind for habit in HABITS)
    assert {name: found for name, found in shown.items() if found} == {k: rows(k) for k in kinds}
