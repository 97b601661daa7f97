"""Step: choose rollouts to train on."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.curate import curate
from gristmill.recipe import CurateRecipe
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step
from tasks.ingest import table_files
from tasks.review import decisions_of


@step("curate")
def curate_rollouts(
    tables: list[ArtifactRef], settings: CurateRecipe, decisions: ArtifactRef | None = None, seed: int = 0
) -> ArtifactRef:
    """Select over all given tables; every rollout that is not chosen has a reason."""
    store = Workspace.current().store
    counted = [store.manifest(table).counts for table in tables]
    with store.draft("selection") as draft:
        judged = decisions_of(decisions)
        counts = curate(table_files(tables), counted, settings, draft.path, decisions=judged, seed=seed)
        parents = [*tables, decisions] if decisions else tables
        ref = draft.commit(stage="curate", parents=parents, settings=settings.model_dump(mode="json"), counts=counts)
    return ref


artifacts.shown(curate_rollouts, artifacts.funnel)
