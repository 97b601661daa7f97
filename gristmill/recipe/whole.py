"""The recipe as a whole, and what its sections owe each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field, model_validator

from gristmill.identity import digest
from gristmill.recipe.collecting import CollectRecipe, EnvironmentRecipe, PolicyRecipe, RequestsRecipe
from gristmill.recipe.data import ChecksRecipe, CurateRecipe, FormatRecipe, ReviewRecipe
from gristmill.recipe.evidence import EvaluateRecipe, PromoteRecipe, StopRecipe
from gristmill.recipe.running import ExecutionRecipe, SinksRecipe
from gristmill.recipe.section import Section
from gristmill.recipe.training import TrainRecipe

COMPARING = frozenset({"dpo", "kto", "reward", "rl"})
"""Methods that learn from the difference between good and poor rollouts."""


class Recipe(Section):
    """A run of the loop."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9-]*$", description="Lowercase letters, digits and dashes.")
    seed: int = Field(0, ge=0, strict=True, description="Seeds tasks, sampling and training.")
    turns: int = Field(2, ge=1, le=100, description="Turns of the loop.")
    rollouts: tuple[str, ...] = Field(
        (), description="prepare: rollout files, folders, globs, or URLs of such (s3://…). The loop collects its own."
    )
    policy: PolicyRecipe = PolicyRecipe()
    environment: EnvironmentRecipe = EnvironmentRecipe()
    collect: CollectRecipe = CollectRecipe()
    review: ReviewRecipe = ReviewRecipe()
    curate: CurateRecipe = CurateRecipe()
    format: FormatRecipe = FormatRecipe()
    checks: ChecksRecipe = ChecksRecipe()
    train: TrainRecipe = TrainRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    requests: RequestsRecipe = RequestsRecipe()
    promote: PromoteRecipe = PromoteRecipe()
    stop: StopRecipe = StopRecipe()
    execution: ExecutionRecipe = ExecutionRecipe()
    sinks: SinksRecipe = SinksRecipe()

    @model_validator(mode="before")
    @classmethod
    def _compare_all_rewards(cls, values: Any) -> Any:
        """Methods that compare rollouts need the poor ones too: there curation selects nothing by reward."""
        if not isinstance(values, Mapping):
            return values
        chosen = values.get("format", {})
        method = chosen.get("method") if isinstance(chosen, Mapping) else getattr(chosen, "method", "sft")
        curate = values.get("curate", {})
        if not isinstance(method, str) or method not in COMPARING or not isinstance(curate, Mapping):
            return values
        return {**values, "curate": {"min_reward": None, "per_task": None, "deduplicate": False, **curate}}

    @model_validator(mode="after")
    def _no_reward_filter_before_comparing(self) -> Recipe:
        if self.format.method in COMPARING and self.curate.min_reward is not None:
            raise ValueError(
                f"curate.min_reward must be null for format.method {self.format.method}, which needs rollouts of low "
                "reward too; set format.pairs.min_chosen or format.label_threshold instead"
            )
        if self.format.max_tokens is not None and self.format.tokenizer is None and not self.format.token_ids:
            raise ValueError("format.max_tokens needs format.tokenizer, which counts them")
        first = self.evaluate.samples
        if self.promote.on_inconclusive == "collect_more" and self.promote.samples_in_all(first) <= first:
            raise ValueError(
                f"promote.most_samples is {self.promote.most_samples}, no more than evaluate.samples ({first}): "
                "collect_more could collect nothing; raise it"
            )
        return self

    @property
    def digest(self) -> str:
        """Identity of the recipe as resolved."""
        return digest(self.resolved())

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default filled in, as in YAML."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        """The resolved recipe as YAML, in the order of the model."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)
