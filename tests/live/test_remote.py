"""The whole loop in a bucket of a real server, Ceph's: the digests that it has on disk, found by a second machine, gone
on with after a kill; uploads that are cut by the death of either side; one run at a time, process against process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.remote.bucket import Bucket
from gristmill.workspace import Workspace
from tests import buckets, ceph

pytestmark = pytest.mark.live
pytest.importorskip("obstore")

ROOT = Path(__file__).parents[2]
SMALL = [
    *("policy.model=tiny-random", "environment.tasks=6", "environment.heldout=4", "turns=1", "train.epochs=1"),
    *("collect.samples=2", "collect.max_new_tokens=4", "evaluate.samples=2", "evaluate.max_new_tokens=4"),
    *("checks.min_examples=1", "checks.max_truncated=1", "curate.min_reward=null", "curate.keep_truncated=true"),
]


LARGE = 256  # MB: in some 30 parts
COMMIT = """
import sys
from pathlib import Path
from gristmill.workspace import Workspace
with Workspace(sys.argv[1]).store.draft("dataset") as draft:
    with (draft.path / "large").open("wb") as file:
        for number in range(int(sys.argv[2])):
            file.write(number.to_bytes(4) * 250_000)
    print(draft.commit(stage="test"))
"""
HOLD = """
import sys, time
from gristmill.workspace import Workspace
place = Workspace(sys.argv[1])
place.lease_seconds = 2.0
with place.locked():
    print("locked", flush=True)
    for number in range(int(sys.argv[2])):
        place.append("journal.jsonl", {"who": sys.argv[3], "number": number})
    time.sleep(float(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ceph.Gateway]:
    with ceph.s3(tmp_path_factory.mktemp("ceph")) as served:
        yield served


@pytest.fixture
def s3(gateway: ceph.Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The server by the environment, also for this process, whose mirror is `reader`."""
    environment = buckets.s3_environment(gateway.port)
    for name, value in {**environment, "GRISTMILL_CACHE": str(tmp_path / "reader")}.items():
        monkeypatch.setenv(name, value)
    return environment


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


def test_a_loop_in_a_bucket_makes_what_it_makes_on_disk(s3: dict[str, str], tmp_path: Path) -> None:
    demo(str(tmp_path / "disk"), environment(s3, tmp_path / "here"))
    demo("s3://bucket/loop", environment(s3, tmp_path / "here"))
    # Reports show when things were made.
    assert made("s3://bucket/loop", "report") == made(str(tmp_path / "disk"), "report")
    said = demo("s3://bucket/loop", environment(s3, tmp_path / "there"))
    assert "nothing had changed, nothing was done again" in said
    fetched = sum(p.stat().st_size for p in (tmp_path / "there" / "workspaces").rglob("*.safetensors"))
    assert fetched == 0, "a machine on which nothing is done fetches no weights"


def test_a_killed_loop_goes_on_where_it_was(s3: dict[str, str], tmp_path: Path) -> None:
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


def program(code: str, *arguments: object, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_parts(s3: dict[str, str], run: subprocess.Popen[str]) -> None:
    """Until an upload in parts is under way."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"])
    deadline = time.monotonic() + 120
    while not any(
        client.list_parts(Bucket="bucket", Key=found["Key"], UploadId=found["UploadId"]).get("Parts")
        for found in client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    ):
        assert run.poll() is None and time.monotonic() < deadline
    for found in client.list_multipart_uploads(Bucket="bucket")["Uploads"]:
        assert found["Key"].endswith("/large")
    client.close()


def test_a_writer_killed_in_an_upload_leaves_nothing_that_exists(s3: dict[str, str], tmp_path: Path) -> None:
    env = environment(s3, tmp_path / "writer")
    with program(COMMIT, "s3://bucket/upload", LARGE, env=env) as run:
        wait_for_parts(s3, run)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert list(Bucket("s3://bucket/upload").entries("")) == []
    assert made("s3://bucket/upload") == set()
    with program(COMMIT, "s3://bucket/upload", LARGE, env=env) as run:
        said, _ = run.communicate(timeout=120)
    place = Workspace("s3://bucket/upload")
    assert [str(ref) for ref in place.store.refs()] == said.split()
    for ref in place.store.refs():
        place.store.verify(ref)


def test_a_server_killed_in_an_upload_is_waited_for(gateway: ceph.Gateway, s3: dict[str, str], tmp_path: Path) -> None:
    with program(COMMIT, "s3://bucket/server", LARGE + 1, env=environment(s3, tmp_path / "writer")) as run:
        wait_for_parts(s3, run)
        gateway.kill()
        time.sleep(2)
        assert run.poll() is None
        gateway.start()
        said, wrong = run.communicate(timeout=180)
    assert run.returncode == 0, wrong
    place = Workspace("s3://bucket/server")
    assert [str(ref) for ref in place.store.refs()] == said.split()
    for ref in place.store.refs():
        place.store.verify(ref)


def test_one_process_at_a_time_and_a_dead_one_no_longer(s3: dict[str, str], tmp_path: Path) -> None:
    place = "s3://bucket/lock"
    with program(HOLD, place, 3, "first", 60, env=environment(s3, tmp_path / "first")) as first:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        with program(HOLD, place, 0, "second", 0, env=environment(s3, tmp_path / "second")) as second:
            _, wrong = second.communicate(timeout=60)
        assert "WorkspaceBusy" in wrong and "is in use by another run" in wrong
        first.kill()
    deadline = time.monotonic() + 60
    while True:
        with program(HOLD, place, 3, "third", 0, env=environment(s3, tmp_path / "third")) as third:
            _, wrong = third.communicate(timeout=60)
        if third.returncode == 0:
            break
        assert "WorkspaceBusy" in wrong and time.monotonic() < deadline, wrong
    who = [line["who"] for line in Workspace(place).read("journal.jsonl")]
    assert who[-3:] == ["third"] * 3 and set(who[:-3]) <= {"first"}


def test_processes_that_write_at_once_lose_no_line(s3: dict[str, str], tmp_path: Path) -> None:
    write = (
        "import sys; from gristmill.workspace import Workspace\n"
        "for n in range(25): Workspace(sys.argv[1]).append('notes.jsonl', {'who': sys.argv[2], 'n': n})"
    )
    runs = [program(write, "s3://bucket/lines", n, env=environment(s3, tmp_path / str(n))) for n in range(4)]
    for run in runs:
        with run:
            _, wrong = run.communicate(timeout=120)
        assert run.returncode == 0, wrong
    lines = Workspace("s3://bucket/lines").read("notes.jsonl")
    for who in range(4):
        assert [line["n"] for line in lines if line["who"] == str(who)] == list(range(25))
    assert len(lines) == 100
