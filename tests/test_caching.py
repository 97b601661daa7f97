"""Caching by content through the real engine: hits across runs and moves, misses on change, never a ghost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prefect import flow

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.errors import GateError
from gristmill.progress import Update
from gristmill.recipe import CurateRecipe
from gristmill.workspace import Workspace, read_lines
from tasks.caching import key_of, refs_in, run, step

pytestmark = pytest.mark.usefixtures("prefect_server")

ran: list[str] = []


@step("first")
def first(text: str) -> ArtifactRef:
    ran.append("first")
    with Workspace.current().store.draft("tasks") as draft:
        (draft.path / "a.txt").write_text(text)
        return draft.commit(stage="first", counts={"tasks": 1})


@step("second")
def second(source: ArtifactRef, settings: CurateRecipe) -> ArtifactRef:
    ran.append("second")
    with Workspace.current().store.draft("tasks") as draft:
        text = (Workspace.current().store.path(source) / "a.txt").read_text()
        (draft.path / "b.txt").write_text(f"{text} {settings.min_reward}")
        return draft.commit(stage="second", parents=[source], counts={"tasks": 1})


@step("refuse")
def refuse(source: ArtifactRef) -> ArtifactRef:
    raise GateError("GM102 too few")


@flow
def chain(root: str, text: str, settings: CurateRecipe) -> ArtifactRef:
    with Workspace(root).entered():
        return run(second, 1, "two", source=run(first, 1, "one", text=text), settings=settings)


@flow
def refused(root: str) -> ArtifactRef:
    with Workspace(root).entered():
        return run(refuse, 1, "three", source=run(first, 1, "one", text="x"))


def states(root: Path, text: str = "x", settings: CurateRecipe | None = None) -> tuple[list[str], list[str]]:
    """What ran, and what each stage said at its end."""
    ran.clear()
    updates: list[Update] = []
    with progress.listening(updates.append):
        chain(str(root), text, settings or CurateRecipe())
    return list(ran), [update.state for update in updates if update.state != "running"]


def test_unchanged_work_is_not_done_again(tmp_path: Path) -> None:
    assert states(tmp_path) == (["first", "second"], ["done", "done"])
    assert states(tmp_path) == ([], ["cached", "cached"])
    journal = read_lines(tmp_path / "journal.jsonl")
    assert [(line["stage"], line["cached"]) for line in journal] == [
        ("one", False),
        ("two", False),
        ("one", True),
        ("two", True),
    ]


def test_a_setting_redoes_only_what_depends_on_it(tmp_path: Path) -> None:
    states(tmp_path)
    assert states(tmp_path, settings=CurateRecipe(min_reward=0.5)) == (["second"], ["cached", "done"])


def test_changed_content_redoes_everything_after_it(tmp_path: Path) -> None:
    states(tmp_path)
    assert states(tmp_path, text="y") == (["first", "second"], ["done", "done"])


def test_a_deleted_artifact_is_made_again(tmp_path: Path) -> None:
    states(tmp_path)
    source = next(
        ref for ref in Workspace(tmp_path).store.refs() if Workspace(tmp_path).store.manifest(ref).stage == "first"
    )
    shutil.rmtree(Workspace(tmp_path).store.path(source))
    assert states(tmp_path) == (["first"], ["done", "cached"])


def test_a_damaged_artifact_is_a_miss(tmp_path: Path) -> None:
    states(tmp_path)
    store = Workspace(tmp_path).store
    source = next(ref for ref in store.refs() if store.manifest(ref).stage == "first")
    (store.path(source) / "a.txt").write_text("longer than before")
    assert states(tmp_path)[0] == ["first"]


def test_a_moved_workspace_is_still_cached(tmp_path: Path) -> None:
    states(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert states(tmp_path / "there") == ([], ["cached", "cached"])


def test_workspaces_do_not_share_results(tmp_path: Path) -> None:
    states(tmp_path / "one")
    assert states(tmp_path / "two")[0] == ["first", "second"]


def test_a_refusal_keeps_its_type_and_is_not_cached(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(GateError, match="GM102 too few"):
            refused(str(tmp_path))


def test_an_input_without_identity_is_an_error_not_a_silent_miss(tmp_path: Path) -> None:
    with Workspace(tmp_path).entered(), pytest.raises(TypeError, match="a set cannot be"):
        run(first, 1, "one", text={"x"})


def test_keys_name_the_task_and_follow_version_and_content() -> None:
    ref = ArtifactRef(kind="tasks", digest="a" * 64)
    key = key_of("second", "1", {"source": ref, "n": [1, None]})
    assert key.startswith("second-")
    assert key == key_of("second", "1", {"n": (1, None), "source": ref})
    assert key != key_of("second", "2", {"source": ref, "n": [1, None]})
    assert key != key_of("second", "1", {"source": ref, "n": [2, None]})


def test_references_are_found_wherever_they_are_nested() -> None:
    ref = ArtifactRef(kind="tasks", digest="a" * 64)
    assert list(refs_in([ref, (ref,), "text", CurateRecipe()])) == [ref, ref]
