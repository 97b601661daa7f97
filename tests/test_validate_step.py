"""The gate as a Prefect task: what was found is kept, errors stop, and a changed recipe goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from gristmill.artifact import ArtifactRef
from gristmill.curate import curate
from gristmill.environment import TASKS
from gristmill.errors import GateError
from gristmill.recipe import ChecksRecipe, CurateRecipe, FormatRecipe
from gristmill.workspace import Workspace
from tasks.caching import run
from tasks.validate import FINDINGS, PAGE, validate_dataset
from tests.rows import rollout, write

ROWS = [rollout(f"answer {n}", task=n, question=f"what is {n} and how does it come about?") for n in range(20)]


@pytest.fixture
def made(prefect_server: str, tmp_path: Path) -> tuple[Workspace, dict[str, Any]]:
    """A workspace with table, selection and dataset, and the step's inputs."""
    from gristmill.ingest import ingest

    place = Workspace(tmp_path / "workspace")
    store = place.store
    with store.draft("table") as draft:
        result = ingest([write(tmp_path / "rollouts.jsonl", ROWS)], draft.path)
        counts: dict[str, Any] = {"rows_read": result.rows_read, "rows_kept": result.rows_kept, "dropped": {}}
        table = draft.commit(stage="ingest", counts=counts)
    with store.draft("selection") as draft:
        files = [sorted(store.path(table).glob("part-*.parquet"))]
        counts = curate(files, [counts], CurateRecipe(), draft.path)
        selection = draft.commit(stage="curate", parents=[table], counts=counts)
    with store.draft("dataset") as draft:
        draft.write_json("train.json", "stands for the rows")
        dataset = draft.commit(stage="format", parents=[selection], counts={**counts, "examples": 20})
    inputs = {
        "dataset": dataset,
        "selection": selection,
        "tables": [table],
        "heldout": tasks_of(place, ["something else entirely?"]),
        "base": None,
        "curation": CurateRecipe(),
        "format": FormatRecipe(),
        "samples": 1,
        "max_length": 1024,
        "seed": 0,
    }
    return place, inputs


def tasks_of(place: Workspace, questions: list[str]) -> ArtifactRef:
    with place.store.draft("tasks") as draft:
        rows = [{"responses_create_params": {"input": [{"role": "user", "content": q}]}} for q in questions]
        (draft.path / TASKS).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        return draft.commit(stage="make-tasks", counts={"tasks": len(rows)})


def validated(place: Workspace, inputs: dict[str, Any], **checks: Any) -> ArtifactRef:
    @flow(name="check")
    def check() -> ArtifactRef:
        return run(validate_dataset, 1, "validate", **inputs, checks=ChecksRecipe(silence=("GM104",), **checks))

    with place.locked(), place.entered():
        return check()


def reports(place: Workspace) -> list[ArtifactRef]:
    return [ref for ref in place.store.refs() if ref.kind == "report"]


async def artifact(key: str) -> str:
    async with get_client() as client:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

        found = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
        return str(max(found, key=lambda one: one.created).data)


def test_good_data_goes_on_and_the_report_is_kept(made: tuple[Workspace, dict[str, Any]]) -> None:
    place, inputs = made
    ref = validated(place, inputs)
    found = place.store.read_json(ref, FINDINGS)
    assert found["findings"] == []
    assert found["dataset"] == inputs["dataset"].digest
    assert "Training may start" in (place.store.path(ref) / PAGE).read_text()


def test_an_error_stops_but_keeps_what_was_found_and_a_changed_recipe_goes_on(
    made: tuple[Workspace, dict[str, Any]],
) -> None:
    import asyncio

    place, inputs = made
    with pytest.raises(GateError, match=r"GM102 too few examples: 20 < 30 .*All findings: .*checks\.html") as stopped:
        validated(place, inputs, min_examples=30)
    assert stopped.value.exit_code == 3
    (report,) = reports(place)
    assert [finding["id"] for finding in place.store.read_json(report, FINDINGS)["findings"]] == ["GM102"]
    assert "| error | GM102 Too few examples | too few examples: 20" in asyncio.run(artifact("checks"))
    validated(place, inputs, min_examples=20)
    assert len(reports(place)) == 2


def test_a_held_out_task_among_the_training_rows_stops(made: tuple[Workspace, dict[str, Any]]) -> None:
    place, inputs = made
    leaked = {**inputs, "heldout": tasks_of(place, ["What is 7, and how does it come about?", "and this?"])}
    with pytest.raises(GateError, match=r"GM501 1 of 2 evaluation tasks stand in the training data word for word"):
        validated(place, leaked)
    from gristmill.checks.contamination import task_id

    id = task_id("What is 7, and how does it come about?")
    validated(place, leaked, allowed_overlaps={id: "reviewed: an example from the documentation"})
