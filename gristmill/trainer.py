"""What a trainer is: a dataset and a model go in, a Hugging Face folder comes out.

A trainer runs some framework's training in processes of its own and leaves a plain folder that transformers loads:
weights, tokenizer and chat template. It writes `output` under a temporary name and renames it as its last act, keeps
checkpoints in `work`, and goes on from the last of them when it is called again with an equal job.

Built-in ones are named here; a package of yours adds one by the entry point group `gristmill.trainers`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from gristmill.errors import RecipeError
from gristmill.example import Method
from gristmill.recipe import TrainRecipe

OnStep = Callable[[int, int, float], None]
"""Called with (step, steps in all, loss)."""

_BUILT_IN = {
    "axolotl": "gristmill.trainers.axolotl:AXOLOTL",
    "llamafactory": "gristmill.trainers.llamafactory:LLAMAFACTORY",
    "nemo-rl": "gristmill.trainers.nemo_rl:NEMO_RL",
    "openrlhf": "gristmill.trainers.openrlhf:OPENRLHF",
    "trl": "gristmill.trl.trainer:TRL",
    "verl": "gristmill.trainers.verl:VERL",
}


class TrainJob(BaseModel):
    """One training. Paths are not part of its identity; the content behind them is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field(description="What to train by.")
    base: Path = Field(description="Hugging Face folder of the model to start from.")
    reference: Path | None = Field(
        None, description="dpo, kto: folder of the reference model; null takes the model to start from."
    )
    data: Path = Field(description="Folder of a dataset or an export, in the format of one of the trainer's targets.")
    output: Path = Field(description="Folder for the finished model; must not exist, unless this very job made it.")
    work: Path = Field(description="Folder for checkpoints and logs, kept for resuming.")
    settings: TrainRecipe = Field(description="The recipe's section.")
    seed: int = Field(0, ge=0, description="Order of the data, and what the framework draws.")


class Trained(BaseModel):
    """What a finished training has to say; it enters the checkpoint's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(description="Optimiser steps.")
    losses: tuple[float, ...] = Field((), description="Training loss as the framework logged it, in order.")
    tokens: int | None = Field(None, description="Tokens trained on, over all passes; null where it was not told.")
    details: dict[str, Any] = Field({}, description="What else happened: batch halved, stopped early, job id.")


@runtime_checkable
class Trainer(Protocol):
    """One training framework."""

    name: str
    methods: frozenset[Method]
    targets: frozenset[str]
    """Formats (gristmill/targets) that it reads."""

    def check(self, method: Method, settings: TrainRecipe) -> None:
        """Refuse, before anything is collected, what cannot be trained.

        Raises:
            RecipeError: the settings do not fit, or the framework is not there.
        """

    def train(self, job: TrainJob, on_step: OnStep | None = None) -> Trained:
        """Train to the end, or find that it is done.

        Raises:
            UsageError: base or data cannot be used.
            TrainingError: the framework ended without a model; names the log and its last words.
        """


def names() -> list[str]:
    """All trainers, built-in and added."""
    return sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group="gristmill.trainers"))})


def get(name: str) -> Trainer:
    """The trainer of that name.

    Raises:
        RecipeError: there is none, or it cannot be loaded.
    """
    found = {entry.name: entry.value for entry in entry_points(group="gristmill.trainers")} | _BUILT_IN
    if name not in found:
        raise RecipeError(f"train.trainer: no trainer is called {name!r}; there are {', '.join(names())}")
    module, _, attribute = found[name].partition(":")
    try:
        return cast(Trainer, getattr(import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"train.trainer: {name} cannot be loaded from {found[name]} ({error})") from error
