"""Step: the run's page and summary."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.loop import Turn
from gristmill.recipe import Recipe
from gristmill.report_page import render
from gristmill.run_report import build
from gristmill.versions import versions
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step

PAGE = "report.html"
SUMMARY = "summary.json"


@step("report")
def write_report(
    recipe: Recipe,
    base: ArtifactRef,
    base_evaluation: ArtifactRef,
    base_table: ArtifactRef,
    turns: list[Turn],
    stopped: str | None,
) -> ArtifactRef:
    """Write `report.html` and `summary.json`."""
    workspace = Workspace.current()
    store = workspace.store
    built = build(
        store,
        recipe,
        base=base,
        base_evaluation=base_evaluation,
        base_table=base_table,
        turns=turns,
        stopped=stopped,
        versions=versions(workspace),
    )
    with store.draft("report") as draft:
        (draft.path / PAGE).write_text(render(built.report), encoding="utf-8")
        draft.write_json(SUMMARY, built.summary)
        ref = draft.commit(
            stage="report",
            parents=[base_evaluation, *(ref for turn in turns for ref in (turn.evaluation, turn.decision))],
            settings=recipe.resolved(),
        )
    return ref


artifacts.shown(write_report, artifacts.report)
