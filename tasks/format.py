"""Step: selected rollouts become a training dataset."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.curate import SELECTION
from gristmill.dataset import write_sft
from gristmill.recipe import FormatRecipe
from gristmill.workspace import Workspace
from tasks.caching import step
from tasks.ingest import table_files


@step("format")
def format_dataset(selection: ArtifactRef, tables: list[ArtifactRef], settings: FormatRecipe) -> ArtifactRef:
    """Convert and write; keep beside the rows which rollout made each."""
    store = Workspace.current().store
    with store.draft("dataset") as draft:
        counts = write_sft(
            store.path(selection) / SELECTION,
            table_files(tables),
            store.manifest(selection).counts,
            draft.path,
        )
        return draft.commit(
            stage="format",
            parents=[selection, *tables],
            settings=settings.model_dump(mode="json"),
            counts=counts,
        )
