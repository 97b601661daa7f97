"""Flow: rollout files become a checked dataset.

    read → curate → format → validate

Wiring only. Every stage is cached by content, so that a changed condition reads no file again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.dataset import check
from gristmill.dataset.tokens import tokenizer_identity
from gristmill.errors import RecipeError
from gristmill.identity import file_digest
from gristmill.prepare import launch_values
from gristmill.recipe import Recipe, with_overrides
from gristmill.rollout_files import find_rollout_files
from gristmill.runs import recorded
from gristmill.workspace import Workspace
from tasks.caching import run
from tasks.cluster import executing
from tasks.curate import curate_rollouts
from tasks.format import format_dataset
from tasks.read import read_rollouts
from tasks.review import reviewed
from tasks.sinks import delivering
from tasks.validate import validate_dataset


class PreparedRun(BaseModel):
    """What the flow made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: ArtifactRef
    selection: ArtifactRef
    dataset: ArtifactRef
    report: ArtifactRef


@flow(name="prepare", flow_run_name="{recipe.name}")
def prepare(
    recipe: Recipe, workspace: str, files: list[str] | None = None, overrides: dict[str, Any] | None = None
) -> PreparedRun:
    """Prepare training data from files that exist; trains nothing.

    Args:
        recipe: the whole configuration; the loop's parts of it are not used.
        workspace: folder that holds everything the run makes; one run at a time.
        files: rollout files, folders and globs, instead of the recipe's.
        overrides: dotted fields that replace the recipe's, for schedules (Prefect does not merge parameters).
    """
    recipe = with_overrides(recipe, overrides or {})
    check(recipe.format)
    named = files or list(recipe.rollouts)
    if not named:
        raise RecipeError("`rollouts` is empty: name rollout files in the recipe, or beside it on the command line")
    found = find_rollout_files(named)
    place = Workspace(workspace)
    command = ["prepare", *(files or [])]
    engine = flow_run.get_id()
    begun = recorded(place, command, recipe, engine=engine)
    with place.locked(), place.entered(), executing(recipe.execution, place), delivering(place, recipe), begun:
        table = run(
            read_rollouts,
            0,
            "read",
            files=[{"path": str(p), "bytes": p.stat().st_size, "sha256": file_digest(p)} for p in map(Path, found)],
        )
        decisions = reviewed(recipe, 0, table, [table])
        selection = run(
            curate_rollouts, 0, "curate", tables=[table], settings=recipe.curate, decisions=decisions, seed=recipe.seed
        )
        dataset = run(
            format_dataset,
            0,
            "format",
            selection=selection,
            tables=[table],
            settings=recipe.format,
            seed=recipe.seed,
            launch=launch_values(recipe),
            tokenizer=tokenizer_identity(recipe.format.tokenizer) if recipe.format.tokenizer else None,
        )
        report = run(
            validate_dataset,
            0,
            "validate",
            dataset=dataset,
            selection=selection,
            tables=[table],
            heldout=None,
            base=None,
            curation=recipe.curate,
            format=recipe.format,
            checks=recipe.checks,
            samples=None,
            max_length=None,
            seed=recipe.seed,
            decisions=decisions,
        )
    return PreparedRun(table=table, selection=selection, dataset=dataset, report=report)
