"""Arriving rollout files: complete ones, each content once, over restarts."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from gristmill.arrivals import Arrivals
from gristmill.errors import InputError
from gristmill.workspace import Workspace

LINE = b'{"reward": 1.0}\n'


class Watch:
    """Arrivals under a clock of ours."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.workspace = tmp_path / "incoming", Workspace(tmp_path / "workspace")
        self.folder.mkdir(exist_ok=True)
        self.now = 0.0
        self.said: list[str] = []
        self.restart()

    def restart(self) -> None:
        self.arrivals = Arrivals(self.folder, self.workspace, settle=30, warn=self.said.append, clock=lambda: self.now)

    def after(self, seconds: float, *, tell: bool = True) -> list[str]:
        self.now += seconds
        found = []
        for arrival in self.arrivals.look():
            found.append(Path(arrival.path).name)
            if tell:
                self.arrivals.told(arrival)
        return found


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def test_a_file_counts_when_it_is_still(watch: Watch) -> None:
    file = watch.folder / "a.jsonl"
    file.write_bytes(LINE)
    assert watch.after(0) == []
    assert watch.after(29) == []
    file.write_bytes(LINE * 2)  # it grew
    assert watch.after(1) == []
    assert watch.after(29) == []
    assert watch.after(1) == ["a.jsonl"]
    assert watch.after(1000) == []


def test_a_half_written_line_is_waited_for(watch: Watch) -> None:
    file = watch.folder / "a.jsonl"
    file.write_bytes(LINE + b'{"rew')
    assert watch.after(0) == []
    assert watch.said == []  # it may still grow
    assert watch.after(1000) + watch.after(1000) == []
    assert watch.said == [f"{file} does not end with a whole line; it is told when it does"]
    file.write_bytes(LINE + b'{"reward": 0.0}')  # whole, without a newline at the end
    assert watch.after(0) == []
    assert watch.after(31) == ["a.jsonl"]


def test_what_is_closed_is_said_once_and_looked_at_again(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed over, its rollouts would be missing without a word."""
    inner = watch.folder / "inner"
    inner.mkdir()
    (inner / "a.jsonl").write_bytes(LINE)
    (watch.folder / "b.jsonl").write_bytes(LINE * 2)
    scan = os.scandir

    def closed(path: str) -> object:
        if Path(path) == inner:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)  # root reads everything
    assert watch.after(0) == []
    assert watch.after(31) == ["b.jsonl"]
    assert watch.said == [f"{inner} cannot be read: Permission denied; make it readable"]
    monkeypatch.setattr(os, "scandir", scan)
    assert watch.after(0) == []
    assert watch.after(31) == ["a.jsonl"]


def test_a_file_that_is_closed_is_said(watch: Watch) -> None:
    (watch.folder / "b.jsonl").symlink_to(watch.folder / "b.jsonl")  # nobody can read it, not even root
    assert watch.after(0) + watch.after(31) == []
    assert len(watch.said) == 1
    assert watch.said[0].startswith(f"{watch.folder / 'b.jsonl'} cannot be read: ")


def test_empty_files_and_others_are_none(watch: Watch) -> None:
    (watch.folder / "a.jsonl").touch()
    (watch.folder / "notes.txt").write_bytes(LINE)
    (watch.folder / "b.jsonl.gz").write_bytes(gzip.compress(LINE))
    assert watch.after(0) == []
    assert watch.after(31) == ["b.jsonl.gz"]


def test_the_same_content_is_told_once_over_restarts(watch: Watch) -> None:
    (watch.folder / "a.jsonl").write_bytes(LINE)
    watch.after(0)
    assert watch.after(31) == ["a.jsonl"]
    watch.restart()
    with pytest.MonkeyPatch.context() as patch:  # what was told is known without being read
        patch.setattr("gristmill.arrivals.file_digest", lambda path: pytest.fail(f"{path} was read again"))
        assert watch.after(0) + watch.after(31) == []
    (watch.folder / "deeper").mkdir()
    (watch.folder / "deeper" / "copy.jsonl").write_bytes(LINE)
    watch.after(0)
    assert watch.after(31) == []
    (watch.folder / "a.jsonl").write_bytes(LINE * 3)
    watch.after(0)
    assert watch.after(31) == ["a.jsonl"]


def test_what_was_not_taken_is_told_again(watch: Watch) -> None:
    """The server was away: the consumer stops between an arrival and its note."""
    (watch.folder / "a.jsonl").write_bytes(LINE)
    watch.after(0)
    watch.now = 31
    next(iter(watch.arrivals.look()))  # and never told
    assert watch.after(0, tell=False) == ["a.jsonl"]
    watch.restart()
    watch.after(0)
    assert watch.after(31) == ["a.jsonl"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        Arrivals(tmp_path / "nothing", Workspace(tmp_path), settle=1, warn=print)
