"""Step: selected rollouts become a training dataset."""

from __future__ import annotations

from typing import Any

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.curate import SELECTION
from gristmill.dataset import write_dataset
from gristmill.recipe import FormatRecipe
from gristmill.targets import Launch
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step
from tasks.ingest import table_files


@step("format")
def format_dataset(
    selection: ArtifactRef,
    tables: list[ArtifactRef],
    settings: FormatRecipe,
    seed: int,
    launch: dict[str, Any] | None = None,
    tokenizer: str | None = None,
) -> ArtifactRef:
    """Convert and write; keep beside the rows which rollouts made each.

    Args:
        launch: fields of `Launch`, for the target's launch config.
        tokenizer: identity of the files behind `settings.tokenizer`, so that other files are other work.
    """
    store = Workspace.current().store
    with store.draft("dataset") as draft:
        counts = write_dataset(
            store.path(selection) / SELECTION,
            table_files(tables),
            store.manifest(selection).counts,
            settings,
            draft.path,
            seed=seed,
            launch=_launch(launch),
            progress=lambda done, total: progress.advance(done, total, "rollouts"),
        )
        ref = draft.commit(
            stage="format",
            parents=[selection, *tables],
            settings={**settings.model_dump(mode="json"), "seed": seed},
            counts=counts,
        )
    return ref


artifacts.shown(format_dataset, artifacts.dataset)


def _launch(values: dict[str, Any] | None) -> Launch | None:
    if values is None:
        return None
    fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    return Launch(**fields)
