"""Two policies on the same held-out tasks: what got better, and what got worse on the way.

Reads two evaluations; every difference is paired by task. A `Guard` is a condition that must hold besides a
higher mean reward: a policy may gain on average and lose a category, its spread of answers, or its brevity.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from gristmill.errors import UsageError
from gristmill.evaluation import Evaluation, attempts, lift, solved_in
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate, paired_difference


class Difference(BaseModel):
    """A paired difference by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    estimate: Estimate


class Guard(BaseModel):
    """One condition besides the lift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    evidence: str
    """What was measured against which setting, as a clause."""


class Comparison(BaseModel):
    """Challenger − champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lift: Estimate
    """Of the mean reward."""
    pass_at: dict[int, Estimate]
    """k → difference of the share of tasks solved in k attempts."""
    categories: tuple[Difference, ...]
    """Of the mean reward by task type. Their intervals hold together: each has the confidence that all need for it
    (Bonferroni)."""
    length_ratio: float | None
    """Mean characters of an answer, challenger's over champion's; null if the champion's are empty."""
    failure_rise: float
    """Share of samples that are missing or cut, challenger's − champion's."""
    diversity_ratio: float
    """Distinct answers of a task over its samples, challenger's over champion's."""


def compare(challenger: Evaluation, champion: Evaluation, confidence: float) -> Comparison:
    """Pair two evaluations.

    Raises:
        UsageError: they were made on different tasks, or call different rewards solved.
    """
    total = lift(challenger, champion, confidence)
    if challenger.solved_at != champion.solved_at:
        raise UsageError(
            f"one evaluation calls a task solved at {challenger.solved_at:g}, the other at {champion.solved_at:g}; "
            "evaluate both under one environment.solved_at"
        )
    at = challenger.solved_at
    most = sorted({*attempts(challenger.rewards)} & {*attempts(champion.rewards)})
    theirs = {category.name: category for category in champion.categories}
    shared = {
        category.name: tasks
        for category in challenger.categories
        if category.name in theirs and (tasks := set(category.tasks) & set(theirs[category.name].tasks))
    }
    joint = 1 - (1 - confidence) / max(1, len(shared))
    return Comparison(
        lift=total,
        pass_at={
            k: paired_difference(solved_in(challenger.rewards, k, at), solved_in(champion.rewards, k, at), confidence)
            for k in most
        },
        categories=tuple(
            Difference(
                name=name,
                estimate=paired_difference(
                    {task: challenger.rewards[task] for task in tasks},
                    {task: champion.rewards[task] for task in tasks},
                    joint,
                ),
            )
            for name, tasks in shared.items()
        ),
        length_ratio=challenger.mean_answer_chars / champion.mean_answer_chars if champion.mean_answer_chars else None,
        failure_rise=_failures(challenger) - _failures(champion),
        diversity_ratio=challenger.distinct_answers / champion.distinct_answers,
    )


def guards(found: Comparison, recipe: PromoteRecipe) -> tuple[Guard, ...]:
    """The conditions that the recipe sets, with what was measured."""
    checked = []
    if recipe.max_pass_drop is not None and found.pass_at:
        k = max(found.pass_at)
        checked.append(_no_drop(f"pass@{k}", found.pass_at[k], recipe.max_pass_drop, "promote.max_pass_drop"))
    if recipe.max_category_drop is not None:
        for one in found.categories:
            checked.append(
                _no_drop(f"category {one.name}", one.estimate, recipe.max_category_drop, "promote.max_category_drop")
            )
    if recipe.max_length_ratio is not None and found.length_ratio is not None:
        checked.append(
            Guard(
                name="length",
                passed=found.length_ratio <= recipe.max_length_ratio,
                evidence=f"answers are {found.length_ratio:.2f} times as long, at most {recipe.max_length_ratio:g} "
                "(promote.max_length_ratio)",
            )
        )
    if recipe.max_failure_rise is not None:
        checked.append(
            Guard(
                name="failures",
                passed=found.failure_rise <= recipe.max_failure_rise,
                evidence=f"missing or cut samples {found.failure_rise:+.1%}, at most {recipe.max_failure_rise:+.1%} "
                "(promote.max_failure_rise)",
            )
        )
    if recipe.min_diversity is not None:
        checked.append(
            Guard(
                name="diversity",
                passed=found.diversity_ratio >= recipe.min_diversity,
                evidence=f"{found.diversity_ratio:.2f} times as many distinct answers, at least "
                f"{recipe.min_diversity:g} (promote.min_diversity)",
            )
        )
    return tuple(checked)


def _no_drop(name: str, difference: Estimate, most: float, setting: str) -> Guard:
    """Fails only on a drop that the evidence shows: the whole interval lies below the drop that is allowed."""
    interval = "no interval" if difference.high is None else f"interval {difference.low:+.3f} to {difference.high:+.3f}"
    return Guard(
        name=name,
        passed=difference.high is None or difference.high >= -most,
        evidence=f"{difference.mean:+.3f} ({interval}), a drop of at most {most:g} ({setting})",
    )


def _failures(one: Evaluation) -> float:
    """Share of the samples asked for that are missing or cut at the length limit."""
    came = one.expected - one.missing
    return (one.missing + one.truncated_share * came) / one.expected
