"""Train by whichever trainer the settings name, and try the checkpoint before it counts.

Reads a `TrainJob`; leaves a Hugging Face folder at its `output`. What came out is only returned if it passed the smoke
test (gristmill/smoke.py); what failed it stays in the folder, to be looked at.
"""

from __future__ import annotations

from typing import NamedTuple

from gristmill import trainer
from gristmill.errors import TrainingError
from gristmill.smoke import Smoke, smoke
from gristmill.trainer import OnStep, Trained, TrainJob

RECORD = "training.json"
"""What `gristmill train` notes in a model's folder; it is about that model, and never handed on to the next."""


class Finished(NamedTuple):
    """A checkpoint that counts."""

    trained: Trained
    smoke: Smoke


def train(job: TrainJob, on_step: OnStep | None = None) -> Finished:
    """Train to the end, resuming where an equal job was killed, and try what came out.

    Raises:
        RecipeError: there is no such trainer, or the settings do not fit it.
        UsageError: base or data cannot be used.
        TrainingError: the trainer ended without a model, or its model failed the smoke test.
    """
    chosen = trainer.get(job.settings.trainer)
    chosen.check(job.method, job.settings)
    trained = chosen.train(job, on_step)
    tried = smoke(job.output, job.base, job.method, trained.losses, job.data)
    if tried.errors:
        raise TrainingError(
            f"the trained model failed its smoke test: {'; '.join(finding.says for finding in tried.errors)} "
            f"(it is kept in {job.output} to look at; delete that, change the recipe and run again)"
        )
    return Finished(trained, tried)
