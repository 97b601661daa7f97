"""Step: train a challenger, by the trainer that the recipe names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from gristmill import model, progress
from gristmill.artifact import ArtifactRef
from gristmill.example import Method
from gristmill.identity import digest
from gristmill.recipe import TrainRecipe
from gristmill.train import train
from gristmill.trainer import TrainJob
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import ContentKey, step

_NOT_READ = {"init_from", "reference", "launch", "deployment"}
"""Fields of the recipe's section that change no weights: which models they choose is in the references, and where a
training runs is no part of it."""


@dataclass
class _WhatIsTrained(ContentKey):
    """Keyed by what the weights depend on, and not by where they are trained."""

    def key(self, name: str, inputs: dict[str, Any]) -> str:
        return super().key(name, {**inputs, "settings": _read(inputs["settings"])})


def _read(settings: TrainRecipe) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_NOT_READ)


@step("train")
def _train_policy(
    dataset: ArtifactRef,
    base: ArtifactRef,
    reference: ArtifactRef | None,
    settings: TrainRecipe,
    method: Method,
    seed: int,
) -> ArtifactRef:
    """Train `base` on `dataset`; a killed training resumes from its last checkpoint.

    Args:
        base: the model to start from.
        reference: dpo, kto: the frozen model that holds the policy; None takes `base`.
    """
    workspace = Workspace.current()
    store = workspace.store
    inputs = {"dataset": dataset.digest, "base": base.digest, "method": method, "seed": seed, **_read(settings)}
    if reference is not None and reference != base:
        inputs["reference_model"] = reference.digest
    work = workspace.work(f"train-{digest(inputs)[:32]}")
    output = work / "model"
    job = TrainJob(
        method=method,
        base=model.folder(store, base),
        reference=model.folder(store, reference) if reference is not None and reference != base else None,
        data=store.path(dataset),
        output=output,
        work=work / "trainer",
        settings=settings,
        seed=seed,
    )
    parents = dict.fromkeys([dataset, base, *([reference] if reference is not None else [])])
    with store.draft("checkpoint") as draft:
        trained, smoke = train(job, lambda done, total, loss: progress.advance(done, total, f"steps, loss {loss:.3f}"))
        draft.adopt(output)
        counts = {**trained.model_dump(mode="json"), "smoke": smoke.model_dump(mode="json")}
        ref = draft.commit(stage="train", parents=list(parents), settings=inputs, counts=counts)
    shutil.rmtree(work)
    return ref


train_policy = _train_policy.with_options(cache_policy=_WhatIsTrained(version="2"))
artifacts.shown(train_policy, artifacts.training)
