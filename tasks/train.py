"""Step: train a challenger in a subprocess."""

from __future__ import annotations

import shutil

from gristmill import model, progress
from gristmill.artifact import ArtifactRef
from gristmill.identity import digest
from gristmill.recipe import TrainRecipe
from gristmill.train import train
from gristmill.train_trl import TrlJob
from gristmill.workspace import Workspace
from tasks.caching import step


@step("train")
def train_policy(dataset: ArtifactRef, base: ArtifactRef, settings: TrainRecipe, seed: int) -> ArtifactRef:
    """SFT from the base; a killed training resumes from its last checkpoint."""
    workspace = Workspace.current()
    store = workspace.store
    inputs = {
        "dataset": dataset.digest,
        "base": base.digest,
        "seed": seed,
        **settings.model_dump(mode="json"),
    }
    work = workspace.work(f"train-{digest(inputs)[:32]}")
    output = work / "model"
    job = TrlJob(
        base=model.folder(store, base),
        data=store.path(dataset),
        output=output,
        work=work / "trainer",
        seed=seed,
        **settings.model_dump(),
    )
    with store.draft("checkpoint") as draft:
        final = train(job, on_step=lambda done, total, loss: progress.advance(done, total, f"steps, loss {loss:.3f}"))
        draft.adopt(output)
        counts = {name: final[name] for name in ("steps", "tokens", "losses")}
        ref = draft.commit(stage="train", parents=[dataset, base], settings=inputs, counts=counts)
    shutil.rmtree(work)
    return ref
