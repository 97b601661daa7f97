"""Checks of how much there is to train on, and of what was lost on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gristmill.checks.evidence import Evidence
from gristmill.checks.finding import Remedy
from gristmill.checks.registry import PREFERENCES, Said, check, percent
from gristmill.reasons import DropReason
from gristmill.recipe import ChecksRecipe
from gristmill.words import many

_UNREADABLE = (
    *(DropReason.NOT_JSON, DropReason.TORN_LINE, DropReason.NOT_AN_OBJECT, DropReason.NO_RESPONSE),
    *(DropReason.NO_REWARD, DropReason.REWARD_NULL, DropReason.REWARD_NOT_FINITE, DropReason.REWARD_NOT_A_NUMBER),
    *(DropReason.EMPTY_OUTPUT, DropReason.MALFORMED_OUTPUT),
)
_FAILED = (DropReason.FAILURE, DropReason.RESPONSE_ERROR)


@check(
    "GM102",
    "Too few examples",
    "error",
    "Are there enough rows to train on?",
    frozenset({"sft", "kto", "rl"}),
)
def too_few_examples(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if evidence.examples >= recipe.min_examples:
        return None
    return Said(
        f"too few examples: {evidence.examples} < {recipe.min_examples} (checks.min_examples), {_causes(evidence)}",
        {"examples": evidence.examples, "rows_read": evidence.rows_read},
        _remedies(evidence, recipe.min_examples),
    )


@check(
    "GM103",
    "Too few preference pairs",
    "error",
    "Do enough tasks have a better and a worse answer?",
    PREFERENCES,
)
def too_few_pairs(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    if evidence.examples >= recipe.min_examples:
        return None
    repeated = sum(one.repeated_tasks for one in evidence.environments)
    signal = sum(one.signal_tasks for one in evidence.environments)
    small = evidence.pairs.small if evidence.pairs else 0
    cut = many(evidence.truncated, "rollout")
    return Said(
        f"too few pairs: {evidence.examples} < {recipe.min_examples} (checks.min_examples), from "
        f"{many(evidence.rows_read, 'rollout')}; of {many(repeated, 'task')} with several rollouts, {signal} "
        "have rewards that differ"
        + (f", and in {small} of these the gap is too small" if small else "")
        + (f"; {cut} cut at the length limit can be no rejected side" if evidence.truncated else ""),
        {
            "pairs": evidence.examples,
            "truncated": evidence.truncated,
            "repeated_tasks": repeated,
            "signal_tasks": signal,
            "small_gaps": small,
        },
        _remedies(evidence, recipe.min_examples),
    )


@check("GM110", "Answers cut off", "error", "How many answers hit the length limit?")
def truncated(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    return _share(
        evidence.truncated,
        evidence.rows_read,
        recipe.max_truncated,
        "of the rollouts are cut at the length limit",
        "checks.max_truncated",
        "raise collect.max_new_tokens",
    )


@check("GM111", "Failures", "warning", "How many rollouts failed for reasons that are not the policy's?")
def failures(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    count = _dropped(evidence, _FAILED)
    return _share(
        count,
        evidence.rows_read,
        recipe.max_failures,
        "of the rows are failures of the infrastructure",
        "checks.max_failures",
        "they are left out, never counted as a reward of 0; mend the servers and collect these tasks again",
    )


@check("GM112", "Masked rows", "warning", "How many rows did the collector exclude from the loss?")
def masked(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    return _share(
        _dropped(evidence, (DropReason.MASKED,)),
        evidence.rows_read,
        recipe.max_masked,
        "of the rows are masked by the agent (mask_sample)",
        "checks.max_masked",
        "the agent excludes what it could not judge; look at its limits of turns, time and context",
    )


@check("GM113", "Unreadable rows", "warning", "How many rows are no scored rollouts at all?")
def unreadable(evidence: Evidence, recipe: ChecksRecipe) -> Said | None:
    found = {str(reason): evidence.dropped[reason] for reason in _UNREADABLE if evidence.dropped.get(reason)}
    said = _share(
        sum(found.values()),
        evidence.rows_read,
        recipe.max_unreadable,
        "of the rows cannot be used",
        "checks.max_unreadable",
        "`gristmill inspect --quarantine DIR` writes them out, with reasons",
    )
    return said and said._replace(
        message=f"{said.message} ({', '.join(f'{count} {reason}' for reason, count in found.items())})",
        evidence={**said.evidence, **found},
    )


def _dropped(evidence: Evidence, reasons: Iterable[DropReason]) -> int:
    return sum(evidence.dropped.get(reason, 0) for reason in reasons)


def _share(count: int, of: int, most: float, what: str, threshold: str, advice: str) -> Said | None:
    if not of or count / of <= most:
        return None
    share = count / of
    return Said(
        f"{percent(share)} {what} ({count:,} of {of:,}), more than {percent(most)} ({threshold}); {advice}",
        {"rows": count, "of": of, "share": round(share, 6)},
    )


def _causes(evidence: Evidence) -> str:
    biggest = sorted(evidence.dropped.items(), key=lambda item: (-item[1], item[0]))[:3]
    causes = ", ".join(f"{count} {reason}" for reason, count in biggest if count)
    lost = f"dropped: {causes}" if causes else "nothing was dropped" if evidence.rows_read else "no rows were read"
    return f"from {many(evidence.rows_read, 'rollout')}; {lost}"


def _remedies(evidence: Evidence, wanted: int) -> tuple[Remedy, ...]:
    """Settings that would give more rows, most rows first; what was computed beforehand."""
    verb = "would make" if evidence.method in PREFERENCES else "would choose"
    remedies = [
        Remedy(setting=one.setting, old=one.old, new=one.new, effect=f"{verb} {one.rows:,}", rows=one.rows)
        for one in evidence.what_if
    ]
    if (more := evidence.more_rollouts) is not None:
        remedies.append(
            Remedy(
                setting="collect.samples",
                old=more.samples,
                new=more.samples + more.more,
                effect=f"({many(more.more, 'more rollout')} a task) would give about {more.rows:,.0f}",
                rows=more.rows,
            )
        )
    if evidence.tasks and evidence.examples and all((one.rows or 0) < wanted for one in remedies):
        need = math.ceil(evidence.tasks * wanted / evidence.examples)
        remedies.append(
            Remedy(
                setting="environment.tasks",
                old=evidence.tasks,
                new=need,
                effect=f"would give about {need * evidence.examples / evidence.tasks:,.0f} at the same yield",
                rows=need * evidence.examples / evidence.tasks,
            )
        )
    return tuple(remedies)
