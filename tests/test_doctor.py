"""The doctor finds every kind of damage, says its mend, and the mend leaves a workspace that works."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from gristmill.artifact import MANIFEST
from gristmill.champions import champions
from gristmill.doctor import Engine, Finding, examine
from gristmill.doctor_command import run as show
from gristmill.doctor_command import still_wrong
from gristmill.errors import StoreError, WorkspaceBusy
from gristmill.processes import left_behind
from gristmill.runs import runs
from gristmill.status import status
from gristmill.workspace import Workspace
from tests.recorded import killed, promote, recipe, run_turn


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    place = Workspace(tmp_path / "w")
    promote(place, run_turn(place, recipe()))
    return place


def wrong(place: Workspace, **how: bool) -> list[str]:
    return [one.what for one in still_wrong(examine(place, **how))]  # type: ignore[arg-type]


def test_a_healthy_workspace_has_nothing_wrong(place: Workspace) -> None:
    assert wrong(place, deep=True) == []
    assert wrong(Workspace(place.root / "none")) == []


def test_a_flipped_byte_is_found_by_hashing_and_set_aside(place: Workspace) -> None:
    ref = next(ref for ref in place.store.refs() if ref.kind == "dataset")
    file = place.store.path(ref) / "payload.txt"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    assert wrong(place) == []  # sizes are right
    (said,) = wrong(place, deep=True)
    assert said.startswith(f"{ref.short}: payload.txt: expected sha256")
    assert wrong(place, deep=True, mend=True) == []
    assert not place.store.exists(ref)
    (aside,) = (place.root / "damaged").iterdir()
    assert (aside / "payload.txt").read_bytes() == data  # nothing is lost
    found = status(place)
    assert [one.stage for one in found.stages if one.state == "missing"] == ["format"]
    run_turn(place, recipe())
    assert wrong(place, deep=True) == []


@pytest.mark.parametrize("damage", ["delete", "truncate", "no manifest", "half a manifest"])
def test_damaged_artifacts_are_found_by_looking(place: Workspace, damage: str) -> None:
    ref = next(ref for ref in place.store.refs() if ref.kind == "checkpoint")
    folder = place.store.path(ref)
    if damage == "delete":
        (folder / "payload.txt").unlink()
        words = "payload.txt is missing"
    elif damage == "truncate":
        os.truncate(folder / "payload.txt", 2)
        words = "payload.txt has 2 bytes, expected"
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
        words = "has no manifest, so it does not exist"
    else:
        os.truncate(folder / MANIFEST, 20)
        words = "manifest.json cannot be read"
    (said,) = wrong(place)
    assert said.startswith(f"{ref.short}: ") and words in said
    assert wrong(place, mend=True) == []
    run_turn(place, recipe())
    assert wrong(place, deep=True) == []
    assert champions(place)[-1].checkpoint == ref and place.store.exists(ref)


@pytest.mark.parametrize("name", ["journal.jsonl", "runs.jsonl", "champions.jsonl"])
def test_a_torn_tail_is_moved_aside_by_mending_and_cut_by_the_next_run(place: Workspace, name: str) -> None:
    path = place.root / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + b'{"torn": tr')
    status(place)  # it is read as if the line were not there
    (said,) = wrong(place)
    assert said.startswith(f"{name} ends in a torn line of 11 bytes")
    assert wrong(place, mend=True) == []
    assert path.read_bytes() == b"".join(lines)
    assert [one.read_bytes() for one in (place.root / "damaged").iterdir()] == [b'{"torn": tr']


@pytest.mark.parametrize("name", ["journal.jsonl", "runs.jsonl", "champions.jsonl"])
def test_a_garbled_line_is_one_sentence_and_can_be_taken_out(place: Workspace, name: str) -> None:
    path = place.root / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], b"\x00\xff garbage\n", *lines[1:]]))
    with pytest.raises(StoreError, match=f"{name}, line 2: expected JSON"):
        status(place)
    (said,) = wrong(place)
    assert said.startswith(f"{name}, line 2: damaged")
    assert wrong(place, mend=True) == []
    assert path.read_bytes() == b"".join(lines)
    assert len(runs(place)) == 1 and len(champions(place)) == 1


@pytest.mark.parametrize(
    "name, line, why",
    [
        ("champions.jsonl", {"recipe": "a", "turn": 1}, "recipe_digest: field required"),
        ("versions.jsonl", {"kind": "dataset", "digest": "Z"}, "number: field required"),
        ("runs.jsonl", {"run": 1, "event": "stert"}, "time: field required"),
        ("journal.jsonl", {"stage": "curate", "turn": "x"}, "time: field required"),
        ("names.jsonl", {"name": 1}, "what: field required"),
        ("taints.jsonl", 5, "no JSON object"),
    ],
)
def test_a_line_that_is_json_and_no_record_is_one_sentence_too(
    place: Workspace, name: str, line: object, why: str
) -> None:
    """What one flipped byte leaves of a record, mostly."""
    path = place.root / name
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(before + json.dumps(line).encode() + b"\n")
    number = len(before.splitlines()) + 1
    with pytest.raises(StoreError, match=f"{name}, line {number}: found .* damaged \\({why}.*doctor --mend"):
        place.read(name)
    (said,) = wrong(place)
    assert said.startswith(f"{name}, line {number}: damaged")
    assert wrong(place, mend=True) == []
    assert path.read_bytes() == before


def test_records_of_what_is_gone_are_a_note(place: Workspace) -> None:
    place.store.remove(next(ref for ref in place.store.refs() if ref.kind == "selection"))
    notes = [one for one in examine(place) if one.check == "results"]
    assert [(one.level, one.mended) for one in notes] == [("note", False)]
    examine(place, mend=True)
    assert not [one for one in examine(place) if one.check == "results"]


def test_unfinished_work_says_how_it_goes_on(tmp_path: Path) -> None:
    place = killed(tmp_path)
    place.work("train-abc")
    (one,) = [one for one in examine(place) if one.check == "work"]
    assert one.level == "note" and one.mend is not None and "resume" in one.mend


def test_a_process_left_behind_is_found_by_its_log_and_ended_only_on_request(place: Workspace) -> None:
    log = place.work("collect-abc") / "serve.log"
    code = "import time; print('up', flush=True); time.sleep(600)"
    with log.open("wb") as file:
        ours = subprocess.Popen([sys.executable, "-c", code], stdout=file, start_new_session=True)
    reader = subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.PIPE)
    try:
        while not log.stat().st_size:
            time.sleep(0.05)
        assert [one.pid for one in left_behind(place)] == [ours.pid]
        with place.locked():  # its run may live
            assert not [one for one in examine(Workspace(place.root)) if one.check == "processes"]
        (said,) = wrong(place)
        assert said.startswith(f"process {ours.pid} still works for this workspace")
        assert ours.poll() is None
        assert wrong(place, mend=True) == []
        assert not psutil.pid_exists(ours.pid)
        assert reader.poll() is None  # whoever reads the log is none of ours
    finally:
        for process in (ours, reader):
            process.kill()
            process.wait()
        assert reader.stdout is not None
        reader.stdout.close()


def test_runs_left_unfinished_on_the_server_are_crashed_on_request(tmp_path: Path) -> None:
    place = killed(tmp_path)
    lines = [json.loads(line) | {"engine": "id-1"} for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    crashed: list[str] = []
    engine = Engine(
        url="http://x", answers=True, unfinished=lambda ids: [(one, "Running") for one in ids], crash=crashed.append
    )
    (one,) = still_wrong(examine(place, engine=engine))
    assert one.what == "flow run id-1 (run 1) is Running there, and its process is gone"
    assert crashed == []
    assert still_wrong(examine(place, engine=engine, mend=True)) == []
    assert crashed == ["id-1"]
    silent = Engine(url="http://x", answers=False)
    assert [one.check for one in still_wrong(examine(place, engine=silent))] == ["server"]


def test_mending_waits_for_no_run(place: Workspace) -> None:
    with place.locked(), pytest.raises(WorkspaceBusy):
        examine(Workspace(place.root), mend=True)


def test_the_command_ends_with_one_if_something_is_wrong(place: Workspace) -> None:
    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gristmill", "doctor", "-w", str(place.root), *more]
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert call().returncode == 0
    os.truncate(place.store.path(next(iter(place.store.refs()))) / "payload.txt", 0)
    shown = call()
    assert shown.returncode == 1 and "→ --mend sets it aside" in shown.stdout and shown.stderr == ""
    assert call("--mend", "--json").returncode == 0
    assert call().returncode == 0


def test_every_finding_is_one_line(place: Workspace) -> None:
    out = io.StringIO()
    found: list[Finding] = show(
        workspace=place.root, deep=True, mend=False, json=False, engine=None, console=Console(file=out, width=80)
    )
    assert len(out.getvalue().splitlines()) == len(found) + 1
