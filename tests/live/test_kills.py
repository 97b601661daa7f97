"""SIGKILL at random moments, again and again, until a run gets through: the end is that of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gristmill.workspace import Workspace
from tests.test_loop import command

pytestmark = pytest.mark.live

KINDS = {"tasks", "rollouts", "table", "selection", "dataset", "checkpoint", "evaluation", "decision"}


def artifacts(workspace: Path) -> set[str]:
    store = Workspace(workspace).store
    for ref in store.refs():
        store.verify(ref)
    return {str(ref) for ref in store.refs() if ref.kind in KINDS}


@pytest.mark.parametrize("seed", [0])
def test_random_kills(prefect_server: str, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = command(tmp_path / "whole", prefect_server, "turns=2")
    began = time.monotonic()
    _, log = whole.communicate(timeout=600)
    assert whole.returncode == 0, log.decode()
    duration = time.monotonic() - began

    kills = 0
    for _ in range(40):
        process = command(tmp_path / "killed", prefect_server, "turns=2")
        try:
            # After six kills more patience, so that it ends.
            _, log = process.communicate(timeout=rng.uniform(2, duration) * (1 if kills < 6 else 3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, log.decode()
        break
    assert kills > 0
    assert artifacts(tmp_path / "killed") == artifacts(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "work").glob("*"))
