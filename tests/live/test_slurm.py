"""The Slurm launcher against Slurm itself: slurmctld and slurmd on this machine, started here, without accounting.

Needs root and the packages slurmctld, slurmd and slurm-client (Debian: apt-get install --no-install-recommends); skips
where they are not. tests/test_launch.py tries what a lone healthy cluster does not do.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill import launch
from gristmill.errors import TrainingError
from gristmill.recipe import LaunchRecipe
from tests.launch_program import Quick, job
from tests.test_launch import caller, scripts, wait_for

pytestmark = pytest.mark.live
RECIPE = LaunchRecipe(launcher="slurm", poll_seconds=0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "srun"))):
        pytest.skip("needs root and the packages slurmctld, slurmd, slurm-client")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("ctld", "d"):
        (folder / name).mkdir()
    host, ports = socket.gethostname().partition(".")[0], []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    (folder / "slurm.conf").write_text(
        f"ClusterName=mill\nSlurmctldHost={host}(127.0.0.1)\nAuthType=auth/none\nCredType=cred/none\n"
        f"SlurmUser=root\nSlurmdUser=root\nSlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
        f"StateSaveLocation={folder}/ctld\nSlurmdSpoolDir={folder}/d\n"
        f"SlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/d.pid\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n"
        "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\nMailProg=/bin/true\n"
        "ReturnToService=2\nMinJobAge=2\nKillWait=3\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    with (folder / "log").open("wb") as log:
        daemons = [
            subprocess.Popen(command, stdout=log, stderr=log)
            for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", host])
        ]
        try:
            wait_for(lambda: b"idle" in subprocess.run(["sinfo", "-h"], capture_output=True).stdout, 60)
            yield
        finally:
            subprocess.run(["scancel", "--me"], capture_output=True)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)
            os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_a_job_runs_and_its_end_is_told_after_slurm_forgot_it(cluster: None, work: Path) -> None:
    made = scripts(work, "echo trained on node ${SLURM_NODEID:-none}", "echo finished")
    handle = launch.run(Quick(RECIPE), made, RECIPE)
    assert (work / launch.LOG).read_text() == "trained on node 0\nfinished\n"
    assert Quick(RECIPE).status(handle).phase is launch.Phase.DONE
    time.sleep(5)
    assert Quick(RECIPE).status(handle).phase is launch.Phase.DONE


def test_a_failing_job_says_its_code_and_a_refused_one_why(cluster: None, work: Path) -> None:
    with pytest.raises(TrainingError, match="is failed: its script ended with code 7"):
        launch.run(Quick(RECIPE), scripts(work, "exit 7"), RECIPE)
    recipe = LaunchRecipe(launcher="slurm", partition="nowhere", poll_seconds=0.5)
    with pytest.raises(TrainingError, match=r"sbatch refused .* Invalid partition name"):
        launch.run(Quick(recipe), job(work), recipe)


def test_a_killed_caller_finds_its_job_and_a_terminated_one_cancels_it(cluster: None, work: Path) -> None:
    scripts(work, "while [ ! -f go ]; do sleep 0.2; done; echo trained")
    for sign in (signal.SIGKILL, signal.SIGTERM):
        process = caller("slurm", work)
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        wait_for(lambda: listed() == ["RUNNING"])
        process.send_signal(sign)
        process.wait(30)
        process.stdout.close()
        if sign is signal.SIGKILL:
            time.sleep(1)
            assert listed() == ["RUNNING"]  # and the next caller finds it: there is never a second
    wait_for(lambda: listed() == [])


def listed() -> list[str]:
    queue = ["squeue", "--me", "--noheader", "--states=PD,R", "--format=%T"]
    return subprocess.run(queue, capture_output=True, text=True).stdout.split()
