"""The gate: a challenger replaces the champion on paired evidence only.

A challenger is promoted if the lower end of its lift's interval exceeds the minimum effect and no guard fails. `decide`
is pure; who was promoted, the registry remembers (gristmill/champions.py).
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.comparison import Guard
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate
from gristmill.store import Store

FILE = "decision.json"


class Verdict(StrEnum):
    """What the gate says."""

    PROMOTED = "promoted"
    """The interval of the lift lies above the minimum effect, and no guard failed."""
    REJECTED = "rejected"
    """The interval lies at or below the minimum effect, or a guard failed: better on average is not all."""
    INCONCLUSIVE = "inconclusive"
    """The interval includes the minimum effect: the champion stays, more tasks or samples could settle it."""


class Decision(BaseModel):
    """A verdict and the evidence it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    lift: Estimate
    min_effect: float
    confidence: float
    reason: str
    guards: tuple[Guard, ...] = ()

    @property
    def promoted(self) -> bool:
        return self.verdict is Verdict.PROMOTED


def decide(lift: Estimate, recipe: PromoteRecipe, guards: tuple[Guard, ...] = ()) -> Decision:
    """Compare the interval of the paired lift with the minimum effect, and look at the guards."""
    floor = recipe.min_effect
    percent = f"{recipe.confidence:.0%}" if (recipe.confidence * 100) % 1 == 0 else f"{recipe.confidence:.1%}"
    if lift.low is None or lift.high is None:
        verdict = Verdict.INCONCLUSIVE
        reason = f"{lift.tasks} task allows no interval; evaluate on more held-out tasks"
    else:
        interval = f"{percent} interval {lift.low:+.3f} to {lift.high:+.3f} over {lift.tasks} tasks"
        if lift.low > floor:
            failed = [f"{guard.name}: {guard.evidence}" for guard in guards if not guard.passed]
            verdict = Verdict.REJECTED if failed else Verdict.PROMOTED
            reason = f"lift {lift.mean:+.3f}, {interval}: its lower end exceeds {floor:+.3f}"
            if failed:
                reason += f", but {'; '.join(failed)}"
        elif lift.high <= floor:
            verdict = Verdict.REJECTED
            reason = f"lift {lift.mean:+.3f}, {interval}: not above {floor:+.3f}"
        else:
            verdict = Verdict.INCONCLUSIVE
            reason = f"lift {lift.mean:+.3f}, {interval}: it includes {floor:+.3f}; more tasks could settle it"
    return Decision(
        verdict=verdict, lift=lift, min_effect=floor, confidence=recipe.confidence, reason=reason, guards=guards
    )


def read_decision(store: Store, ref: ArtifactRef) -> Decision:
    """A decision from the store; its file also names challenger and champion."""
    value = store.read_json(ref, FILE)
    return Decision.model_validate({name: value[name] for name in Decision.model_fields if name in value})
