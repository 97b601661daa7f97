"""Copies of workspaces: verified, complete, taken up where they stopped, never over another history."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gristmill.copying import copy, verify
from gristmill.errors import StoreError, UsageError
from gristmill.workspace import Workspace
from tests.test_store import put

FIRST = Path(__file__).parent / "fixtures" / "workspace-0.1.0"


@pytest.fixture(params=["disk", "bucket"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    if request.param == "disk":
        return Workspace(tmp_path / "target")
    pytest.importorskip("obstore")
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))
    return Workspace(f"memory://{tmp_path.name}")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_there_and_back_every_byte_is_the_same(target: Workspace, tmp_path: Path) -> None:
    done = copy(Workspace(FIRST), target)
    assert (done.artifacts, done.there, done.damaged) == (17, 0, [])
    assert verify(target) == []
    copy(target, Workspace(tmp_path / "back"))
    back = tree(tmp_path / "back")
    del back["lock"]
    assert back == tree(FIRST)


def test_only_what_is_new_is_copied(target: Workspace, tmp_path: Path) -> None:
    shutil.copytree(FIRST, tmp_path / "source")
    source = Workspace(tmp_path / "source")
    copy(source, target)
    put(source.store, "more")
    source.append("journal.jsonl", {"note": "more"})
    done = copy(source, target)
    assert (done.artifacts, done.there, done.files) == (1, 17, 1)
    done = copy(source, target)
    assert (done.artifacts, done.there, done.files) == (0, 18, 0)
    assert target.read("journal.jsonl") == source.read("journal.jsonl")


def test_a_copy_that_is_ahead_is_not_set_back(target: Workspace) -> None:
    copy(Workspace(FIRST), target)
    target.append("journal.jsonl", {"note": "more"})
    before = target.read("journal.jsonl")
    assert copy(Workspace(FIRST), target).files == 0
    assert target.read("journal.jsonl") == before


def test_another_history_is_not_written_over(target: Workspace) -> None:
    target.append("champions.jsonl", {"somebody": "else"})
    with pytest.raises(StoreError, match=r"champions\.jsonl has lines that .* has not"):
        copy(Workspace(FIRST), target)
    assert list(target.store.refs()) == []


def test_what_is_damaged_is_left_out_and_named(target: Workspace, tmp_path: Path) -> None:
    shutil.copytree(FIRST, tmp_path / "source")
    source = Workspace(tmp_path / "source")
    ref = next(
        ref for ref in source.store.refs() if ref.kind == "checkpoint" and not source.store.manifest(ref).parents
    )
    file = source.store.path(ref) / "pointer.json"
    file.write_bytes(file.read_bytes().replace(b"tiny", b"TINY"))
    done = copy(source, target)
    assert done.artifacts == 16
    assert len(done.damaged) == 1 and "pointer.json: expected sha256" in done.damaged[0]
    assert not target.store.exists(ref)


def test_unfinished_work_and_locks_stay_behind(target: Workspace, tmp_path: Path) -> None:
    source = Workspace(tmp_path / "source")
    put(source.store)
    (source.work("train-1") / "x").write_text("x")
    with source.locked():
        copy(source, target)
    assert {name.partition("/")[0] for name in target.file_names("")} <= {"artifacts", "lock"}


def test_a_place_is_not_copied_onto_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both source and target"):
        copy(Workspace(tmp_path), Workspace(str(tmp_path)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gristmill.workspace_command import run

    run(FIRST, tmp_path / "target", check=True, json=False)
    said = capsys.readouterr().out
    assert "17 artifacts copied" in said and "hashed again" in said
    run(FIRST, tmp_path / "target", check=False, json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["there"] == 17
    with pytest.raises(UsageError, match="there is no workspace"):
        run(tmp_path / "none", tmp_path / "target", check=False, json=False)
