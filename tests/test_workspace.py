"""The workspace: one run at a time, a journal that survives a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.errors import NewerSchema, StoreError, WorkspaceBusy
from gristmill.workspace import Workspace, append_line, read_lines


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from gristmill.workspace import Workspace\n"
        f"with Workspace({str(tmp_path)!r}).locked():\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            with pytest.raises(WorkspaceBusy, match=f"process {holder.pid}"), Workspace(tmp_path).locked():
                pass
        finally:
            holder.kill()
            holder.wait()
    with Workspace(tmp_path).locked():
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_current_is_the_entered_one_then_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRISTMILL_WORKSPACE", raising=False)
    with pytest.raises(StoreError, match="GRISTMILL_WORKSPACE"):
        Workspace.current()
    monkeypatch.setenv("GRISTMILL_WORKSPACE", str(tmp_path / "named"))
    assert Workspace.current().root == tmp_path / "named"
    with Workspace(tmp_path).entered():
        assert Workspace.current().root == tmp_path


def test_a_torn_tail_is_owed_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_line(path, {"n": 1})
    append_line(path, {"n": 2})
    path.write_bytes(path.read_bytes()[:-4])  # the writer was killed in the middle of line 2
    assert read_lines(path) == [{"n": 1}]
    append_line(path, {"n": 3})
    assert read_lines(path) == [{"n": 1}, {"n": 3}]


def test_lines_that_are_no_json_or_newer_are_named(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    place.append("other.jsonl", {"n": 1}, {"n": 2})
    path = tmp_path / "other.jsonl"
    path.write_bytes(path.read_bytes() + b"{torn\n")
    with pytest.raises(StoreError, match=r"other\.jsonl, line 3: expected JSON, found b'\{torn'"):
        place.read("other.jsonl")
    path.write_bytes(b'{"schema_version": 2}\n')
    with pytest.raises(NewerSchema, match=r"line 1, has schema version 2"):
        place.read("other.jsonl")


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    assert place.get_file("reviews/a.json") is None
    for data in (b"first", b"second"):
        place.put_file("reviews/a.json", data)
        assert place.get_file("reviews/a.json") == data
    assert place.file_names("reviews") == ["reviews/a.json"]


def test_a_workspace_is_found_where_there_is_a_folder(tmp_path: Path) -> None:
    assert Workspace.found(tmp_path / "none") is None
    found = Workspace.found(tmp_path)
    assert found is not None
    assert str(found) == found.location == str(tmp_path)


def test_a_workspace_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), Workspace(tmp_path / "file").locked():
        pass
