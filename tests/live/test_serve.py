"""A policy served by a real server: it answers, its death is told, and it never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from gristmill import arithmetic, smollm
from gristmill.collect import ROLLOUTS, Counts
from gristmill.collect.run import Actor, run
from gristmill.errors import CollectionError
from gristmill.recipe import EnvironmentRecipe, PolicyRecipe, RequestsRecipe, SamplingRecipe
from gristmill.serve import served

pytestmark = pytest.mark.live

POLICY = PolicyRecipe(model="tiny-random", kind="serve", server="transformers", device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm.tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_a_served_policy_collects(model: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in arithmetic.make_tasks(4, 0, "train")))
    sampling = SamplingRecipe(samples=2, max_new_tokens=4, min_completion=1.0)
    counts = run(
        EnvironmentRecipe(),
        POLICY,
        Actor(model, "tiny", "x"),
        sampling,
        RequestsRecipe(concurrency=2, timeout=60, start_timeout=120),
        tasks=tasks,
        seed=0,
        out=tmp_path / "out",
        work=tmp_path / "work",
    )
    assert counts == Counts(4, 2, 8, 8, 0, counts.tokens, {})
    rows = [orjson.loads(line) for line in (tmp_path / "out" / ROLLOUTS).read_bytes().splitlines()]
    assert all(row["reward"] in (0.0, 1.0) and row["response"]["usage"]["output_tokens"] for row in rows)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with (
        pytest.raises(CollectionError, match=r"transformers serve ended with code \d+: .*whole log"),
        served(tmp_path / "broken", POLICY, log=tmp_path / "serve.log", start_timeout=120),
    ):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from gristmill.serve import running
with running([sys.executable, "-c", sys.argv[2]], Path(sys.argv[1]), "sleeper"):
    print("up", flush=True)
    time.sleep(600)
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def test_a_server_and_its_children_die_with_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER.replace("import sys, time", "import sys, time\nimport gristmill.serve as s\ns._GRACE = 0.5", 1),
            str(log),
            STUBBORN,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
        wait(lambda: log.read_bytes().endswith(b"\n"))
        pids = [int(word) for word in log.read_text().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    wait(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead: its parent, killed too, no longer reads its end.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait(ready: object) -> None:
    assert callable(ready)
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
