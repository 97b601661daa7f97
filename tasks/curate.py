"""Step: choose rollouts to train on."""

from __future__ import annotations

from prefect.artifacts import create_table_artifact

from gristmill.artifact import ArtifactRef
from gristmill.curate import curate
from gristmill.recipe import CurateRecipe
from gristmill.workspace import Workspace
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
    rows = [{"rule": "", "reason": "kept", "rollouts": counts["rows_kept"]}]
    rows += [{"rule": step["rule"], "reason": step["reason"], "rollouts": step["dropped"]} for step in counts["rules"]]
    reading = {step["reason"] for step in counts["rules"]}
    rows += [
        {"rule": "", "reason": reason, "rollouts": count}
        for reason, count in counts["dropped"].items()
        if reason not in reading
    ]
    said = [f"{counts['rows_read']} rollouts read for {ref}", *counts["warnings"]]
    create_table_artifact(rows, key="funnel", description="; ".join(said))
    return ref
