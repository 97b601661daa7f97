"""Step: refuse data that is not worth training on."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.checks import check_dataset, require_no_errors
from gristmill.recipe import ChecksRecipe
from gristmill.workspace import Workspace
from tasks.caching import step


@step("validate")
def validate_dataset(dataset: ArtifactRef, settings: ChecksRecipe) -> ArtifactRef:
    """Run the checks; errors stop the run before anything is trained."""
    store = Workspace.current().store
    findings = check_dataset(store.manifest(dataset).counts, settings)
    require_no_errors(findings)
    with store.draft("report") as draft:
        # The dataset's digest makes this report its own: two datasets may both have nothing to report.
        draft.write_json("findings.json", {"dataset": dataset.digest, "findings": [f.model_dump() for f in findings]})
        return draft.commit(
            stage="validate",
            parents=[dataset],
            settings=settings.model_dump(mode="json"),
            counts={"findings": len(findings)},
        )
