"""Where stages run, and who is told of it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from gristmill.recipe.section import Section


class ExecutionRecipe(Section):
    """Where the shards of a stage run (docs/deploy-ray.md); `execution: ray` says the kind alone. Changes no result."""

    shorthand: ClassVar[str | None] = "kind"

    kind: Literal["local", "ray"] = Field("local", description="This machine's processors, or a Ray cluster.")
    address: str | None = Field(
        None,
        description="ray: the cluster, such as 10.0.0.1:6379; null: RAY_ADDRESS, the cluster that this machine is in, "
        "or one started for the run.",
    )
    gpus: float = Field(0, ge=0, description="ray: GPUs, or a part of one, for each shard that runs a model.")


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
