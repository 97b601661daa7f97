"""Where rollouts come from: policy, environment, sampling, requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gristmill.recipe.section import Section


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
