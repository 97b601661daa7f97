"""The Ray launcher against Ray itself: a head with its dashboard on this machine, started here, asking for a token.

Skips where Ray has no dashboard (ray[default]). Whatever this starts carries its token in the environment: that is how
it is found, and ended, wherever it went.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gristmill import launch, smollm
from gristmill.errors import RecipeError, TrainingError
from gristmill.launch.ray import Ray
from gristmill.recipe import LaunchRecipe
from gristmill.smoke import smoke
from tests.launch_program import job
from tests.live import test_trainers as frameworks
from tests.test_launch import ROOT, scripts, wait_for

pytestmark = pytest.mark.live

_START = 180.0  # seconds
_MARK = "RAY_AUTH_TOKEN"


def ports(count: int) -> list[int]:
    """Free ones, below those that the kernel gives away."""
    found = []
    for port in range(20000 + 7 * (os.getpid() % 1000), 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            break
    return found


class Head:
    """A cluster of one node that can be killed and started again at the same address."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(32)
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
        self.port, self.dashboard, self.agent, self.client = ports(4)
        self.address = f"http://127.0.0.1:{self.dashboard}"

    def start(self) -> None:
        """Start, and wait until it runs. Its daemons go on by themselves: one that is slow does not end the others."""
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-cpus=1"]
        command += [f"--port={self.port}", f"--temp-dir={self.folder}", "--object-store-memory=80000000"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        command += [f"--dashboard-agent-listen-port={self.agent}", f"--ray-client-server-port={self.client}"]
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", _MARK: self.token}
        with (self.folder / "head.log").open("ab") as log:
            began = subprocess.run(
                command,
                env={**os.environ, **quiet},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=_START,
            )
        if began.returncode != 0:
            pytest.skip(f"no Ray with a dashboard here: {(self.folder / 'head.log').read_text()[-500:]}")

    def processes(self) -> list[psutil.Process]:
        """All that it has started, also what left its session, but not this process."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(_MARK) == self.token:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """Ray's own processes, at once, as by a crash; not those of jobs."""
        for process in self.processes():
            try:
                said = " ".join(process.cmdline())
                if "/ray/" in said or "ray start" in said or said.startswith("ray::"):
                    process.kill()
            except psutil.Error:
                continue

    def close(self) -> None:
        """End everything."""
        while left := self.processes():
            for process in left:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            psutil.wait_procs(left, 5)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    made = Head()
    before = os.environ.get(_MARK)
    os.environ[_MARK] = made.token
    try:
        made.start()
        yield made
    finally:
        made.close()
        os.environ.pop(_MARK) if before is None else os.environ.update({_MARK: before})


@pytest.fixture
def recipe(head: Head) -> LaunchRecipe:
    return LaunchRecipe(launcher="ray", address=head.address, poll_seconds=0.3, env={"WHO": "me"})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work of mine"
    folder.mkdir()
    return folder


def caller(head: Head, work: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.launch_program", "ray", str(work), head.address]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def jobs(recipe: LaunchRecipe, work: Path) -> list[str]:
    """States of the jobs that Ray has of this folder, oldest first."""
    every = Ray(recipe)._ask("GET", "/api/jobs/").json()
    ours = [one for one in every if str(work) in one["entrypoint"]]
    return [one["status"] for one in sorted(ours, key=lambda one: one["start_time"])]


def test_a_job_runs_its_scripts_in_order_with_its_environment(head: Head, recipe: LaunchRecipe, work: Path) -> None:
    launcher = Ray(recipe)
    launcher.check()
    phases: list[str] = []
    made = scripts(work, 'echo train $WHO; touch "$PWD/trained"', "test -f trained && echo finished")
    launch.run(launcher, made, recipe, lambda status: phases.append(status.phase))
    assert phases[-1] == "done" and set(phases) <= {"waiting", "running", "done"}
    assert (work / launch.LOG).read_text() == "train me\nfinished\n"
    # Called again it runs again; and so it does in a folder that was removed and made again, though Ray remembers.
    launch.run(launcher, made, recipe)
    shutil.rmtree(work)
    work.mkdir()
    launch.run(launcher, scripts(work, "echo anew"), recipe)
    assert (work / launch.LOG).read_text() == "anew\n" and jobs(recipe, work) == ["SUCCEEDED"] * 3


def test_a_failed_job_says_its_code_and_leaves_its_last_words(head: Head, recipe: LaunchRecipe, work: Path) -> None:
    with pytest.raises(TrainingError, match=r"ray job gristmill-test-\w+-1 is failed: it ended with code 7$"):
        launch.run(Ray(recipe), scripts(work, "echo no such model >&2; exit 7", "echo never"), recipe)
    assert (work / launch.LOG).read_text() == "no such model\n" and jobs(recipe, work) == ["FAILED"]


def test_a_cluster_that_wants_a_token_says_so(
    head: Head, recipe: LaunchRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(_MARK)
    with pytest.raises(RecipeError, match=r"wants a token; set RAY_AUTH_TOKEN"):
        Ray(recipe).check()


def test_a_killed_caller_finds_its_job_running(head: Head, recipe: LaunchRecipe, work: Path) -> None:
    scripts(work, "echo begun; while [ ! -f go ]; do sleep 0.1; done; echo trained")
    process = caller(head, work)
    wait_for(lambda: (work / launch.LOG).exists() and "begun" in (work / launch.LOG).read_text(), 60)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert jobs(recipe, work) == ["RUNNING"]
    (work / "go").touch()
    launch.run(Ray(recipe), job(work), recipe)
    assert jobs(recipe, work) == ["SUCCEEDED"] and (work / launch.LOG).read_text() == "begun\ntrained\n"


# A worker in a session of its own, as torchrun's are, and one that does not care for SIGTERM.
FAMILY = """
setsid bash -c 'echo $$ > worker; exec sleep 300' &
bash -c 'trap "" TERM; echo $$ > stubborn; while :; do sleep 0.1; done' &
wait
"""


def test_a_caller_that_is_told_to_end_stops_its_job_and_all_its_processes(
    head: Head, recipe: LaunchRecipe, work: Path
) -> None:
    scripts(work, FAMILY)
    process = caller(head, work)
    files = [work / "worker", work / "stubborn"]
    wait_for(lambda: all(file.exists() and file.read_text().strip() for file in files), 60)
    pids = [int(file.read_text()) for file in files]
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()
    assert jobs(recipe, work) == ["STOPPED"]
    wait_for(lambda: not any(map(psutil.pid_exists, pids)))


AGAIN = """
if [ -f pid ] && kill -0 $(cat pid) 2>/dev/null; then echo both at once; fi
echo $$ > pid
if [ -f checkpoint ]; then echo resumed; exit; fi
touch checkpoint; echo begun
while :; do sleep 0.1; done
"""


def test_a_head_that_dies_and_comes_back_gets_the_job_once_more(head: Head, recipe: LaunchRecipe, work: Path) -> None:
    """Ray leaves the job's processes alive, and knows of no job when it is back."""
    scripts(work, AGAIN)
    process = caller(head, work)
    wait_for(lambda: (work / "checkpoint").exists(), 60)
    head.kill()
    head.start()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and said.splitlines()[-1] == "done"
    assert (work / launch.LOG).read_text() == "begun\nresumed\n" and jobs(recipe, work) == ["SUCCEEDED"]


def test_a_framework_trains_there_to_a_model_of_ours(head: Head, tmp_path: Path) -> None:
    base = smollm.tiny(tmp_path / "base")
    chosen = frameworks.settings(
        "llamafactory",
        "train.launch.launcher=ray",
        f"train.launch.address={head.address}",
        "train.launch.poll_seconds=0.5",
        "train.options.bf16=false",
    )
    made = frameworks.made("llamafactory", "sft", tmp_path, base, chosen)
    steps: list[int] = []
    trained = frameworks.framework("llamafactory").train(made, lambda number, of, loss: steps.append(number))
    assert steps == [1, 2, 3, 4, 5, 6] and trained.losses[-1] < trained.losses[0]
    assert trained.details["launcher"] == "ray" and trained.details["submissions"] == 1
    assert not smoke(made.output, base, "sft", trained.losses, made.data).errors
