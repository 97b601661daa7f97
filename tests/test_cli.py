"""The command line without an engine: help, wrong use, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gristmill", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_help_lists_the_commands() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("demo", "improve", "champion"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("improve", "absent.yaml"), "recipe absent.yaml: No such file or directory"),
        (("demo", "trian.epochs=1"), "`trian` is no field; did you mean `train`?"),
        (("demo", "train.epochs=many"), "`train.epochs`"),
        (("demo", "policy.model=no-such-model"), "policy.model: 'no-such-model' is neither smollm2-135m"),
        (("demo", "environment.name=chess"), "`environment.name`"),
    ],
)
def test_wrong_use_is_one_sentence_and_two(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    shown = run(*arguments, cwd=tmp_path)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1
    assert shown.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_an_empty_workspace_has_no_champion(tmp_path: Path) -> None:
    shown = run("champion", "-w", str(tmp_path))
    assert shown.returncode == 0
    assert "nothing has been promoted yet" in shown.stdout
