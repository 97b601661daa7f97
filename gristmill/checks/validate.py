"""Validate: gather the evidence, compute the remedies that are called for, and judge.

Reads rollout tables, the selection over them and, where there are any, the evaluation's task rows; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gristmill.checks import remedies
from gristmill.checks.catalogue import Report, run_checks
from gristmill.checks.contamination import find_leaks
from gristmill.checks.content import Render, read_content, training_prompts
from gristmill.checks.evidence import Evidence
from gristmill.checks.gather import Gathered, Groups, gather, pair_up
from gristmill.checks.registry import PREFERENCES
from gristmill.reasons import DropReason
from gristmill.recipe import ChecksRecipe, CurateRecipe, FormatRecipe, PairsRecipe

Choose = Callable[[CurateRecipe], int]
"""How many rows curation chooses under a recipe."""


def validate(
    tables: Sequence[Sequence[Path]],
    selection: Path,
    counts: Mapping[str, Any],
    *,
    curate: CurateRecipe,
    format: FormatRecipe,
    checks: ChecksRecipe,
    choose: Choose,
    evaluation: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    max_length: int | None = None,
    samples: int | None = None,
    render: Render | None = None,
) -> Report:
    """Check data before training is paid for.

    Args:
        tables: the Parquet files of each rollout table, oldest table first.
        selection: the `selection.parquet` over them.
        counts: of the last stage so far: `rows_read`, `dropped`, and `examples` once rows are written.
        choose: runs curation again under a changed recipe, to compute what a remedy gives.
        evaluation: task rows of the evaluation, to look for leaks; None if there is none.
        max_length: tokens that training keeps of a row.
        samples: rollouts a task that the recipe asks for.
        render: the trainer's chat template.
    """
    method = format.method
    preference = method in PREFERENCES
    found = gather(
        tables,
        selection,
        counts,
        method=method,
        pairs=format.pairs if preference else None,
        label_threshold=format.label_threshold,
        seed=seed,
        max_length=max_length,
        samples=samples,
    )
    evidence = found.evidence
    learns_from_all = method != "sft"  # the others learn from poor answers too, or only need the tasks
    content = read_content(tables, selection, limit=checks.content_rows, usable=learns_from_all, render=render)
    evidence = evidence.model_copy(update={"content": content})
    if method == "sft" and "examples" not in counts and content.rows == content.of:
        # nothing is formatted yet, but every row was converted: those without a chat form will be dropped
        evidence = evidence.model_copy(update={"examples": evidence.examples - sum(content.problems.values())})
    if evaluation is not None:
        prompts, again = training_prompts(tables, selection, usable=learns_from_all)
        leaks = find_leaks(prompts, evaluation, threshold=checks.overlap, allowed=checks.allowed_overlaps, reread=again)
        evidence = evidence.model_copy(update={"contamination": leaks})
    if evidence.examples < checks.min_examples:
        if preference:
            change = _pairing(found, format.pairs, seed, checks)
        elif method == "rl":
            change = _signalling(found, checks)
        else:
            change = _curating(found, curate, choose, checks)
        evidence = evidence.model_copy(update=change)
    return run_checks(evidence, checks)


def _curating(found: Gathered, recipe: CurateRecipe, choose: Choose, checks: ChecksRecipe) -> dict[str, Any]:
    evidence = found.evidence
    change: dict[str, Any] = {}
    if evidence.usable and evidence.method == "sft":
        # what an environment calls unsolved is never proposed as an example to imitate
        solved = max((one.solved_at for one in evidence.environments if one.kind != "constant"), default=math.inf)
        rewards = [reward for reward in found.rewards if reward >= solved]
        below = found.rewards[: len(found.rewards) - len(rewards)][-1:]
        change["what_if"] = remedies.curation(choose, recipe, rewards, evidence.chosen, checks.min_examples, *below)
    if any(task.good for task in found.tasks):

        def expected(more: int) -> float:
            return remedies.more_rows(found.tasks, more, recipe.per_task, distinct=recipe.deduplicate)

        samples = _samples(evidence, [task.rollouts for task in found.tasks])
        change["more_rollouts"] = remedies.enough(expected, samples, checks.min_examples)
    return change


def _pairing(found: Gathered, recipe: PairsRecipe, seed: int, checks: ChecksRecipe) -> dict[str, Any]:
    evidence, groups = found.evidence, found.groups
    if groups is None or not groups.tasks:
        return {}
    gaps, tasks = _gaps(groups, recipe, seed)
    if not tasks:
        return {}
    now = evidence.pairs.count if evidence.pairs else 0

    def make(changed: PairsRecipe) -> int:
        return pair_up(groups, changed, seed).count

    return {
        "what_if": remedies.pairing(make, recipe, gaps, now, checks.min_examples),
        "more_rollouts": remedies.enough(
            lambda more: remedies.more_pairs(tasks, more),
            _samples(evidence, [n for n, _, _ in tasks]),
            checks.min_examples,
        ),
    }


def _signalling(found: Gathered, checks: ChecksRecipe) -> dict[str, Any]:
    """For RL, where a row is a task whose rewards differ: it needs one rollout that ends otherwise than the others."""
    tasks = []
    for unit, candidates in found.groups.tasks if found.groups else ():
        rewards = [one.reward for one in candidates]
        solved = sum(reward >= unit.solved_at for reward in rewards)
        tasks.append((len(rewards), solved, max(rewards) > min(rewards)))
    if not tasks:
        return {}
    samples = _samples(found.evidence, [n for n, _, _ in tasks])
    return {
        "more_rollouts": remedies.enough(lambda more: remedies.more_pairs(tasks, more), samples, checks.min_examples)
    }


def _gaps(groups: Groups, recipe: PairsRecipe, seed: int) -> tuple[list[float], list[tuple[int, int, bool]]]:
    """Gaps under the least one, distinct and descending; and of each task rollouts, solved ones, and whether "
    "it pairs."""
    small: set[float] = set()
    tasks = []
    for unit, candidates in groups.tasks:
        rewards = [one.reward for one in candidates if one.unusable is not DropReason.TRUNCATED]
        if not rewards:
            continue
        one = Groups([(unit, candidates)], groups.binary)
        paired = pair_up(one, recipe, seed).count > 0
        gap = (max(rewards) - min(rewards)) / unit.unit if unit.unit else 0.0
        if 0 < gap < recipe.min_gap:
            small.add(gap)
        tasks.append((len(rewards), sum(reward >= unit.solved_at for reward in rewards), paired))
    return sorted(small, reverse=True), tasks


def _samples(evidence: Evidence, rollouts: Sequence[int]) -> int:
    return evidence.samples if evidence.samples is not None else int(median(rollouts))
