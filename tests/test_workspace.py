"""The workspace: one run at a time, a journal that survives a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.errors import StoreError, WorkspaceBusy
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


def test_a_workspace_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), Workspace(tmp_path / "file").locked():
        pass
