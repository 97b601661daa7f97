"""What is evidence enough: evaluation, promotion, when to stop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gristmill.recipe.collecting import SamplingRecipe
from gristmill.recipe.section import Section


class EvaluateRecipe(SamplingRecipe):
    """Evaluation on the held-out tasks: the same tasks, sampling and seeds for every policy."""


class PromoteRecipe(Section):
    """When a challenger replaces the champion."""

    min_effect: float = Field(
        0.0, description="The lower bound of the paired difference in mean reward must exceed this."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Two-sided confidence of the interval.")
    max_pass_drop: float | None = Field(
        0.0, ge=0, description="Refuse a challenger whose pass@k is shown to drop by more; null does not look."
    )
    max_category_drop: float | None = Field(
        0.0, ge=0, description="Refuse one whose mean reward in a task type is shown to drop by more."
    )
    max_length_ratio: float | None = Field(
        2.0, gt=0, description="Refuse one whose answers are shown to be more than so many times as long."
    )
    max_failure_rise: float | None = Field(
        0.02, ge=0, description="Refuse one whose share of missing or cut samples is shown to rise by more."
    )
    min_diversity: float | None = Field(
        0.25,
        ge=0,
        description="Refuse one whose unsolved answers to a task are shown to differ less than so many times as often.",
    )
    on_inconclusive: Literal["hold", "collect_more"] = Field(
        "hold",
        description="hold: the champion stays. collect_more: both policies attempt the same held-out tasks again, and "
        "the gate decides once more on all samples; each of the two looks then takes half of the error that "
        "`confidence` allows.",
    )
    most_samples: int | None = Field(
        None,
        ge=2,
        description="collect_more: samples a task in all, above evaluate.samples; null: four times evaluate.samples.",
    )

    @property
    def look_confidence(self) -> float:
        """Of the interval at one look. Two looks share the error (Bonferroni), however they depend on each other."""
        return self.confidence if self.on_inconclusive == "hold" else 1 - (1 - self.confidence) / 2

    def samples_in_all(self, first: int) -> int:
        """Samples a task after the second look, when the first had `first`. Fixed before anything is seen: a number
        that depended on the first look would promote too often (Proschan and Hunsberger 1995)."""
        return self.most_samples or 4 * first


class StopRecipe(Section):
    """When the loop ends before its last turn. A budget is never knowingly exceeded: a turn that would is not begun."""

    without_promotion: int | None = Field(None, ge=1, description="So many turns in a row that promoted nothing.")
    rollouts: int | None = Field(None, ge=1, description="Rollouts in all, for training and evaluation.")
    tokens: int | None = Field(None, ge=1, description="Generated tokens in all.")
    hours: float | None = Field(
        None, gt=0, description="Hours that the stages took in all; what was cached counts as when it was made."
    )
