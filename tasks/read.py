"""Step: rollout files that someone else collected become a rollout table."""

from __future__ import annotations

from typing import Any

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.ingest import ingest
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step


@step("read")
def read_rollouts(files: list[dict[str, Any]]) -> ArtifactRef:
    """Read every line of the files, keep or drop it with a reason, write the table, with the lines in it.

    Args:
        files: one each: `path`, and the `sha256` of its bytes, so that a file that changed is read again.
    """
    store = Workspace.current().store
    with store.draft("table") as draft:
        result = ingest(
            [file["path"] for file in files],
            draft.path,
            progress=lambda done, total: progress.advance(done, total, "bytes"),
        )
        inputs = [
            {"name": source["name"], "bytes": file["bytes"], "rows": source["rows"], "sha256": file["sha256"]}
            for source, file in zip(result.sources, files, strict=True)
        ]
        counts: dict[str, Any] = {
            "rows_read": result.rows_read,
            "rows_kept": result.rows_kept,
            "dropped": {str(reason): count for reason, count in sorted(result.dropped.items())},
        }
        return draft.commit(stage="read", settings={"inputs": inputs}, counts=counts)


artifacts.shown(read_rollouts, artifacts.samples)
