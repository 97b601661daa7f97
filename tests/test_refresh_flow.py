"""Stages done again through the real engine: what is named runs, what follows from equal content stays cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.progress import Update
from gristmill.refresh import Refresh
from gristmill.runs import recorded, runs
from gristmill.workspace import Workspace
from tasks.caching import run, step
from tests.recorded import recipe

pytestmark = pytest.mark.usefixtures("prefect_server")


@step("make-tasks")
def first(seed: int) -> ArtifactRef:
    with Workspace.current().store.draft("tasks") as draft:
        (draft.path / "a.txt").write_text(f"{seed}")
        return draft.commit(stage="first", counts={"tasks": 1})


@step("curate")
def second(source: ArtifactRef) -> ArtifactRef:
    with Workspace.current().store.draft("tasks") as draft:
        (draft.path / "b.txt").write_text(source.digest)
        return draft.commit(stage="second", parents=[source], counts={"tasks": 1})


@flow
def turn(root: str, refresh: Refresh | None = None) -> None:
    place = Workspace(root)
    with place.locked(), place.entered(), recorded(place, ["improve"], recipe(), refresh=refresh):
        tasks = run(first, 1, "tasks", seed=0)
        chosen = run(second, 1, "curate", source=tasks)
        run(second, 1, "format", source=chosen)


def ended(root: Path, refresh: Any = None) -> dict[str, str]:
    states: dict[str, str] = {}

    def listen(update: Update) -> None:
        states[update.stage] = update.state

    with progress.listening(listen):
        turn(str(root), refresh)
    return states


def test_what_is_named_is_done_again_and_nothing_else(tmp_path: Path) -> None:
    assert set(ended(tmp_path).values()) == {"done"}
    assert set(ended(tmp_path).values()) == {"cached"}
    before = list(Workspace(tmp_path).store.refs())
    assert ended(tmp_path, Refresh(force=("tasks",))) == {"tasks": "done", "curate": "cached", "format": "cached"}
    assert ended(tmp_path, Refresh(redo_from="curate:1")) == {"tasks": "cached", "curate": "done", "format": "done"}
    assert list(Workspace(tmp_path).store.refs()) == before  # equal to the byte: the same artifacts
    assert set(ended(tmp_path).values()) == {"cached"}


def test_a_deployment_may_name_stages_too(tmp_path: Path) -> None:
    ended(tmp_path)
    assert ended(tmp_path, {"force": ["format"]}) == {"tasks": "cached", "curate": "cached", "format": "done"}


def test_the_journal_has_what_status_needs(tmp_path: Path) -> None:
    ended(tmp_path)
    ended(tmp_path)
    one, two = runs(Workspace(tmp_path))
    for run_ in (one, two):
        for production in run_.productions:
            assert production.key is not None and (Workspace(tmp_path).results / production.key).is_file()
    assert [p.cached for p in (*one.productions, *two.productions)] == [False] * 3 + [True] * 3
    assert one.productions[1].inputs == (one.productions[0].result,)
