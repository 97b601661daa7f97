"""What becomes of rollouts: review, choice, format, checks."""

from __future__ import annotations

import difflib
import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gristmill.presets import PRESETS
from gristmill.recipe.section import Section


class ReviewRecipe(Section):
    """A person's look at rollouts, before they are chosen from."""

    required: bool = Field(
        False, description="Each turn waits until its sample is decided on, with `gristmill review NAME`."
    )
    low: int = Field(10, ge=0, description="Rollouts of low reward in a turn's sample.")
    middle: int = Field(10, ge=0, description="Rollouts of middle reward in it.")
    high: int = Field(10, ge=0, description="Rollouts of high reward in it.")


class BalanceRecipe(Section):
    """How many rollouts each category gives: `cap` or `weights`."""

    by: str = Field(description="A column, metric, label or task field, or an SQL expression: `agent`, `difficulty`.")
    cap: int | None = Field(None, ge=1, description="At most so many rollouts a category.")
    weights: dict[str, float] | None = Field(
        None,
        description="Category → share, as many rollouts as these proportions allow; `_default` is for all others.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> BalanceRecipe:
        if (self.cap is None) == (self.weights is None):
            raise ValueError("set either `cap` or `weights`")
        weights = (self.weights or {"_default": 1.0}).values()
        if not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
            raise ValueError("weights are 0 or more, and one is more than 0")
        return self


class CurateRecipe(Section):
    """Which rollouts are worth training on."""

    min_reward: float | None = Field(
        1.0,
        description="Keep rollouts with at least this reward; null keeps all. The default steps aside where `preset` "
        "or `where` speaks of the reward.",
    )
    preset: tuple[str, ...] = Field((), description=f"Filters by name: {', '.join(PRESETS)}.")
    where: tuple[str, ...] = Field(
        (),
        description="SQL conditions, all of which must hold: over columns, metrics, labels, task fields and what is "
        "known of a rollout's task; docs/curate.md lists the names.",
    )
    keep_truncated: bool = Field(False, description="Keep answers that were cut at the length limit.")
    max_chars: int | None = Field(None, ge=1, description="Characters of prompt and answer together at most.")
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens of the whole conversation at most, as `tokenizer`'s chat template renders it."
    )
    tokenizer: str | None = Field(None, description="For `max_tokens`: a folder, smollm2-135m or tiny-random.")
    deduplicate: bool = Field(True, description="Keep one of equal answers to the same task.")
    near_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Keep one of rollouts of different tasks whose texts are at least this alike (Jaccard similarity "
        "of five-word runs; 0.8 is usual); null keeps all.",
    )
    per_task: int | None = Field(
        4, ge=1, description="At most so many rollouts a task, distinct and shorter ones first."
    )
    balance: BalanceRecipe | None = Field(None, description="Even out categories, such as agents or difficulties.")
    data: str | None = Field(
        None,
        description="Train on the rollouts of all turns so far (accumulate), of this turn only (replace), or of the "
        "last n turns (window(n)); null: accumulate where training starts from the base, replace where it goes on from "
        "the champion.",
    )

    @field_validator("preset", "where", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """One condition or name may stand without a list; null is none."""
        return () if value is None else (value,) if isinstance(value, str) else value

    @field_validator("preset")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in PRESETS:
                near = difflib.get_close_matches(name, PRESETS, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"no preset is called {name}; {hint}there are {', '.join(PRESETS)}")
        return names

    @field_validator("data")
    @classmethod
    def _data(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"accumulate|replace|window\([1-9]\d{0,3}\)", value):
            raise ValueError("expected accumulate, replace, or window(n) such as window(3)")
        return value

    @model_validator(mode="after")
    def _together(self) -> CurateRecipe:
        if (self.max_tokens is None) != (self.tokenizer is None):
            raise ValueError("`max_tokens` and `tokenizer` go together: tokens are counted by a tokenizer")
        if "min_reward" not in self.model_fields_set and any(
            re.search(r"\breward(_scaled)?\b", text)
            for text in (*self.where, *(t for n in self.preset for t in PRESETS[n]))
        ):
            object.__setattr__(self, "min_reward", None)
        return self


class PairsRecipe(Section):
    """Which answers to one task become preference pairs (methods dpo and reward)."""

    strategy: Literal["best_worst", "folded", "all", "random"] = Field(
        "best_worst",
        description="best_worst: one pair a task; folded: i-th best against i-th worst; all: every pair with enough of "
        "a gap, widest first; random: the same pairs in a seeded order.",
    )
    min_gap: float = Field(
        0.2,
        ge=0,
        description="Least difference of the two rewards: as it is where an environment's rewards lie within 0 to 1, "
        "else as a share of their range. Equal rewards never pair.",
    )
    per_task: int | None = Field(4, ge=1, description="At most so many pairs a task; null sets no limit.")
    min_chosen: float | None = Field(None, description="Least reward of the chosen side; null sets none.")
    metrics: tuple[str, ...] = Field(
        (), description="Metrics in which the chosen side must also be better, each by `min_gap` of its own range."
    )


class FormatRecipe(Section):
    """The training format."""

    method: Literal["sft", "dpo", "kto", "reward", "rl"] = Field(
        "sft", description="sft, dpo, kto, reward (model), or rl (the tasks with signal, to attempt again)."
    )
    target: str = Field("trl", description="Framework that the rows are for; docs/targets.md lists them.")
    validation: float = Field(
        0.0, ge=0, lt=1, description="Share of the tasks set apart for the trainer's validation loss."
    )
    pairs: PairsRecipe = PairsRecipe()
    label_threshold: float | None = Field(
        None,
        description="kto: desirable from this reward on; null takes each environment's own (1 if rewards are 0 "
        "and 1, else the middle of the range).",
    )
    token_ids: bool = Field(
        False, description="sft: the policy's own token ids where rollouts carry them, not tokenised again."
    )
    reasoning: Literal["field", "inline_think", "thinking", "drop"] = Field(
        "field",
        description="Where reasoning goes: key `reasoning_content`, `<think>` in the text, key `thinking`, nowhere.",
    )
    developer: Literal["system", "keep"] = Field(
        "system", description="Turn the developer role into system, which every template shows, or keep it."
    )
    refusals: Literal["keep", "drop"] = Field("keep", description="Keep answers that are refusals, or drop them.")
    tokenizer: str | None = Field(
        None, description="Folder or embedded model whose chat template counts tokens; null counts none."
    )
    max_tokens: int | None = Field(None, ge=8, description="Tokens of a row at most; needs `tokenizer`.")
    over_length: Literal["drop", "cut"] = Field(
        "drop", description="Longer rows: drop, or (sft) cut after the last assistant turn that fits."
    )


class ChecksRecipe(Section):
    """When data is too poor to spend training on it (docs/checks.md)."""

    min_examples: int = Field(16, ge=1, description="Fewer training rows stop the run.")
    max_truncated: float = Field(
        0.5, ge=0, le=1, description="A larger share of cut answers in the rollouts stops the run."
    )
    max_failures: float = Field(0.2, ge=0, le=1, description="Warn if a larger share of rows are failures.")
    max_masked: float = Field(0.2, ge=0, le=1, description="Warn if a larger share of rows are masked.")
    max_unreadable: float = Field(0.02, ge=0, le=1, description="Warn if a larger share of rows cannot be read.")
    max_untrainable: float = Field(0.05, ge=0, le=1, description="Warn if more of the chosen rows have no chat form.")
    min_solved: float = Field(0.05, ge=0, le=1, description="Warn if a smaller share of rollouts solve their task.")
    min_signal: float = Field(
        0.2, ge=0, le=1, description="Warn if a smaller share of tasks has rollouts with different rewards."
    )
    max_length_ratio: float = Field(
        2.0, ge=1, description="Warn if chosen answers are longer than rejected ones by this factor (median)."
    )
    min_label_share: float = Field(
        0.2, ge=0, le=0.5, description="Warn if the rarer KTO label has a smaller share of the rows."
    )
    min_tasks: int = Field(8, ge=1, description="Warn if the training rows come from fewer tasks.")
    max_task_share: float = Field(0.2, gt=0, le=1, description="Warn if one task gives a larger share of the rows.")
    max_duplicates: float = Field(0.2, ge=0, le=1, description="Warn if more rows (nearly) repeat another.")
    max_stale: float = Field(0.5, ge=0, le=1, description="Warn if more of the rows are an older policy's.")
    max_diversity_fall: float = Field(
        0.3, ge=0, le=1, description="Warn if distinct answers a task fall by more than this from the first turn."
    )
    overlap: float = Field(
        0.7,
        gt=0,
        le=1,
        description="An evaluation task is leaked if training prompts hold this share of its own words.",
    )
    allowed_overlaps: dict[str, str] = Field(
        default={}, description="Evaluation tasks whose overlap was reviewed: the finding's task id → why it is fine."
    )
    content_rows: int = Field(2000, ge=1, description="Rows read for the checks of content, spread evenly.")
    silence: tuple[str, ...] = Field((), description="Ids of checks that do not run, such as GM141.")
    strict: bool = Field(False, description="Warnings stop the run too.")
