"""The demo as a stranger runs it, under three seeds: the model gets better, and the interval says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-m", "gristmill", "demo", f"seed={seed}", "--json", "-w", str(tmp_path / "w")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout.splitlines()[-1])
    print(f"seed {seed}: {result}")  # shown by pytest -s, and on failure
    assert len(result["turns"]) == 2
    assert result["lift"]["low"] > 0
    assert result["turns"][-1]["mean_reward"] > result["base"]["mean"]
    assert result["cached"] == 0
    assert Path(result["report"]).is_file()

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout.splitlines()[-1])
    assert second["cached"] == again.stderr.count(" cached ") == first.stderr.count(" done ")
    assert (second["turns"], second["lift"]) == (result["turns"], result["lift"])
