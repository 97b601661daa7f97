"""The whole loop in a bucket: the digests that it has on disk, found by a second machine, gone on with after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.workspace import Workspace
from tests import buckets

pytestmark = pytest.mark.live
pytest.importorskip("obstore")

ROOT = Path(__file__).parents[2]
SMALL = [
    *("policy.model=tiny-random", "environment.tasks=6", "environment.heldout=4", "turns=1", "train.epochs=1"),
    *("collect.samples=2", "collect.max_new_tokens=4", "evaluate.samples=2", "evaluate.max_new_tokens=4"),
    *("checks.min_examples=1", "checks.max_truncated=1", "curate.min_reward=null", "curate.keep_truncated=true"),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    pytest.importorskip("moto")
    with buckets.s3() as port:
        yield buckets.s3_environment(port)


def command(workspace: str) -> list[str]:
    return [sys.executable, "-m", "gristmill", "demo", *SMALL, "-w", workspace]


def environment(s3: dict[str, str], cache: Path) -> dict[str, str]:
    return {**os.environ, **s3, "GRISTMILL_CACHE": str(cache)}


def demo(workspace: str, env: dict[str, str]) -> str:
    done = subprocess.run(command(workspace), env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def made(workspace: str, *but: str) -> set[str]:
    return {str(ref) for ref in Workspace(workspace).store.refs() if ref.kind not in but}


def test_a_loop_in_a_bucket_makes_what_it_makes_on_disk(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3, "GRISTMILL_CACHE": str(tmp_path / "reader")}.items():
        monkeypatch.setenv(name, value)
    demo(str(tmp_path / "disk"), environment(s3, tmp_path / "here"))
    demo("s3://bucket/loop", environment(s3, tmp_path / "here"))
    # Reports show when things were made.
    assert made("s3://bucket/loop", "report") == made(str(tmp_path / "disk"), "report")
    said = demo("s3://bucket/loop", environment(s3, tmp_path / "there"))
    assert "nothing had changed, nothing was done again" in said
    fetched = sum(p.stat().st_size for p in (tmp_path / "there" / "workspaces").rglob("*.safetensors"))
    assert fetched == 0, "a machine on which nothing is done fetches no weights"


def test_a_killed_loop_goes_on_where_it_was(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3, "GRISTMILL_CACHE": str(tmp_path / "reader")}.items():
        monkeypatch.setenv(name, value)
    env = environment(s3, tmp_path / "here")
    place = Workspace("s3://bucket/killed")
    with subprocess.Popen(command("s3://bucket/killed"), env=env, cwd=ROOT, start_new_session=True) as run:
        deadline = time.monotonic() + 600
        while not any(line["stage"] == "evaluate" for line in place.read("journal.jsonl")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        os.killpg(run.pid, signal.SIGKILL)
    before = made("s3://bucket/killed")
    said = demo("s3://bucket/killed", env)  # at once: the dead holder's lock is known to be dead
    assert before <= made("s3://bucket/killed")
    assert "were cached" in said and " 0 were cached" not in said
