"""What version 0.1.0 wrote is read by this one: every artifact, every line, every file that a later stage opens.

`fixtures/make_workspace.py` says how it was made. If one of these fails, mend the code (migrate), not the fixture.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gristmill.artifact import ArtifactRef
from gristmill.champions import Champion, champions, registry, roll_back
from gristmill.curate import SELECTION, curate
from gristmill.dataset import write_dataset
from gristmill.environment import read_tasks
from gristmill.evaluation import read_evaluation, scored
from gristmill.promotion import Verdict, read_decision
from gristmill.recipe import CurateRecipe, FormatRecipe, Recipe
from gristmill.table import parts
from gristmill.workspace import Workspace

FIRST = Path(__file__).parent / "fixtures" / "workspace-0.1.0"


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    shutil.copytree(FIRST, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace")


def of(place: Workspace, stage: str) -> list[ArtifactRef]:
    return [ref for ref in place.store.refs() if place.store.manifest(ref).stage == stage]


def test_every_artifact_is_whole_and_says_where_it_came_from(place: Workspace) -> None:
    refs = list(place.store.refs())
    assert len(refs) == 17
    for ref in refs:
        place.store.verify(ref)
        manifest = place.store.manifest(ref)
        assert manifest.schema_version == 1
        assert manifest.gristmill == "0.1.0"
        assert set(manifest.parents) <= set(refs)


def test_the_registry_is_read_and_goes_on(place: Workspace) -> None:
    (line,) = registry(place)
    assert isinstance(line, Champion)
    assert line.lift.mean == 1.0
    assert place.store.exists(line.checkpoint)
    assert champions(place) == [line]
    roll_back(place, "a test")
    assert champions(place) == []


def test_evaluations_and_the_decision_are_read(place: Workspace) -> None:
    means = [read_evaluation(place.store, ref).estimate.mean for ref in of(place, "evaluate")]
    assert sorted(means) == [0.0, 1.0]
    (settled,) = of(place, "promote")
    decision = read_decision(place.store, settled)
    assert decision.verdict is Verdict.PROMOTED
    assert decision.promoted


def test_tasks_tables_and_selections_go_through_today_s_stages(place: Workspace, tmp_path: Path) -> None:
    assert sorted(len(read_tasks(place.store, ref)) for ref in of(place, "make-tasks")) == [6, 8]
    (selection,) = of(place, "curate")
    (table,) = (ref for ref in place.store.manifest(selection).parents if ref.kind == "table")
    files = parts(place.store.path(table))
    counts = place.store.manifest(selection).counts
    (tmp_path / "old").mkdir()
    old = write_dataset(
        place.store.path(selection) / SELECTION, [files], counts, FormatRecipe(), tmp_path / "old", seed=0
    )
    assert old["examples"] == place.store.manifest(of(place, "format")[0]).counts["examples"]
    (tmp_path / "new").mkdir()
    again = curate([files], [place.store.manifest(table).counts], CurateRecipe(), tmp_path / "new", seed=0)
    assert again["rows_kept"] == counts["rows_kept"]
    for ref in of(place, "ingest"):
        rows = list(scored(parts(place.store.path(ref))))
        assert len(rows) == place.store.manifest(ref).counts["rows_kept"]


def test_every_parquet_and_json_file_is_read(place: Workspace) -> None:
    import orjson
    import pyarrow.parquet as pq

    read = 0
    for ref in place.store.refs():
        for entry in place.store.manifest(ref).files:
            path = place.store.path(ref) / entry.name
            if path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".json":
                orjson.loads(path.read_bytes())
            elif path.suffix == ".jsonl":
                [orjson.loads(line) for line in path.read_bytes().splitlines()]
            else:
                continue
            read += 1
    assert read > 17


def test_reviews_are_read(place: Workspace) -> None:
    from gristmill.decisions import effective, read_opinions
    from gristmill.review.waiting import log_of

    assert effective(log_of(place).entries()) == {"f" * 32: "reject"}
    (kept,) = of(place, "keep-decisions")
    assert [opinion.reviewer for opinion in read_opinions(place.store, kept)] == ["ann"]


def test_the_journal_the_runs_and_the_names_are_read(place: Workspace) -> None:
    from gristmill.names import resolve
    from gristmill.runs import runs
    from gristmill.versions import versions

    assert len(place.read("journal.jsonl")) == 7
    assert [run.number for run in runs(place)] == [0]  # before runs recorded themselves
    (line,) = champions(place)
    assert resolve(place, "champion") == line.checkpoint
    assert resolve(place, "model v1") == line.checkpoint
    assert str(versions(place)[of(place, "format")[0]]) == "data v1"


def test_the_recipe_of_the_report_is_a_recipe_still(place: Workspace) -> None:
    (report,) = of(place, "report")
    settings = place.store.manifest(report).settings
    assert Recipe.model_validate(settings).name == "first"
