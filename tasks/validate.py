"""Step: refuse data that is not worth training on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gristmill import model
from gristmill.artifact import ArtifactRef
from gristmill.checks import page, require_no_errors, validate
from gristmill.checks.content import Render, template_of
from gristmill.curate import SELECTION, curate
from gristmill.environment import read_tasks
from gristmill.errors import GateError, GristmillError
from gristmill.recipe import ChecksRecipe, CurateRecipe, FormatRecipe
from gristmill.store import Store
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step
from tasks.ingest import table_files
from tasks.review import decisions_of

FINDINGS = "findings.json"
PAGE = "checks.html"


@step("validate")
def validate_dataset(
    dataset: ArtifactRef,
    selection: ArtifactRef,
    tables: list[ArtifactRef],
    heldout: ArtifactRef | None,
    base: ArtifactRef | None,
    curation: CurateRecipe,
    format: FormatRecipe,
    checks: ChecksRecipe,
    samples: int | None,
    max_length: int | None,
    seed: int,
    decisions: ArtifactRef | None = None,
) -> ArtifactRef:
    """Run the checks; errors stop the run before anything is trained.

    What was found is kept either way, so that whoever is stopped can look at it.

    Args:
        heldout: task rows of the evaluation, which training must not show.
        base: the policy whose chat template the rows must survive.
        decisions: of a review, which curation heeded.

    Raises:
        GateError: one sentence per error, and where the page is.
    """
    store = Workspace.current().store
    files = table_files(tables)
    judged = decisions_of(decisions)

    def choose(changed: CurateRecipe) -> int:
        counted = [store.manifest(table).counts for table in tables]
        with tempfile.TemporaryDirectory(prefix="gristmill-validate-") as folder:
            return int(curate(files, counted, changed, Path(folder), decisions=judged, seed=seed)["rows_kept"])

    report = validate(
        files,
        store.path(selection) / SELECTION,
        store.manifest(dataset).counts,
        curate=curation,
        format=format,
        checks=checks,
        choose=choose,
        evaluation=None if heldout is None else read_tasks(store, heldout),
        seed=seed,
        max_length=max_length,
        samples=samples,
        render=None if base is None else _template(store, base),
    )
    with store.draft("report") as draft:
        # The dataset's digest makes this report its own: two datasets may both have nothing to report.
        draft.write_json(FINDINGS, {"dataset": dataset.digest, **report.model_dump(mode="json")})
        (draft.path / PAGE).write_text(page.render(report, f"Checks of {dataset}"), encoding="utf-8")
        ref = draft.commit(
            stage="validate",
            parents=[dataset],
            settings=checks.model_dump(mode="json"),
            counts={"findings": len(report.findings), "errors": len(report.errors)},
        )
    try:
        require_no_errors(report.findings)
    except GateError as error:
        artifacts.checks(store, ref, "validate", "")  # whoever is stopped most needs to see it
        raise GateError(f"{error}. All findings: {store.path(ref) / PAGE}") from None
    return ref


def _template(store: Store, base: ArtifactRef) -> Render | None:
    """The base policy's chat template; None where its files are not here (it is served elsewhere)."""
    try:
        return template_of(str(model.folder(store, base)))
    except GristmillError:
        return None


artifacts.shown(validate_dataset, artifacts.checks)
