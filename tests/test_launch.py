"""Launchers: jobs run once, are found again, and end with a caller that ends; what a cluster does to them is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gristmill import launch
from gristmill.errors import RecipeError, TrainingError
from gristmill.launch.local import Local
from gristmill.launch.slurm import Slurm
from gristmill.recipe import LaunchRecipe
from tests import slurm_standin as standin
from tests.launch_program import Quick, job

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "launch"
WRITE = os.environ.get("GRISTMILL_GOLDEN") == "write"
RECIPE = LaunchRecipe(poll_seconds=0.05)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of a stand-in for Slurm, whose commands are on PATH."""
    standin.install(tmp_path / "bin")
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv(standin.STATE, str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def scripts(work: Path, train: str, finish: str | None = None) -> launch.LaunchJob:
    (work / "train.sh").write_text(train + "\n")
    if finish is not None:
        (work / "finish.sh").write_text(finish + "\n")
    return job(work)


def wait_for(condition: object, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def caller(name: str, work: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.launch_program", name, str(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


# This machine


def test_a_local_job_runs_its_scripts_in_order_with_its_environment(work: Path) -> None:
    recipe = LaunchRecipe(poll_seconds=0.05, env={"WHO": "me"})
    made = scripts(work, 'echo train $WHO; touch "$PWD/trained"', "test -f trained && echo finished")
    phases: list[str] = []
    handle = launch.run(Local(recipe), made, recipe, lambda status: phases.append(status.phase))
    assert handle.attempt == 1 and phases[-1] == "done"
    assert (work / launch.LOG).read_text() == "train me\nfinished\n"


def test_a_local_job_that_fails_is_an_error_and_the_rest_does_not_run(work: Path) -> None:
    made = scripts(work, "exit 3", "echo never")
    with pytest.raises(TrainingError, match=r"local job .* is failed: it ended with code 3"):
        launch.run(Local(RECIPE), made, RECIPE)
    assert "never" not in (work / launch.LOG).read_text()


# A worker that left for a session of its own, as torchrun's do, and one that does not care for SIGTERM.
FAMILY = """
setsid bash -c 'echo $$ > worker; exec sleep 300' &
bash -c 'trap "" TERM; echo $$ > stubborn; while :; do sleep 0.1; done' &
echo $$ > shell
wait
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_local_job_whose_caller_ends(work: Path, sign: signal.Signals) -> None:
    stubborn = sign is signal.SIGKILL  # one is enough: it costs the keeper's whole patience
    scripts(work, FAMILY if stubborn else "\n".join(line for line in FAMILY.splitlines() if "trap" not in line))
    process = caller("local", work)
    files = [work / name for name in ("worker", "shell", *(["stubborn"] if stubborn else []))]
    wait_for(lambda: all(file.exists() and file.read_text().strip() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    process.send_signal(sign)
    process.wait(30)
    wait_for(lambda: not any(map(alive, pids)))
    assert process.stdout is not None
    process.stdout.close()


def test_a_restarted_local_job_waits_for_the_end_of_the_earlier_one(work: Path) -> None:
    """The keeper of a killed caller needs a moment; two trainings at once would write the same checkpoints."""
    scripts(
        work, 'if [ -f first ]; then echo again; else trap "sleep 1; echo gone" TERM; touch first; sleep 300 & wait; fi'
    )
    process = caller("local", work)
    wait_for(lambda: (work / "first").exists())
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    launch.run(Local(RECIPE), job(work), RECIPE)
    assert (work / launch.LOG).read_text().split()[-2:] == ["gone", "again"]


# Slurm


def names() -> list[str]:
    return [job["name"] for job in standin.jobs()]


def test_a_slurm_job_waits_runs_and_is_submitted_once(cluster: Path, work: Path) -> None:
    (cluster / "start").write_text("0.3")
    seen: list[launch.Status] = []
    handle = launch.run(Quick(RECIPE), scripts(work, "sleep 0.3; echo trained", "echo finished"), RECIPE, seen.append)
    assert (handle.id, handle.attempt, names()) == ("1", 1, ["gristmill-test-1"])
    assert launch.Status(launch.Phase.WAITING, "it waits in the queue (Priority)") in seen
    assert launch.Phase.RUNNING in {status.phase for status in seen} and seen[-1].phase is launch.Phase.DONE
    assert (work / launch.LOG).read_text() == "trained\nfinished\n"


def test_a_slurm_job_that_fails_says_its_code(cluster: Path, work: Path) -> None:
    with pytest.raises(TrainingError, match=r"slurm job 1 is failed: its script ended with code 7"):
        launch.run(Quick(RECIPE), scripts(work, "exit 7", "echo never"), RECIPE)
    assert names() == ["gristmill-test-1"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("OUT_OF_MEMORY", "is failed: it used more memory than the job was given; ask for more with"),
        ("CANCELLED", "is cancelled: somebody cancelled it"),
        ("DEADLINE", "is failed: it would have ended after its deadline"),
    ],
)
def test_an_end_that_would_come_again_is_not_tried_again(cluster: Path, work: Path, state: str, words: str) -> None:
    (cluster / "fate-gristmill-test-1").write_text(state)
    with pytest.raises(TrainingError, match=f"slurm job 1 {words}"):
        launch.run(Quick(RECIPE), scripts(work, "sleep 15"), RECIPE)
    assert names() == ["gristmill-test-1"]


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "BOOT_FAIL"])
def test_what_the_cluster_ended_goes_on(cluster: Path, work: Path, state: str) -> None:
    (cluster / "fate-gristmill-test-1").write_text(state)
    made = scripts(work, "if [ -f checkpoint ]; then echo resumed; else touch checkpoint; sleep 15; fi")
    assert launch.run(Quick(RECIPE), made, RECIPE).attempt == 2
    assert (work / launch.LOG).read_text() == "resumed\n" and names() == ["gristmill-test-1", "gristmill-test-2"]


def test_a_job_goes_on_so_often_and_no_more(cluster: Path, work: Path) -> None:
    for attempt in range(1, 9):
        (cluster / f"fate-gristmill-test-{attempt}").write_text("TIMEOUT")
    recipe = LaunchRecipe(poll_seconds=0.05, resubmit=1)
    with pytest.raises(TrainingError, match="job 2 is interrupted, after 2 submissions: its time limit was reached"):
        launch.run(Quick(recipe), scripts(work, "sleep 15"), recipe)
    assert len(names()) == 2
    # Called again it starts again, under a name that no earlier job has.
    with pytest.raises(TrainingError, match="job 4"):
        launch.run(Quick(recipe), job(work), recipe)
    assert names() == [f"gristmill-test-{attempt}" for attempt in (1, 2, 3, 4)]


def test_a_submission_whose_answer_was_lost_is_found(cluster: Path, work: Path) -> None:
    (cluster / "lose-answer").touch()
    assert launch.run(Quick(RECIPE), scripts(work, "echo trained"), RECIPE).id == "1"
    assert names() == ["gristmill-test-1"]


def test_a_refused_submission_is_an_error_that_says_why(cluster: Path, work: Path) -> None:
    (cluster / "deny").touch()
    with pytest.raises(TrainingError, match=r"sbatch refused .*Invalid account"):
        launch.run(Quick(RECIPE), scripts(work, "echo trained"), RECIPE)
    (cluster / "deny").unlink()
    launch.run(Quick(RECIPE), job(work), RECIPE)
    assert len(names()) == 1


def test_a_killed_caller_finds_its_job_running(cluster: Path, work: Path) -> None:
    scripts(work, "while [ ! -f go ]; do sleep 0.05; done; echo trained")
    process = caller("slurm", work)
    wait_for(lambda: [job["state"] for job in standin.jobs()] == ["RUNNING"])
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert [job["state"] for job in standin.jobs()] == ["RUNNING"]
    (work / "go").touch()
    assert launch.run(Quick(RECIPE), job(work), RECIPE).id == "1"
    assert names() == ["gristmill-test-1"] and (work / launch.LOG).read_text() == "trained\n"


def test_a_caller_killed_before_sbatch_answered_finds_its_job(cluster: Path, work: Path) -> None:
    (cluster / "hang-answer").touch()
    scripts(work, "echo trained")
    process = caller("slurm", work)
    wait_for(lambda: [job["state"] for job in standin.jobs()] == ["COMPLETED"])
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    (cluster / "forget").write_text("0")  # and squeue has forgotten it meanwhile: sacct tells
    assert launch.run(Quick(RECIPE), job(work), RECIPE).id == "1"
    assert names() == ["gristmill-test-1"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_caller_that_is_told_to_end_cancels_its_job(cluster: Path, work: Path, sign: signal.Signals) -> None:
    scripts(work, "sleep 15")
    process = caller("slurm", work)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.send_signal(sign)
    process.wait(30)
    process.stdout.close()
    assert [job["state"] for job in standin.jobs()] == ["CANCELLED"]


def test_a_cluster_without_accounting_that_forgets_its_jobs_still_tells_their_end(cluster: Path, work: Path) -> None:
    (cluster / "no-accounting").touch()
    (cluster / "forget").write_text("0")
    assert launch.run(Quick(RECIPE), scripts(work, "sleep 0.2"), RECIPE).attempt == 1
    (work / "train.sh").write_text("exit 9\n")
    with pytest.raises(TrainingError, match="ended with code 9"):
        launch.run(Quick(RECIPE), job(work), RECIPE)


def test_a_job_that_vanishes_without_a_trace_goes_on(cluster: Path, work: Path) -> None:
    (cluster / "no-accounting").touch()
    (cluster / "forget").write_text("0")
    (cluster / "fate-gristmill-test-1").write_text("NODE_FAIL")
    made = scripts(work, "if [ -f checkpoint ]; then echo resumed; else touch checkpoint; sleep 15; fi")
    assert launch.run(Quick(RECIPE), made, RECIPE).attempt == 2


def test_a_scheduler_that_is_busy_for_a_while_and_accounting_that_lags_do_no_harm(cluster: Path, work: Path) -> None:
    (cluster / "busy").write_text("4")
    (cluster / "lag").write_text("0.5")
    assert launch.run(Quick(RECIPE), scripts(work, "sleep 0.5"), RECIPE).id == "1"
    assert names() == ["gristmill-test-1"]


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_the_batch_script_is_as_it_was_agreed(many: bool) -> None:
    recipe = LaunchRecipe(launcher="slurm")
    if many:
        recipe = LaunchRecipe(
            launcher="slurm",
            nodes=2,
            gpus=8,
            partition="gpu",
            account="lab",
            time="04:00:00",
            container="registry/image:1",
            env={"NCCL_DEBUG": "WARN", "TITLE": "a b"},
            sbatch=("--qos=high", "--mem=0"),
        )
    folder = Path("/scratch/work")
    made = launch.LaunchJob(
        name="gristmill-0123456789abcdef",
        work=folder,
        train=folder / "train.sh",
        finish=folder / "finish.sh",
        paths=(Path("/models/base"), Path("/data/set one")),
    )
    text = Slurm(recipe).script(made, 3)
    golden = GOLDEN / f"job-{'many' if many else 'one'}.sbatch.golden"
    if WRITE:
        golden.write_text(text)
    assert text == golden.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_slurm_needs_its_commands_and_a_time_limit_that_is_one(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slurm(LaunchRecipe(time="1-00:00:00")).check()
    with pytest.raises(RecipeError, match="'4h' is no time limit"):
        Slurm(LaunchRecipe(time="4h")).check()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RecipeError, match="slurm needs the command sbatch"):
        Slurm(RECIPE).check()
