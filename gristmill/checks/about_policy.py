"""Checks over time and across the split: stale policies, falling diversity, leaks into the evaluation."""

from __future__ import annotations

from gristmill.checks.evidence import Evidence, Leak
from gristmill.checks.registry import Said, check, percent
from gristmill.recipe import ChecksRecipe
from gristmill.words import many

_SHOWN = 3


@check("GM401", "Rollouts of an older policy", "note", "Are the rows still what the policy would say?")
def stale(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if len(evidence.turns) < 2 or not evidence.chosen:
        return None
    newest = evidence.turns[-1].models
    old = sum(count for model, count in evidence.chosen_models.items() if model not in newest)
    if old <= recipe.max_stale * evidence.chosen:
        return None
    return Said(
        f"{percent(old / evidence.chosen)} of {many(evidence.chosen, 'chosen rollout')} were collected with an older "
        f"policy than the newest rollouts, more than {percent(recipe.max_stale)} (checks.max_stale): fine for SFT from "
        "the base model, off-policy for preferences and RL; set curate.data: replace, or collect more with the "
        "champion",
        {"old": old, "rows": evidence.chosen},
    )


@check("GM402", "Diversity falls", "warning", "Does the policy still try different answers?")
def falling_diversity(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    known = [turn.distinct for turn in evidence.turns if turn.distinct is not None]
    if len(known) < 2 or known[0] <= 0:
        return None
    fall = 1 - known[-1] / known[0]
    if fall <= recipe.max_diversity_fall:
        return None
    series = " → ".join(percent(value) for value in known)
    return Said(
        f"distinct answers a rollout fall from turn to turn ({series}), by {percent(fall)}, more than "
        f"{percent(recipe.max_diversity_fall)} (checks.max_diversity_fall): the policy collapses on few answers, and "
        "further turns find less to learn; raise collect.temperature, or lower train.epochs",
        {"first": round(known[0], 6), "last": round(known[-1], 6), "fall": round(fall, 6)},
    )


@check("GM501", "Evaluation tasks in the training data", "error", "Does training show evaluation tasks word for word?")
def exact_leaks(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    found = evidence.contamination
    if found is None or not found.exact:
        return None
    return Said(
        f"{len(found.exact)} of {many(found.tasks, 'evaluation task')} stand in the training data word for word, such "
        f"as {_said(found.exact[0])}: their scores would prove nothing; {_advice(found.exact[0])}",
        {"leaked": len(found.exact), "tasks": found.tasks, "prompts": found.prompts},
        where=_where(found.exact),
    )


@check("GM502", "Evaluation tasks overlap with the training data", "error", "Does training show most of one?")
def overlapping_leaks(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    found = evidence.contamination
    if found is None or not found.overlapping:
        return None
    worst = found.overlapping[0]
    return Said(
        f"{len(found.overlapping)} of {many(found.tasks, 'evaluation task')} share at least {percent(recipe.overlap)} "
        f"(checks.overlap) of their own words, in runs of {found.n}, with a training prompt, such as {_said(worst)} "
        f"({percent(worst.share)}); {_advice(worst)}",
        {"leaked": len(found.overlapping), "tasks": found.tasks, "prompts": found.prompts, "n": found.n},
        where=_where(found.overlapping),
    )


@check("GM503", "Contamination not checked", "note", "Is there an evaluation to compare with?")
def not_compared(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    found = evidence.contamination
    if found is None:
        return Said(
            "no evaluation tasks were given, so nobody knows whether training shows them; "
            "`gristmill validate --against FILE` compares",
            {},
        )
    if found.tasks and found.prompts:
        return None
    which = "evaluation tasks have" if not found.tasks else "training rows have"
    return Said(
        f"the {which} no prompt of their own to compare (it is empty, or the same for all), so leaks cannot be seen; "
        "compare the tasks where they are made",
        {"tasks": found.tasks, "prompts": found.prompts},
    )


@check("GM504", "Stale entries on the reviewed list", "note", "Does checks.allowed_overlaps still name known tasks?")
def unknown_allowed(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    found = evidence.contamination
    if found is None or not found.unknown_allowed:
        return None
    return Said(
        f"checks.allowed_overlaps names {many(len(found.unknown_allowed), 'task')} that the evaluation does not have: "
        f"{', '.join(found.unknown_allowed[:_SHOWN])}; take them off the list",
        {"unknown": len(found.unknown_allowed)},
    )


def _said(leak: Leak) -> str:
    text = leak.evaluation if len(leak.evaluation) <= 80 else f"{leak.evaluation[:80]}…"
    return f"“{text}” ({leak.where})"


def _advice(leak: Leak) -> str:
    return (
        f"leave these rows out, hold out other tasks, or, where it is fine, say why: checks.allowed_overlaps: "
        f"{{{leak.task}: reason}}"
    )


def _where(leaks: tuple[Leak, ...]) -> tuple[str, ...]:
    return tuple(f"{leak.task} {percent(leak.share)} {leak.where}: {leak.training}" for leak in leaks[:_SHOWN])
