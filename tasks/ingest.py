"""Step: rollout files become the rollout table."""

from __future__ import annotations

from typing import Any

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.collect import ROLLOUTS
from gristmill.ingest import ingest
from gristmill.table import parts
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step


@step("ingest")
def ingest_rollouts(rollouts: ArtifactRef) -> ArtifactRef:
    """Read every line, keep or drop it with a reason, write the table."""
    store = Workspace.current().store
    with store.draft("table") as draft:
        result = ingest(
            [store.path(rollouts) / ROLLOUTS],
            draft.path,
            progress=lambda done, total: progress.advance(done, total, "bytes"),
        )
        counts: dict[str, Any] = {
            "rows_read": result.rows_read,
            "rows_kept": result.rows_kept,
            "dropped": {str(reason): count for reason, count in sorted(result.dropped.items())},
        }
        return draft.commit(stage="ingest", parents=[rollouts], counts=counts)


artifacts.shown(ingest_rollouts, artifacts.samples)


def table_files(tables: list[ArtifactRef]) -> list[list[Any]]:
    """The Parquet files of each table, in row order."""
    store = Workspace.current().store
    return [parts(store.path(table)) for table in tables]
