"""The loop's state between turns, as references only. Pure: what a turn does is the flow's, what follows is here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef


class Turn(BaseModel):
    """What one turn made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn: int
    champion: ArtifactRef
    """The policy that collected, and that the challenger was compared with."""
    champion_evaluation: ArtifactRef
    rollouts: ArtifactRef
    table: ArtifactRef
    selection: ArtifactRef
    dataset: ArtifactRef
    checkpoint: ArtifactRef
    """The challenger."""
    evaluation: ArtifactRef
    heldout_table: ArtifactRef
    decision: ArtifactRef
    promoted: bool


class Standing(BaseModel):
    """Where the loop stands before a turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: ArtifactRef
    heldout: ArtifactRef
    champion: ArtifactRef
    champion_evaluation: ArtifactRef
    tables: tuple[ArtifactRef, ...] = ()
    """Training rollouts of the turns so far, oldest first."""

    def after(self, turn: Turn) -> Standing:
        """The turn's rollouts are added; a promoted challenger becomes champion, any other leaves it alone."""
        update: dict[str, object] = {"tables": (*self.tables, turn.table)}
        if turn.promoted:
            update |= {"champion": turn.checkpoint, "champion_evaluation": turn.evaluation}
        return self.model_copy(update=update)
