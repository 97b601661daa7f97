"""SIGKILL at every system call that makes something durable or takes it away: nothing is lost at any of them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.test_damage import killed_at, survives

pytestmark = [pytest.mark.live, pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")]

MOST = 12  # kills a kind, drawn evenly from all there are; every one takes seconds


@pytest.mark.parametrize("call", ["fsync", "/rename", "/unlink", "/rmdir", "/mkdir", "ftruncate", "write"])
def test_a_kill_at_any_call_of_a_kind_loses_nothing(tmp_path: Path, call: str) -> None:
    last = 1
    while killed_at(call, last * 2, tmp_path / f"last-{last}"):
        last *= 2
    numbers = sorted(random.Random(0).sample(range(1, last * 2), min(MOST, last * 2 - 1)))
    kills = 0
    for number in numbers:
        place = tmp_path / str(number)
        kills += killed_at(call, number, place)
        survives(place)
    assert kills >= min(len(numbers), last) / 2
