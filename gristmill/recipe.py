"""The recipe: the whole configuration of a run, as one YAML file and one Pydantic model.

Every field is documented once, here; the text serves the command line, the JSON schema and Prefect's form. A
key that is not here is an error. Overrides are dotted: `train.epochs=1`. Secrets never stand in a recipe.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from gristmill.errors import RecipeError
from gristmill.identity import digest
from gristmill.presets import PRESETS


class Section(BaseModel):
    """Base of all recipe sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicyRecipe(Section):
    """The model that acts and is trained."""

    model: str = Field(
        "smollm2-135m",
        description="smollm2-135m (embedded), tiny-random (for tests), or a Hugging Face model folder.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where local generation runs.")
    kind: Literal["local", "serve", "endpoint"] = Field(
        "local",
        description="local: in this process. serve: each policy by a server of its own, started and stopped here. "
        "endpoint: one that is served already; for collecting only, since nothing trained can be put there.",
    )
    server: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="serve: which server; auto takes vLLM where it is installed and there is a GPU."
    )
    server_args: tuple[str, ...] = Field((), description="serve: further arguments of the server's command.")
    port: int = Field(
        0, ge=0, le=65535, description="serve: port on loopback; 0 takes a free one. Fix it for Gym that runs already."
    )
    served_name: str = Field("policy", description="serve, endpoint: the model's name in requests.")
    base_url: str | None = Field(None, description="endpoint: where the model answers, up to /v1.")
    api: Literal["chat", "responses"] = Field("chat", description="endpoint: chat completions, or the responses API.")
    api_key_env: str | None = Field(None, description="endpoint: environment variable that holds the key.")


class EnvironmentRecipe(Section):
    """Where tasks come from and who verifies the answers."""

    name: str = Field(
        "arithmetic",
        description="arithmetic (embedded); reasoning-gym (its extra); nemo-gym (servers over HTTP); or "
        "package.module:function, a verifier of (task, response) for the tasks in train_file.",
    )
    tasks: int | None = Field(
        96, ge=1, description="Training tasks a turn; every turn gets fresh ones. null: all of train_file, every turn."
    )
    heldout: int | None = Field(
        64,
        ge=2,
        description="Held-out tasks, the same in every turn, disjoint from training by content. null: all of "
        "heldout_file.",
    )
    train_file: str | None = Field(None, description="nemo-gym, verifier: JSONL file of training tasks.")
    heldout_file: str | None = Field(
        None, description="JSONL file of held-out tasks; without one, a fifth of train_file by content."
    )
    families: tuple[str, ...] = Field(
        ("chain_sum", "gcd", "letter_counting"), description="reasoning-gym: datasets, in rotation."
    )
    agent: str | None = Field(None, description="nemo-gym: agent of the rows that name none.")
    head: str = Field("http://127.0.0.1:11000", description="nemo-gym: the head server.")
    fresh: bool = Field(True, description="Each turn gets training tasks of its own; false: the same ones every turn.")
    curriculum: bool = Field(
        False,
        description="Where tasks come again (fresh: false, or tasks: null): leave out those that were solved every "
        "time, and those that no rollout of the present champion did better on than another.",
    )
    start: tuple[str, ...] = Field(
        (),
        description="nemo-gym: arguments of `gym env start`, to start the servers on each policy; empty: they run "
        "already, and their policy is at policy.port.",
    )
    gym: str = Field("gym", description="nemo-gym: the gym command, of its own Python environment.")
    solved_at: float = Field(1.0, description="The reward from which on an attempt counts as solved, for pass@k.")

    @property
    def again(self) -> bool:
        """Whether a turn's training tasks come again in the next."""
        return not self.fresh or self.tasks is None

    @model_validator(mode="after")
    def _curriculum_of_tasks_that_return(self) -> EnvironmentRecipe:
        if self.curriculum and not self.again:
            raise ValueError("curriculum needs tasks that come again: set fresh to false, or tasks to null")
        return self


class SamplingRecipe(Section):
    """How the policy is sampled."""

    samples: int = Field(8, ge=1, description="Rollouts per task.")
    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    max_new_tokens: int = Field(256, ge=1, description="Tokens of an answer at most; longer ones are cut and marked.")
    batch_size: int = Field(32, ge=1, description="Prompts generated together; part of what makes sampling repeatable.")
    seeds: bool = Field(
        True, description="Send a seed of its own with each request, where the policy is served; false where refused."
    )
    min_completion: float = Field(
        0.9, ge=0, le=1, description="A smaller share of the rollouts that were asked for stops the run."
    )

    def content(self) -> dict[str, Any]:
        """What the rollouts depend on: all but what decides when they are enough."""
        return self.model_dump(mode="json", exclude={"min_completion"})


class CollectRecipe(SamplingRecipe):
    """How the champion is sampled on training tasks."""

    temperatures: tuple[Annotated[float, Field(ge=0, le=5)], ...] = Field(
        (), description="A temperature for each turn, the last for all after it; empty: `temperature` in every turn."
    )

    def at(self, turn: int) -> CollectRecipe:
        """The sampling of a turn, counted from 1."""
        if not self.temperatures:
            return self
        now = self.temperatures[min(turn, len(self.temperatures)) - 1]
        return self.model_copy(update={"temperature": now, "temperatures": ()})


class RequestsRecipe(Section):
    """How served policies are asked. Nothing here changes what is collected."""

    concurrency: int = Field(32, ge=1, le=4096, description="Rollouts in flight at most; fewer on trouble.")
    timeout: float = Field(600, gt=0, description="Seconds for one attempt at a rollout.")
    rollout_timeout: float = Field(1800, gt=0, description="Seconds for all attempts at a rollout.")
    attempts: int = Field(3, ge=1, le=20, description="Attempts at a rollout whose failure may pass.")
    patience: float = Field(
        120, gt=0, description="Seconds without any success after which a failing endpoint is given up."
    )
    start_timeout: float = Field(900, gt=0, description="Seconds that a server may take to start.")


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


class LaunchRecipe(Section):
    """Where a framework's training runs (docs/trainers.md). Nothing here changes what is trained; trl runs in-house."""

    launcher: Literal["local", "slurm", "ray"] = Field("local", description="This machine, a Slurm job, or a Ray job.")
    prefix: tuple[str, ...] = Field(
        (), description="Words before the framework's command, such as uv, run, --project, /opt/axolotl."
    )
    setup: tuple[str, ...] = Field(
        (), description="Shell lines before it, such as `module load cuda` or `source /opt/axolotl/bin/activate`."
    )
    env: dict[str, str] = Field({}, description="Environment variables of the job; no secrets, they are kept in files.")
    nodes: int = Field(1, ge=1, description="Machines that train together (slurm).")
    gpus: int | None = Field(None, ge=0, description="GPUs a machine; null: all of this one, none asked of a cluster.")
    partition: str | None = Field(None, description="slurm: partition.")
    account: str | None = Field(None, description="slurm: account.")
    time: str | None = Field(None, description="slurm: time limit, such as 04:00:00 or 1-00:00:00.")
    container: str | None = Field(None, description="slurm: container image, for `srun --container-image` (pyxis).")
    sbatch: tuple[str, ...] = Field((), description="slurm: further options, such as --qos=high; they win.")
    address: str = Field("http://127.0.0.1:8265", description="ray: the cluster's dashboard, which takes jobs.")
    resubmit: int = Field(
        2, ge=0, description="Times that a job which the cluster ended (lost node, preemption, time limit) goes on."
    )
    poll_seconds: float | None = Field(None, gt=0, description="Seconds between looks at the job; null: 0.5, or 15.")

    @field_validator("time", mode="before")
    @classmethod
    def _not_a_number(cls, value: Any) -> Any:
        """YAML reads 12:00:00 as 43200, and Slurm reads 43200 as minutes."""
        if isinstance(value, int):
            raise ValueError("YAML takes a time such as 12:00:00 for a number; put it in quotes, or write 0-12:00:00")
        return value

    @field_validator("env", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML reads `1` and `true` as other types; in the environment they are text."""
        if not isinstance(value, Mapping):
            return value
        return {name: str(item) if isinstance(item, int | float) else item for name, item in value.items()}


class TrainRecipe(Section):
    """Training (docs/train.md)."""

    trainer: str = Field("trl", description="Framework that trains: trl, or one that docs/train.md names.")
    init_from: Literal["base", "champion"] | None = Field(
        None, description="Model that training starts from; null: base for sft, champion for dpo and kto."
    )
    reference: Literal["start", "base"] = Field(
        "start", description="dpo, kto: the frozen model that holds the policy: the one training starts from, or base."
    )
    epochs: float = Field(2, gt=0, description="Passes over the dataset.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; null takes the method's usual one (docs/train.md)."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    batch_size: int = Field(16, ge=1, description="Rows an optimiser step, over all devices.")
    max_length: int = Field(1024, ge=8, description="Tokens of a row at most.")
    lora_rank: int = Field(16, ge=0, description="LoRA rank; 0 trains all weights.")
    lora_targets: tuple[str, ...] = Field(
        (), description="Modules that get adapters, by the end of their name; empty: all linear layers."
    )
    adapter: Literal["merge", "keep"] = Field(
        "merge", description="LoRA: write merged weights, or those and the adapter beside them (folder `adapter`)."
    )
    beta: float = Field(0.1, gt=0, description="dpo, kto: how hard the reference holds the policy.")
    nll_weight: float = Field(
        0.2, ge=0, description="dpo: weight of the chosen answers' likelihood beside the preference; 0 leaves it out."
    )
    processes: int | None = Field(
        None, ge=1, description="Processes that train together on this machine; null: one for each GPU, else one."
    )
    save_steps: int = Field(25, ge=1, description="Steps between checkpoints that a killed training resumes from.")
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between validation losses, where there are validation rows; null: once an epoch."
    )
    early_stop: int | None = Field(
        None, ge=1, description="Stop after so many validation losses in a row without a better one; null: never."
    )
    options: dict[str, Any] = Field(
        {}, description="Fields of the framework's own configuration, by its names; they win over the ones above."
    )
    launch: LaunchRecipe = LaunchRecipe()
    deployment: str | None = Field(
        None,
        pattern=r"^[^/]+/[^/]+$",
        description="Prefect deployment that trains, such as train-step/gpu (docs/deploy-server.md); null: here.",
    )


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


class ExecutionRecipe(Section):
    """Where the shards of a stage run (docs/deploy-ray.md); `execution: ray` says the kind alone. Changes no result."""

    kind: Literal["local", "ray"] = Field("local", description="This machine's processors, or a Ray cluster.")
    address: str | None = Field(
        None,
        description="ray: the cluster, such as 10.0.0.1:6379; null: RAY_ADDRESS, the cluster that this machine is in, "
        "or one started for the run.",
    )
    gpus: float = Field(0, ge=0, description="ray: GPUs, or a part of one, for each shard that runs a model.")

    @model_validator(mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class MlflowSinkRecipe(Section):
    """MLflow: runs, datasets, metrics, and model versions with the alias champion."""

    uri: str | None = Field(None, description="Tracking URI; null keeps a database in the workspace (mlflow.db).")
    experiment: str | None = Field(None, description="Experiment; null takes the recipe's name.")
    model: str | None = Field(None, description="Registered model; null takes the recipe's name.")
    copy_models: bool = Field(False, description="Copy checkpoints to MLflow's artifact store; else point to them.")


class TrackioSinkRecipe(Section):
    """trackio: metrics on a local dashboard, or on a Hugging Face Space."""

    project: str | None = Field(None, description="Project; null takes the recipe's name.")
    folder: str | None = Field(None, description="Where trackio keeps its database; null: trackio in the workspace.")
    space: str | None = Field(None, description="Space to log to, as owner/name, instead of a folder.")


class OpenLineageSinkRecipe(Section):
    """OpenLineage run events: one a stage, with its datasets in and out."""

    file: str | None = Field(None, description="JSON lines file; null: openlineage.jsonl in the workspace.")
    url: str | None = Field(None, description="Base URL of a lineage server, such as Marquez, instead of a file.")
    namespace: str = Field("gristmill", description="Namespace of jobs and datasets.")
    api_key_env: str | None = Field(None, description="url: environment variable that holds the key.")


class HubSinkRecipe(Section):
    """Hugging Face Hub: champions, and the data that they were trained on."""

    model_repo: str | None = Field(None, description="Repository for promoted models, as owner/name; null sends none.")
    dataset_repo: str | None = Field(None, description="Repository for their training data; null sends none.")
    private: bool = Field(True, description="Whether repositories that are created here are private.")
    folder: str | None = Field(None, description="A folder to write to instead of the hub.")
    token_env: str = Field("HF_TOKEN", description="Environment variable that holds the token.")

    @model_validator(mode="after")
    def _something(self) -> HubSinkRecipe:
        if not (self.model_repo or self.dataset_repo):
            raise ValueError("name `model_repo`, `dataset_repo` or both")
        return self


class WebhookSinkRecipe(Section):
    """A webhook: finished turns with the gate's decision, and ends of runs."""

    url_env: str = Field("GRISTMILL_WEBHOOK_URL", description="Environment variable that holds the URL.")
    secret_env: str | None = Field(
        None, description="Environment variable that holds the secret that signs (Standard Webhooks); null: unsigned."
    )


class SinksRecipe(Section):
    """Where else a run is told of (docs/sinks.md). All off by default; none changes results or can fail a run."""

    mlflow: MlflowSinkRecipe | None = Field(None, description="MLflow; {} takes its defaults.")
    trackio: TrackioSinkRecipe | None = Field(None, description="trackio; {} takes its defaults.")
    openlineage: OpenLineageSinkRecipe | None = Field(None, description="OpenLineage events; {} takes the defaults.")
    hub: HubSinkRecipe | None = Field(None, description="Hugging Face Hub.")
    webhook: WebhookSinkRecipe | None = Field(None, description="A webhook; {} takes its defaults.")
    other: dict[str, dict[str, Any]] = Field(
        default={}, description="Sinks of other packages: name of the entry point → its settings."
    )
    patience: float = Field(
        20, ge=0, description="Seconds that the end of a run waits for deliveries; what is owed then is sent later."
    )


COMPARING = frozenset({"dpo", "kto", "reward", "rl"})
"""Methods that learn from the difference between good and poor rollouts."""


class Recipe(Section):
    """A run of the loop."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9-]*$", description="Lowercase letters, digits and dashes.")
    seed: int = Field(0, ge=0, strict=True, description="Seeds tasks, sampling and training.")
    turns: int = Field(2, ge=1, le=100, description="Turns of the loop.")
    rollouts: tuple[str, ...] = Field(
        (), description="prepare: rollout files, folders and globs. The loop collects its own."
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
        if method not in COMPARING or not isinstance(curate, Mapping):
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


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply dotted `key=value` overrides.

    Raises:
        RecipeError: one sentence that names the file, the field, what is allowed and what was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}; expected a YAML file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8 text; expected a YAML file") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"recipe {path}{where}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}: expected keys such as `policy:` at the top, found a {_yaml_type(values)}")
    return build(values, overrides, source=f"recipe {path}")


def build(values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "recipe") -> Recipe:
    """Validate plain values plus overrides.

    Raises:
        RecipeError: as `load`.
    """
    merged: dict[str, Any] = _copy(values)
    for override in overrides:
        _apply(merged, override)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_sentence(error)}") from None


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted fields replaced (Prefect does not merge nested parameters).

    Raises:
        RecipeError: an override names no field or does not validate.
    """
    if not overrides:
        return recipe
    merged = recipe.resolved()
    for key, value in overrides.items():
        _set(merged, key, value)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"override: {_sentence(error)}") from None


def documented(recipe: Recipe | None = None) -> str:
    """A recipe as YAML with every field's description behind it: a file to start from."""
    lines: list[str] = []

    def write(section: BaseModel, indent: str) -> None:
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                lines.append(f"{indent}{name}:  # {(type(value).__doc__ or '').strip()}")
                write(value, indent + "  ")
            else:
                plain = section.model_dump(mode="json", include={name})[name]
                shown = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
                lines.append(f"{indent}{name}: {shown}  # {field.description}")

    write(recipe or Recipe(), "")
    return "\n".join(lines) + "\n"


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"override {override!r}: expected key=value, such as train.epochs=1")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and _is_number(value):  # YAML 1.1 reads 1e-4 (no dot) as text
        value = float(value)
    _set(values, key.strip(), value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, field = key.split(".")
    at = values
    for name in sections:
        inner = at.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"override {key}: `{name}` is a value, not a section")
        at = inner
    at[field] = value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _sentence(error: ValidationError) -> str:
    """The first problem, in one sentence, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    where = [str(part) for part in first["loc"]]
    name = ".".join(where) or "the recipe"
    if first["type"] == "extra_forbidden":
        section = _section(where[:-1])
        allowed = list(section.model_fields) if section else []
        near = difflib.get_close_matches(where[-1], allowed, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        text = f"`{name}` is no field; {hint}allowed here: {', '.join(allowed)}"
    else:
        found = first["input"]
        shown = repr(found) if not isinstance(found, dict | list) else f"a {_yaml_type(found)}"
        message = first["msg"].removeprefix("Value error, ")
        text = f"`{name}`: {message[0].lower()}{message[1:]}"
        if not isinstance(found, dict) or first["type"] != "value_error":  # a section as a whole is no finding
            text += f", found {shown}"
        if field := _field(where):
            text += f" ({field.description})" if field.description else ""
    more = len(problems) - 1
    return text + (f"; and {more} more problem{'s' if more > 1 else ''}" if more else "")


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = Recipe
    for part in path:
        field = model.model_fields.get(part)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]  # `X | None` is X here
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def _field(path: Sequence[str]) -> FieldInfo | None:
    section = _section(path[:-1]) if path else None
    if section is None:
        return None
    return section.model_fields.get(path[-1])


def _yaml_type(value: Any) -> str:
    names: dict[str, str] = {"dict": "mapping", "str": "text"}
    return names.get(type(value).__name__, type(value).__name__)
