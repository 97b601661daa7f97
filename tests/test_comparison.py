"""Paired comparison of two evaluations, and each guard: it fires on what it guards against and on nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from gristmill.artifact import ArtifactRef
from gristmill.comparison import compare, guards
from gristmill.errors import UsageError
from gristmill.evaluation import Collected, Evaluation, Scored, evaluate, solved_in
from gristmill.recipe import PromoteRecipe

POLICY = ArtifactRef(kind="checkpoint", digest="1" * 64)
TASKS = ArtifactRef(kind="tasks", digest="2" * 64)


def evaluation(
    wins: list[int],
    *,
    samples: int = 4,
    types: str = "ab",
    chars: int = 10,
    cut: bool = False,
    answers: int = 4,
    missing: int = 0,
    tokens: int | None = 7,
    solved_at: float = 1.0,
) -> Evaluation:
    """Task i has `wins[i]` solved samples; the first `missing` tasks lack their last sample."""
    rows = [{"task_type": types[i % len(types)]} for i in range(len(wins))]
    rollouts = [
        Scored(i, float(n < won), cut, chars, f"answer {n % answers}", tokens)
        for i, won in enumerate(wins)
        for n in range(samples - (i < missing))
    ]
    return evaluate(POLICY, TASKS, rows, rollouts, samples=samples, confidence=0.95, solved_at=solved_at)


BASE = evaluation([0, 1, 2, 3] * 5)


def failed(challenger: Evaluation, champion: Evaluation = BASE, **settings: object) -> list[str]:
    recipe = PromoteRecipe(**settings)  # type: ignore[arg-type]
    return [guard.name for guard in guards(compare(challenger, champion, 0.95), recipe) if not guard.passed]


def test_pass_at_k_is_the_share_of_subsets_with_a_solved_sample() -> None:
    """Against counting all subsets."""
    rewards = {"x": [1.0, 0.0, 0.0, 1.0, 0.0], "y": [0.0] * 5, "z": [1.0] * 5}
    for k in range(1, 6):
        for task, (found,) in solved_in(rewards, k, 1.0).items():
            subsets = list(itertools.combinations(rewards[task], k))
            assert found == pytest.approx(sum(1.0 in subset for subset in subsets) / len(subsets))
    with pytest.raises(ValueError, match="fewer than k = 6"):
        solved_in(rewards, 6, 1.0)


def test_what_an_evaluation_says() -> None:
    assert set(BASE.pass_at) == {1, 2, 4}
    assert BASE.success_rate.mean == pytest.approx(1.5 / 4) and BASE.pass_at[4].mean == pytest.approx(0.75)
    assert BASE.tokens is not None and BASE.tokens.estimate.mean == 7
    assert BASE.diversity is not None and BASE.diversity.estimate.mean == 1
    assert BASE.failures.estimate.mean == 0 and BASE.chars.by_task["3"] == 10
    assert set(evaluation([1, 1, 1], samples=3).pass_at) == {1, 2, 3}
    assert set(evaluation([1, 1, 1], samples=3, missing=1).pass_at) == {1, 2}, "one task has two samples"


def test_a_better_policy_passes_every_guard() -> None:
    better = evaluation([1, 2, 3, 4] * 5)
    found = compare(better, BASE, 0.95)
    assert found.lift.mean == pytest.approx(0.25)
    assert found.pass_at[1].mean == pytest.approx(0.25) and found.pass_at[4].mean == pytest.approx(0.25)
    assert [one.name for one in found.categories] == ["a", "b"]
    assert failed(better) == []
    assert failed(BASE) == []


def test_pass_at_k_may_not_drop_while_the_mean_rises() -> None:
    """Half of the tasks are always solved now, the other half never: more reward, fewer tasks within reach."""
    champion, sharper = evaluation([1, 1] * 10), evaluation([4, 0] * 10)
    assert compare(sharper, champion, 0.95).lift.mean > 0
    assert "pass@4" in failed(sharper, champion)
    assert "pass@4" not in failed(sharper, champion, max_pass_drop=None)
    assert "pass@4" not in failed(sharper, champion, max_pass_drop=0.9)


def test_a_category_may_not_drop() -> None:
    champion, lopsided = evaluation([2, 2, 2, 3] * 20), evaluation([4, 1, 4, 2] * 20)
    assert compare(lopsided, champion, 0.95).lift.low > 0  # type: ignore[operator]
    assert failed(lopsided, champion) == ["category b"]


def test_length_failures_and_diversity() -> None:
    wins = [1, 2, 3, 4] * 5
    assert failed(evaluation(wins, chars=21)) == ["length in characters"]
    assert failed(evaluation(wins, chars=20)) == []
    assert failed(evaluation(wins, tokens=15)) == ["length in tokens"]
    assert failed(evaluation(wins, tokens=None)) == []
    assert failed(evaluation(wins, cut=True)) == ["failures"]
    assert failed(evaluation(wins, missing=20)) == ["failures"]
    assert failed(evaluation(wins, answers=1)) == ["diversity"]
    assert failed(evaluation(wins, answers=1, chars=90, cut=True), min_diversity=None, max_length_ratio=None) == [
        "failures"
    ]


def test_a_policy_that_solves_everything_is_not_too_little_diverse() -> None:
    """One right answer eight times out of eight is a success, and no collapse."""
    champion = evaluation([1, 2] * 10, samples=8, answers=8)
    assert failed(evaluation([8] * 20, samples=8, answers=1), champion) == []
    assert failed(evaluation([7] * 20, samples=8, answers=1), champion) == []
    assert failed(evaluation([5] * 20, samples=8, answers=1), champion) == ["diversity"]


def test_chance_alone_fails_no_guard() -> None:
    """Two tasks of twenty have very long answers: the ratio of means is above 2, and shows nothing."""
    plain, long = evaluation([1, 2] * 10), evaluation([2, 3] * 10)
    assert long.chars is not None
    by_task = {task: 200.0 if task in "01" else 1.0 for task in long.chars.by_task}
    assert sum(by_task.values()) / sum(plain.chars.by_task.values()) > 2
    noisy = long.model_copy(update={"chars": long.chars.model_copy(update={"by_task": by_task})})
    assert failed(noisy, plain) == []
    twice = long.model_copy(update={"chars": long.chars.model_copy(update={"by_task": dict.fromkeys(by_task, 21.0)})})
    assert failed(twice, plain) == ["length in characters"]


def test_what_differs_in_the_collections_is_said() -> None:
    first = Collected(samples=4, seed=0, sampling={"temperature": 1.0})
    one = BASE.model_copy(update={"collected": (first,)})

    def remarks(**changes: Any) -> str:
        other = BASE.model_copy(update={"collected": (first.model_copy(update=changes),)})
        return "; ".join(compare(other, one, 0.95).remarks)

    assert remarks() == ""
    assert remarks(seed=7).startswith("they were sampled with different seeds (7 and 0)")
    assert remarks(samples=8) == "they have 8 and 4 samples a task: pass@k is compared up to 4"
    assert "temperature is 0.5 and 1.0" in remarks(sampling={"temperature": 0.5})
    assert compare(BASE, one, 0.95).remarks == (), "of files nothing is known"


def test_two_meanings_of_solved_are_not_compared() -> None:
    with pytest.raises(UsageError, match="the other at 1;"):
        compare(evaluation([1, 2], solved_at=0.5), evaluation([1, 2]), 0.95)
