"""Checks of what rewards tell apart. Each environment is judged on its own scale, and by its kind of reward."""

from __future__ import annotations

from gristmill.charts import number
from gristmill.checks.evidence import Environment, Evidence
from gristmill.checks.finding import Remedy
from gristmill.checks.registry import PREFERENCES, Said, check, percent
from gristmill.example import Method
from gristmill.recipe import ChecksRecipe
from gristmill.words import many

_RANKED: frozenset[Method] = frozenset({"dpo", "reward", "kto", "rl"})
_NEARLY_ALL = 0.9
_STRETCH = 10.0  # the whole range is so many times the middle half
_CONFLICT = -0.3
_FEW_ROWS = 20  # distributions of fewer rows are not judged


@check("GM104", "Identical rewards", "warning", "Do rewards differ at all?")
def identical(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    same = [one for one in evidence.environments if one.kind == "constant" and one.rows > 1]
    if not same:
        return None
    names = _names(same)
    every = "every usable rollout" if len(same) == len(evidence.environments) else f"every usable rollout of {names}"
    rewards = sorted({one.reward.min for one in same})
    has = f"the same reward ({number(rewards[0])})" if len(rewards) == 1 else "the same reward within its environment"
    return Said(
        f"{every} has {has}: selection by reward does nothing there; look at the verifier, or at tasks that are all "
        "too easy or too hard",
        {"environments": len(same), "rows": sum(one.rows for one in same)},
    )


@check("GM105", "Few solved rollouts", "warning", "Does the policy solve its tasks often enough to learn from it?")
def few_solved(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    poor = [
        one for one in evidence.environments if one.kind != "constant" and one.solved < recipe.min_solved * one.rows
    ]
    if not poor:
        return None
    worst = min(poor, key=lambda one: (one.solved / one.rows, one.name))
    return Said(
        f"{worst.name} is solved (reward ≥ {number(worst.solved_at)}) in {percent(worst.solved / worst.rows)} of "
        f"{many(worst.rows, 'rollout')}, mean reward {number(worst.reward.mean)}; less than "
        f"{percent(recipe.min_solved)} (checks.min_solved){_others(poor)}; take easier tasks, or a stronger policy to "
        "collect with",
        {"environment": worst.name, "solved": worst.solved, "rows": worst.rows, "mean": round(worst.reward.mean, 6)},
    )


@check("GM106", "One reward nearly everywhere", "note", "Does a graded reward really grade?")
def lumped(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    lumps = [
        one
        for one in evidence.environments
        if one.kind in ("continuous", "unbounded")
        and one.rows >= _FEW_ROWS
        and one.commonest_rows >= _NEARLY_ALL * one.rows
    ]
    if not lumps:
        return None
    worst = max(lumps, key=lambda one: (one.commonest_rows / one.rows, one.name))
    return Said(
        f"{percent(worst.commonest_rows / worst.rows)} of {worst.name}'s rewards are {number(worst.commonest)}, though "
        f"they reach from {number(worst.reward.min)} to {number(worst.reward.max)}{_others(lumps)}; what "
        "differs is rare",
        {"environment": worst.name, "reward": worst.commonest, "rows": worst.commonest_rows, "of": worst.rows},
    )


@check("GM107", "Outlying rewards", "warning", "Is the reward's range made by a few rows?", _RANKED | {"sft"})
def stretched(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    wide = []
    for one in evidence.environments:
        if one.kind == "unbounded" and one.rows >= _FEW_ROWS:
            inner = one.reward.p75 - one.reward.p25
            whole = one.reward.max - one.reward.min
            if inner > 0 and whole > _STRETCH * inner:
                wide.append((whole / inner, one))
    if not wide:
        return None
    factor, worst = max(wide, key=lambda item: (item[0], item[1].name))
    return Said(
        f"{worst.name}'s rewards reach from {number(worst.reward.min)} to {number(worst.reward.max)}, "
        f"{factor:.0f} times as far as their middle half ({number(worst.reward.p25)} to {number(worst.reward.p75)})"
        f"{_others([one for _, one in wide])}: gaps are shares of that range, so ordinary differences look small; "
        "lower format.pairs.min_gap, or leave the outliers out with curate.where",
        {
            "environment": worst.name,
            "min": worst.reward.min,
            "p25": worst.reward.p25,
            "p75": worst.reward.p75,
            "max": worst.reward.max,
        },
    )


@check("GM201", "Small gaps", "warning", "Are pairs left out because their rewards are too close?", PREFERENCES)
def small_gaps(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    pairs = evidence.pairs
    if pairs is None or not pairs.small or pairs.small <= pairs.count:
        return None
    return Said(
        f"in {many(pairs.small, 'task')} the best and the worst answer differ by less than format.pairs.min_gap, more "
        f"than the {many(pairs.count, 'pair')} that remain; the rewards may not tell good answers from poor ones",
        {"small": pairs.small, "pairs": pairs.count},
        tuple(
            Remedy(setting=one.setting, old=one.old, new=one.new, effect=f"would make {one.rows:,}", rows=one.rows)
            for one in evidence.what_if
            if one.setting == "format.pairs.min_gap"
        ),
    )


@check("GM202", "Gaps all near the largest", "note", "Do graded rewards give graded pairs?", PREFERENCES)
def full_gaps(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    pairs = evidence.pairs
    if pairs is None or pairs.binary or pairs.count < _FEW_ROWS or pairs.near_full < _NEARLY_ALL * pairs.count:
        return None
    return Said(
        f"{percent(pairs.near_full / pairs.count)} of the pairs set a perfect answer against a total failure, though "
        "rewards are graded: such pairs are easy and teach little; format.pairs.strategy: folded or all also pairs "
        "answers that are closer",
        {"near_full": pairs.near_full, "pairs": pairs.count},
    )


@check(
    "GM203",
    "Chosen answers are longer",
    "warning",
    "Would preference training learn length?",
    PREFERENCES,
)
def longer_chosen(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    pairs = evidence.pairs
    if pairs is None or pairs.count < _FEW_ROWS or not pairs.chosen_chars or not pairs.rejected_chars:
        return None
    ratio = pairs.chosen_chars / pairs.rejected_chars
    if ratio <= recipe.max_length_ratio:
        return None
    return Said(
        f"chosen answers are {ratio:.1f} times as long as rejected ones (median {pairs.chosen_chars:.0f} against "
        f"{pairs.rejected_chars:.0f} characters; in {percent(pairs.longer_chosen / pairs.count)} of the pairs the "
        f"chosen one is longer), more than {recipe.max_length_ratio:g} (checks.max_length_ratio): the model would "
        "learn to write more; pair answers of like length, or train with a length-normalised loss (SimPO, LD-DPO)",
        {"ratio": round(ratio, 6), "longer": pairs.longer_chosen, "pairs": pairs.count},
    )


@check(
    "GM204",
    "Labels out of balance",
    "warning",
    "Are there enough good and bad answers for KTO?",
    frozenset({"kto"}),
)
def unbalanced_labels(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    good, bad = evidence.desirable, evidence.undesirable
    if not good + bad:
        return None
    share = min(good, bad) / (good + bad)
    if share >= recipe.min_label_share:
        return None
    rarer = "desirable" if good < bad else "undesirable"
    return Said(
        f"{good:,} desirable and {bad:,} undesirable answers: only {percent(share)} are {rarer}, less than "
        f"{percent(recipe.min_label_share)} (checks.min_label_share); weigh them so that the two sides count alike "
        "within 1 : 1 and 4 : 3 (desirable_weight, undesirable_weight), or cap the commoner side",
        {"desirable": good, "undesirable": bad, "share": round(share, 6)},
    )


@check("GM301", "Little signal within tasks", "warning", "Do rollouts of one task differ in reward?", _RANKED)
def no_signal(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    repeated = sum(one.repeated_tasks for one in evidence.environments)
    signal = sum(one.signal_tasks for one in evidence.environments)
    if not repeated or signal / repeated >= recipe.min_signal:
        return None
    never = sum(one.never for one in evidence.environments)
    always = sum(one.always for one in evidence.environments)
    std = sum((one.within_std or 0) * one.repeated_tasks for one in evidence.environments) / repeated
    return Said(
        f"in {percent(signal / repeated)} of {many(repeated, 'task')} with several rollouts do rewards differ, less "
        f"than {percent(recipe.min_signal)} (checks.min_signal); {never} were never solved, {always} always, the mean "
        f"standard deviation within a task is {number(std)}: without a difference there is no advantage and no pair; "
        "take tasks of middling difficulty, or more rollouts a task",
        {"signal": signal, "repeated": repeated, "never": never, "always": always, "std": round(std, 6)},
    )


@check("GM302", "Tasks always solved", "note", "How many tasks have nothing left to teach?")
def always_solved(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    return _extreme(evidence, "always", "are solved by every rollout: they teach nothing new; take harder ones")


@check("GM303", "Tasks never solved", "note", "How many tasks are out of reach?")
def never_solved(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    return _extreme(
        evidence, "never", "are solved by no rollout: they give no example; take easier ones, or more rollouts a task"
    )


@check("GM304", "Parts of the reward conflict", "warning", "Do the reward's components pull together?")
def conflicting(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    found = [(c, one) for one in evidence.environments for c in one.conflicts if c.correlation <= _CONFLICT]
    if not found:
        return None
    worst, one = min(found, key=lambda item: (item[0].correlation, item[1].name))
    more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
    return Said(
        f"in {one.name}, rollouts with more {worst.first} have less {worst.second} (rank correlation "
        f"{number(worst.correlation)} over {many(worst.rows, 'rollout')}){more}: their sum rewards a "
        "compromise; require "
        "both of pairs with format.pairs.metrics, or filter on one with curate.where",
        {"first": worst.first, "second": worst.second, "correlation": worst.correlation, "rows": worst.rows},
    )


def _extreme(evidence: Evidence, which: str, advice: str) -> Said | None:
    repeated = sum(one.repeated_tasks for one in evidence.environments)
    count = sum(getattr(one, which) for one in evidence.environments)
    if not repeated or count <= repeated / 2:
        return None
    bins = [sum(one.solve_rates[i] for one in evidence.environments) for i in range(6)]
    labels = ("0", "up to 1/4", "up to 1/2", "up to 3/4", "below 1", "1")
    return Said(
        f"{count:,} of {many(repeated, 'task')} with several rollouts {advice} (tasks by solve rate: "
        f"{', '.join(f'{label}: {n:,}' for label, n in zip(labels, bins, strict=True))})",
        {"tasks": count, "repeated": repeated},
    )


def _names(environments: list[Environment]) -> str:
    names = [one.name for one in environments]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _others(environments: list[Environment]) -> str:
    return f" (and {len(environments) - 1} more environments)" if len(environments) > 1 else ""
