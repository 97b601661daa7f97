"""Explain: its numbers are what happens when a rule is left out."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gristmill.curate import curate
from gristmill.explain import explain
from gristmill.recipe import CurateRecipe
from tests.rows import rollout, table

ROWS = [
    rollout("a", task=0, repeat=0, accuracy=1.0, turns_used=2),
    rollout("b", task=0, repeat=1, accuracy=0.0, turns_used=9),
    rollout("a", task=0, repeat=2, accuracy=1.0, turns_used=2),
    rollout("c", task=1, repeat=0, accuracy=0.0, turns_used=2),
    rollout("d", task=1, repeat=1, accuracy=1.0, turns_used=9, truncated=True),
    rollout("e", task=2, repeat=0, accuracy=1.0, turns_used=1),
]
CONDITIONS = ["accuracy = 1", "turns_used <= 5"]


def test_the_funnel_condition_by_condition(tmp_path: Path) -> None:
    files, _ = table(tmp_path, ROWS)
    found = explain([files], CurateRecipe(where=" and ".join(CONDITIONS)))
    told = [
        (step.rule, step.before, step.dropped, step.left, step.alone, step.only, step.regained) for step in found.steps
    ]
    assert told == [
        ("not truncated", 6, 1, 5, 1, 0, 0),
        ("reward >= 1.0", 5, 0, 5, 0, 0, 0),
        ("accuracy = 1", 5, 2, 3, 2, 1, 1),
        ("turns_used <= 5", 3, 0, 3, 2, 0, 0),
        ("one of equal answers a task", 3, 1, 2, None, None, 1),
        ("at most 4 a task", 2, 0, 2, None, None, 0),
    ]
    assert (found.rows, found.chosen) == (6, 2)


def test_the_table_for_the_terminal(tmp_path: Path) -> None:
    files, _ = table(tmp_path, ROWS)
    recipe = CurateRecipe(preset="sft-binary", where=CONDITIONS, balance={"by": "agent", "cap": 1})
    found = explain([files], recipe)
    out = StringIO()
    Console(width=100, file=out).print(found.table())
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines[0] == "rule rows dropped left alone only this without it"
    assert "reward = 1 (preset sft-binary) 5 0 5 0 0 +0" in lines
    assert "accuracy = 1 5 2 3 2 1 +0" in lines  # the cap takes what it would give
    assert "1 of 6 usable rollouts chosen" in lines
    assert "agent 2 1" in lines
    assert any(line.startswith("warning: `reward = 1` (preset sft-binary) is true for every") for line in lines)


some_rows = st.lists(
    st.builds(
        rollout,
        st.sampled_from(["a", "b", "cc"]),
        task=st.integers(0, 2),
        repeat=st.integers(0, 9),
        reward=st.sampled_from([0.0, 0.5, 1.0]),
        truncated=st.booleans(),
        accuracy=st.sampled_from([0.0, 1.0]),
        level=st.sampled_from(["x", "y"]),
    ),
    min_size=1,
    max_size=15,
)


@given(some_rows, st.sampled_from([None, 1, 2]), st.booleans())
@settings(max_examples=15)
def test_what_is_promised_without_a_rule_is_what_happens(
    rows: list[dict[str, Any]], per_task: int | None, balanced: bool
) -> None:
    where = ("accuracy = 1", "level = 'x'")
    recipe = CurateRecipe(
        min_reward=0.5, where=where, per_task=per_task, balance={"by": "level", "cap": 2} if balanced else None
    )
    changes: dict[str, dict[str, Any]] = {
        "not truncated": {"keep_truncated": True},
        "reward >= 0.5": {"min_reward": None},
        "accuracy = 1": {"where": where[1:]},
        "level = 'x'": {"where": where[:1]},
        "deduplicate": {"deduplicate": False},
        "per_task": {"per_task": None},
        "balance": {"balance": None},
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        files, counts = table(folder, rows)
        found = explain([files], recipe)
        chosen = curate([files], [counts], recipe, folder)
        assert found.chosen == chosen["rows_kept"]
        assert [step.dropped for step in found.steps] == [step["dropped"] for step in chosen["rules"]]
        for step in found.steps:
            changed = recipe.model_copy(update=changes.get(step.rule) or changes[step.origin])
            assert step.regained == curate([files], [counts], changed, folder)["rows_kept"] - found.chosen, step
