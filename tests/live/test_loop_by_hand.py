"""docs/loop_by_hand.py runs as it stands, on the tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]


def test_the_literate_loop_runs(tmp_path: Path) -> None:
    fields = [
        *("policy.model=tiny-random", "environment.tasks=6", "environment.heldout=4", "turns=2"),
        *("collect.max_new_tokens=4", "evaluate.max_new_tokens=4", "curate.min_reward=null"),
        *("curate.keep_truncated=true", "train.lora_rank=2", "train.epochs=1"),
    ]
    ended = subprocess.run(
        [sys.executable, "docs/loop_by_hand.py", str(tmp_path / "loop"), *fields],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("base: ") and lines[1].startswith("turn 1: ") and lines[3].startswith("turn 2: ")
    assert (tmp_path / "loop" / "turn-2" / "model" / "model.safetensors").is_file()
