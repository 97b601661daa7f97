"""Two policies on the same held-out tasks: what got better, and what got worse on the way.

Reads two evaluations; every difference is paired by task. A `Guard` is a condition that must hold besides a
higher mean reward: a policy may gain on average and lose a category, its spread of answers, or its brevity.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from gristmill.errors import UsageError
from gristmill.evaluation import Evaluation, Measure, attempts, lift, solved_in
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate, Ratio, paired_difference, paired_ratio


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
    chars: Ratio | None
    """Mean characters of an answer, challenger's over champion's; null if the champion's are empty."""
    tokens: Ratio | None
    """The same in tokens; null where rollouts do not count them."""
    failure_rise: Estimate
    """Share of samples that are missing or cut, challenger's − champion's."""
    diversity: Ratio | None
    """Chance that two unsolved answers to a task differ, challenger's over champion's, on the tasks that leave both two
    of them; null where there are none."""
    remarks: tuple[str, ...] = ()
    """Sentences on what differs in how the two were collected, though their tasks are the same."""


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
        chars=_ratio(challenger.chars, champion.chars, confidence),
        tokens=_ratio(challenger.tokens, champion.tokens, confidence),
        failure_rise=paired_difference(
            {task: [value] for task, value in challenger.failures.by_task.items()},
            {task: [value] for task, value in champion.failures.by_task.items()},
            confidence,
        ),
        diversity=_ratio(challenger.diversity, champion.diversity, confidence),
        remarks=tuple(_remarks(challenger, champion)),
    )


def guards(found: Comparison, recipe: PromoteRecipe) -> tuple[Guard, ...]:
    """The conditions that the recipe sets, with what was measured.

    Each fails only on what the evidence shows, the whole interval beyond what is allowed: chance alone refuses few.
    """
    return tuple(_guards(found, recipe))


def _guards(found: Comparison, recipe: PromoteRecipe) -> Iterator[Guard]:
    if recipe.max_pass_drop is not None and found.pass_at:
        k = max(found.pass_at)
        yield _no_drop(f"pass@{k}", found.pass_at[k], recipe.max_pass_drop, "promote.max_pass_drop")
    if recipe.max_category_drop is not None:
        for one in found.categories:
            yield _no_drop(f"category {one.name}", one.estimate, recipe.max_category_drop, "promote.max_category_drop")
    if recipe.max_length_ratio is not None:
        most, setting = recipe.max_length_ratio, "promote.max_length_ratio"
        for ratio, unit in ((found.chars, "characters"), (found.tokens, "tokens")):
            if ratio is not None:
                yield Guard(
                    name=f"length in {unit}",
                    passed=ratio.low is None or ratio.low <= most,
                    evidence=f"answers are {_times(ratio)} as long in {unit}, at most {most:g} ({setting})",
                )
    if recipe.max_failure_rise is not None:
        rise, allowed = found.failure_rise, recipe.max_failure_rise
        interval = "no interval" if rise.low is None else f"interval {rise.low:+.1%} to {rise.high:+.1%}"
        yield Guard(
            name="failures",
            passed=rise.low is None or rise.low <= allowed,
            evidence=f"missing or cut samples {rise.mean:+.1%} ({interval}), at most {allowed:+.1%} "
            "(promote.max_failure_rise)",
        )
    if recipe.min_diversity is not None and found.diversity is not None:
        high = found.diversity.high
        yield Guard(
            name="diversity",
            passed=high is None or high >= recipe.min_diversity,
            evidence=f"two unsolved answers to a task differ {_times(found.diversity)} as often, at least "
            f"{recipe.min_diversity:g} (promote.min_diversity)",
        )


def _ratio(challenger: Measure | None, champion: Measure | None, confidence: float) -> Ratio | None:
    if challenger is None or champion is None:
        return None
    return paired_ratio(challenger.by_task, champion.by_task, confidence)


def _times(ratio: Ratio) -> str:
    interval = "no interval" if ratio.low is None else f"interval {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.value:.2f} times ({interval})"


def _remarks(challenger: Evaluation, champion: Evaluation) -> Iterator[str]:
    ours, theirs = challenger.collected, champion.collected
    if not ours or not theirs:
        return
    k, other = (sum(one.samples for one in side) for side in (ours, theirs))
    if k != other:
        yield f"they have {k} and {other} samples a task: pass@k is compared up to {min(k, other)}"
    if [one.seed for one in ours] != [one.seed for one in theirs] and k == other:
        yield (
            f"they were sampled with different seeds ({_seeds(challenger)} and {_seeds(champion)}), which adds no bias "
            "and may widen the interval"
        )
    differing = sorted(
        {
            name
            for one, two in zip(ours, theirs, strict=False)
            for name in one.sampling.keys() | two.sampling.keys()
            if one.sampling.get(name) != two.sampling.get(name)
        }
    )
    for name in differing:
        one, two = ours[0].sampling.get(name), theirs[0].sampling.get(name)
        yield f"they were sampled differently: {name} is {one} and {two}, so the policies are not all that differs"


def _seeds(side: Evaluation) -> str:
    return ", ".join(str(one.seed) for one in side.collected)


def _no_drop(name: str, difference: Estimate, most: float, setting: str) -> Guard:
    """Fails only on a drop that the evidence shows: the whole interval lies below the drop that is allowed."""
    interval = "no interval" if difference.high is None else f"interval {difference.low:+.3f} to {difference.high:+.3f}"
    return Guard(
        name=name,
        passed=difference.high is None or difference.high >= -most,
        evidence=f"{difference.mean:+.3f} ({interval}), a drop of at most {most:g} ({setting})",
    )
