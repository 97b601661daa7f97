"""The registry of champions: an append-only file of the workspace, promotions and rollbacks of them.

A decision enters it once, however often a run repeats, and one that was rolled back never again: the loop then goes on
from the champion before, as if its gate had said no.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef, now
from gristmill.errors import UsageError
from gristmill.statistics import Estimate
from gristmill.workspace import Workspace

_REGISTRY = "champions.jsonl"


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
    workspace.append(_REGISTRY, champion.model_dump(mode="json"))
    return True


def registry(workspace: Workspace) -> list[Champion | Rollback]:
    """Every line, oldest first."""
    lines = workspace.read(_REGISTRY)
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
            raise UsageError(f"there is no promotion to roll back in {workspace}")
        last = line[-1]
        taken = Rollback(
            rolled_back=last.decision,
            checkpoint=last.checkpoint,
            back_to=last.replaced,
            reason=reason,
            time=now(),
        )
        workspace.append(_REGISTRY, taken.model_dump(mode="json"))
    return taken
