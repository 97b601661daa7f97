"""The catalogue: every check, in the order of ids, and how it is run.

Errors stop training, warnings say what will probably disappoint, notes what is worth knowing. `checks.strict` makes
warnings errors; `checks.silence` leaves checks out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from gristmill.checks import about_policy, about_rewards, about_rows, about_size
from gristmill.checks.evidence import Evidence
from gristmill.checks.finding import Finding
from gristmill.checks.registry import REGISTER, Check
from gristmill.errors import GateError, RecipeError
from gristmill.example import Method
from gristmill.recipe import ChecksRecipe

# what fills the register
_CHAPTERS = (about_size, about_rewards, about_rows, about_policy)

_ORDER = {"error": 0, "warning": 1, "note": 2}


class Report(BaseModel):
    """What the checks said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    findings: tuple[Finding, ...] = Field(description="Errors first, then warnings, then notes; by id.")
    passed: tuple[str, ...] = Field(description="Ids of checks that had nothing to say.")
    silenced: tuple[str, ...]
    evidence: Evidence

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def count(self, severity: str) -> int:
        """Findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)


def catalogue() -> tuple[Check, ...]:
    """Every check, by id."""
    return tuple(REGISTER[id] for id in sorted(REGISTER))


def run_checks(evidence: Evidence, recipe: ChecksRecipe) -> Report:
    """Judge evidence.

    Raises:
        RecipeError: `checks.silence` names no check.
    """
    if unknown := [id for id in recipe.silence if id not in REGISTER]:
        raise RecipeError(
            f"checks.silence: there is no check {unknown[0]!r}; docs/checks.md lists them "
            f"({', '.join(sorted(REGISTER)[:3])}, …)"
        )
    findings: list[Finding] = []
    passed: list[str] = []
    for one in catalogue():
        if one.id in recipe.silence or evidence.method not in one.methods:
            continue
        said = one.judge(evidence, recipe)
        if said is None:
            passed.append(one.id)
            continue
        raised = recipe.strict and one.severity == "warning"
        findings.append(
            Finding(
                id=one.id,
                title=one.title,
                severity="error" if raised else one.severity,
                message=said.message,
                evidence=said.evidence,
                remedies=said.remedies,
                where=said.where,
            )
        )
    findings.sort(key=lambda finding: (_ORDER[finding.severity], finding.id))
    return Report(
        method=evidence.method,
        findings=tuple(findings),
        passed=tuple(passed),
        silenced=tuple(sorted(set(recipe.silence))),
        evidence=evidence,
    )


def require_no_errors(findings: Sequence[Finding]) -> None:
    """Stop on errors.

    Raises:
        GateError: one sentence per error.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise GateError("; ".join(finding.sentence for finding in errors))
