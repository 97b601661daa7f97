"""Scoring: a failure is a missing sample, not a zero; only equal task sets are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.artifact import ArtifactRef
from gristmill.comparison import compare
from gristmill.errors import CollectionError, UsageError
from gristmill.evaluation import Scored, evaluate, lift, scored
from tests.rows import rollout, table

POLICY = ArtifactRef(kind="checkpoint", digest="1" * 64)
TASKS = ArtifactRef(kind="tasks", digest="2" * 64)
ROWS = [{"task_type": "add"}, {"task_type": "add"}, {"task_type": "mul"}]


def rollouts(*rewards: tuple[int, float]) -> list[Scored]:
    return [Scored(task, reward, False, 3) for task, reward in rewards]


def test_means_by_task_and_by_category() -> None:
    found = evaluate(
        POLICY, TASKS, ROWS, rollouts((0, 1), (0, 0), (1, 1), (1, 1), (2, 0), (2, 0)), samples=2, confidence=0.95
    )
    assert found.estimate.mean == pytest.approx(0.5)
    assert {c.name: c.estimate.mean for c in found.categories} == {"add": 0.75, "mul": 0.0}
    assert (found.expected, found.missing) == (6, 0)


def test_a_failure_is_missing_not_zero(tmp_path: Path) -> None:
    rows = [rollout("a", task=0, repeat=0), rollout("b", task=0, repeat=1, reward=None), rollout("c", task=1)]
    files, _ = table(tmp_path, rows)
    found = evaluate(POLICY, TASKS, ROWS[:2], scored(files), samples=2, confidence=0.95)
    assert found.estimate.mean == 1.0
    assert found.missing == 2


def test_a_task_without_any_sample_is_not_measured() -> None:
    """One task that no policy can attempt must not stop the loop for ever, nor count as a zero."""
    one = evaluate(POLICY, TASKS, ROWS, rollouts((0, 1), (2, 0)), samples=1, confidence=0.95)
    assert one.estimate.mean == 0.5 and one.missing == 1
    assert {c.name: c.tasks for c in one.categories} == {"add": ("0",), "mul": ("2",)}
    other = evaluate(POLICY, TASKS, ROWS, rollouts((0, 0), (1, 1)), samples=1, confidence=0.95)
    found = compare(one, other, 0.95)
    assert (found.lift.tasks, found.lift.mean) == (1, 1.0)
    assert [c.name for c in found.categories] == ["add"]
    with pytest.raises(CollectionError, match="1 of 3 held-out tasks have a usable rollout"):
        evaluate(POLICY, TASKS, ROWS, rollouts((0, 1)), samples=1, confidence=0.95)


def test_different_task_sets_are_not_compared() -> None:
    one = evaluate(POLICY, TASKS, ROWS, rollouts((0, 1), (1, 1), (2, 1)), samples=1, confidence=0.95)
    other = one.model_copy(update={"tasks": ArtifactRef(kind="tasks", digest="3" * 64)})
    assert lift(one, one, 0.95).mean == 0
    with pytest.raises(UsageError, match="different tasks"):
        lift(one, other, 0.95)
