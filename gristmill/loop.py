"""The loop's state between turns, as references only. Pure: what a turn does is the flow's, what follows is here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.recipe import Recipe


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

    def tables_of(self, recipe: Recipe, table: ArtifactRef) -> list[ArtifactRef]:
        """The rollouts that a turn trains on, oldest first: its own, and earlier ones as `curate.data` has it."""
        turns = window(recipe)
        return [*self.tables, table][0 if turns is None else -turns :]

    def start(self, recipe: Recipe) -> ArtifactRef:
        """The model that a turn's training starts from."""
        return self.base if starts_from(recipe) == "base" else self.champion

    def reference(self, recipe: Recipe) -> ArtifactRef | None:
        """The frozen model that dpo and kto hold the policy to; None where that is the one training starts from."""
        if recipe.format.method not in ("dpo", "kto") or recipe.train.reference == "start":
            return None
        return None if self.start(recipe) == self.base else self.base


def starts_from(recipe: Recipe) -> Literal["base", "champion"]:
    """Where training starts: as the recipe says, else sft from the base and every other method from the champion."""
    return recipe.train.init_from or ("base" if recipe.format.method == "sft" else "champion")


def window(recipe: Recipe) -> int | None:
    """Of how many turns, the present one among them, a training has the rollouts; None for all."""
    match recipe.curate.data or ("accumulate" if starts_from(recipe) == "base" else "replace"):
        case "accumulate":
            return None
        case "replace":
            return 1
        case data:
            return int(data.removeprefix("window(").removesuffix(")"))


def training_words(recipe: Recipe) -> str:
    """'sft from the base, on the rollouts of all turns so far'."""
    turns = window(recipe)
    data = "all turns so far" if turns is None else "the turn" if turns == 1 else f"the last {turns} turns"
    words = f"{recipe.format.method} from the {starts_from(recipe)}, on the rollouts of {data}"
    apart = starts_from(recipe) == "champion" and recipe.train.reference == "base"
    return words + (", held to the base" if apart and recipe.format.method in ("dpo", "kto") else "")
