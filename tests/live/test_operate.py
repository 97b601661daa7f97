"""An interrupted loop by the command line: what it prints goes on; `status`, `doctor`, `gc` and `diff` agree on it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.runs import runs
from gristmill.workspace import Workspace
from tests.test_loop import command

pytestmark = pytest.mark.live


def call(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gristmill", *arguments],
        env=os.environ | {"PREFECT_API_URL": url},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_interrupted_killed_resumed_and_looked_at(prefect_server: str, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    place = ["-w", str(workspace)]
    first = command(workspace, prefect_server)
    assert first.stderr is not None
    seen = []
    for line in first.stderr:
        seen.append(line.decode())
        if seen[-1].startswith("turn 1  curate"):
            first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert first.returncode == 130
    (said,) = [line for line in seen if line.startswith("interrupted; to go on: ")]
    words = shlex.split(said.removeprefix("interrupted; to go on: "))
    assert words[-6:] == ["gristmill", "improve", str(tmp_path / "w.yaml"), "-w", str(workspace), "--json"]

    killed = command(workspace, prefect_server)
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith(b"turn 1  validate"):
            killed.kill()
    killed.communicate(timeout=60)
    found = json.loads(call(prefect_server, "status", *place, "--json").stdout)
    assert found["last"]["outcome"] == "killed" and found["last"]["run"] == 2
    assert {one["stage"] for one in found["stages"] if one["state"] == "owed"} >= {"train", "promote", "report"}
    # Its flow run is still Running on the server, which cannot know better.
    sick = call(prefect_server, "doctor", *place)
    assert sick.returncode == 1 and "its process is gone → --mend sets it to Crashed" in sick.stdout
    assert call(prefect_server, "doctor", "--mend", *place).returncode == 0
    assert call(prefect_server, "doctor", *place).returncode == 0

    done = call(prefect_server, "resume", *place, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(call(prefect_server, "status", *place, "--json").stdout)["owed"] == 0
    again = call(prefect_server, "resume", "--force", "curate", *place, "--json")
    assert again.returncode == 0, again.stderr
    assert [one.stage for one in runs(Workspace(workspace))[-1].productions if not one.cached] == ["curate"]
    told = json.loads(call(prefect_server, "diff", "3", "4", *place, "--json").stdout)
    assert told["recipe"] == {} and told["parted"] is None
    assert call(prefect_server, "gc", "--keep-runs", "1", "--delete", *place).returncode == 0
    assert call(prefect_server, "doctor", "--deep", *place).returncode == 0
    assert json.loads(call(prefect_server, "status", *place, "--json").stdout)["owed"] == 0
