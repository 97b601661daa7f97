"""How the dataset becomes a checkpoint, and where that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from gristmill.recipe.section import Section


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
