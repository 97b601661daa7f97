"""The gate: a challenger replaces the champion on paired evidence only, and the registry remembers who did.

A challenger is promoted if the lower end of its lift's interval exceeds the minimum effect and no guard fails.

`decide` is pure. The registry is an append-only file of the workspace: promotions, and rollbacks of them. A decision
enters it once, however often a run repeats, and one that was rolled back never again: the loop then goes on from the
champion before, as if its gate had said no.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.comparison import Guard
from gristmill.errors import UsageError
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate
from gristmill.store import Store
from gristmill.workspace import Workspace, append_line, read_lines

FILE = "decision.json"
_REGISTRY = "champions.jsonl"


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


class Champion(BaseModel):
    """One line of the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    recipe_digest: str
    turn: int
    checkpoint: ArtifactRef
    replaced: ArtifactRef
    decision: ArtifactRef
    lift: Estimate
    time: str


class Rollback(BaseModel):
    """A promotion taken back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rolled_back: ArtifactRef
    """The decision that no longer holds."""
    checkpoint: ArtifactRef
    """The champion that it made."""
    back_to: ArtifactRef
    """Who is champion again."""
    reason: str
    time: str


def register(workspace: Workspace, champion: Champion) -> bool:
    """Append a promotion, unless the same checkpoint already replaced the same one on the same evidence, or that was
    rolled back."""
    for known in registry(workspace):
        if isinstance(known, Champion):
            same = (known.checkpoint, known.replaced, known.decision)
            if same == (champion.checkpoint, champion.replaced, champion.decision):
                return False
    append_line(workspace.root / _REGISTRY, champion.model_dump(mode="json"))
    return True


def registry(workspace: Workspace) -> list[Champion | Rollback]:
    """Every line, oldest first."""
    lines = read_lines(workspace.root / _REGISTRY)
    return [(Rollback if "rolled_back" in line else Champion).model_validate(line) for line in lines]


def champions(workspace: Workspace) -> list[Champion]:
    """The promotions that hold, oldest first."""
    gone = rolled_back(workspace)
    return [line for line in registry(workspace) if isinstance(line, Champion) and line.decision not in gone]


def rolled_back(workspace: Workspace) -> frozenset[ArtifactRef]:
    """Decisions that no longer hold."""
    return frozenset(line.rolled_back for line in registry(workspace) if isinstance(line, Rollback))


def roll_back(workspace: Workspace, reason: str) -> Rollback:
    """Take the last promotion that holds back.

    Raises:
        UsageError: there is none.
        WorkspaceBusy: a run is going on.
    """
    with workspace.locked():
        line = champions(workspace)
        if not line:
            raise UsageError(f"there is no promotion to roll back in {workspace.root}")
        last = line[-1]
        taken = Rollback(
            rolled_back=last.decision,
            checkpoint=last.checkpoint,
            back_to=last.replaced,
            reason=reason,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        append_line(workspace.root / _REGISTRY, taken.model_dump(mode="json"))
    return taken
