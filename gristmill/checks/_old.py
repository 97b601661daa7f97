"""Checks that a dataset must pass before training is paid for.

A finding has a stable id, a severity, the evidence measured and what to change. An error stops the run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gristmill.errors import GateError
from gristmill.recipe import ChecksRecipe


class Finding(BaseModel):
    """One result of one check that has something to say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    severity: Literal["error", "warning", "note"]
    message: str


def check_dataset(counts: dict[str, Any], recipe: ChecksRecipe) -> list[Finding]:
    """Judge a dataset by its counts.

    Args:
        counts: `examples`, `rows_read`, `rows_kept`, `dropped` (reason → count), `truncated` (rows),
            `rewards` with `min` and `max` over the usable rollouts, as the dataset's manifest has them.
    """
    findings = []
    examples, read = counts["examples"], counts["rows_read"]
    if examples < recipe.min_examples:
        biggest = sorted(counts["dropped"].items(), key=lambda item: (-item[1], item[0]))[:3]
        causes = ", ".join(f"{n} {reason}" for reason, n in biggest) or "no rows were read"
        findings.append(
            Finding(
                id="GM102",
                severity="error",
                message=f"too few examples: {examples} < {recipe.min_examples} (checks.min_examples), from {read} "
                f"rollouts; dropped: {causes}. Collect more (collect.samples, environment.tasks) or lower "
                "curate.min_reward",
            )
        )
    if read and (share := counts["truncated"] / read) > recipe.max_truncated:
        findings.append(
            Finding(
                id="GM110",
                severity="error",
                message=f"{share:.0%} of the rollouts are cut at the length limit, more than "
                f"{recipe.max_truncated:.0%} (checks.max_truncated); raise collect.max_new_tokens",
            )
        )
    rewards = counts["rewards"]
    if rewards["min"] is not None and rewards["min"] == rewards["max"]:
        findings.append(
            Finding(
                id="GM104",
                severity="warning",
                message=f"every usable rollout has the same reward ({rewards['min']:g}): "
                "selection by reward does nothing here",
            )
        )
    return findings


def require_no_errors(findings: list[Finding]) -> None:
    """Stop on errors.

    Raises:
        GateError: one sentence per error.
    """
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise GateError("; ".join(f"{f.id} {f.message}" for f in errors))
