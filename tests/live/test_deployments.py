"""Deployments for real: Prefect's server on Postgres with a password, two process workers, and what happens to them.

Long training is a trainer that is stopped (SIGSTOP) while the test does something, so that nothing depends on how fast
the machine is. The order counts: one server lives through all of it.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from gristmill.remote.bucket import Bucket
from gristmill.workspace import Workspace
from tests.buckets import s3_environment

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
LEASE = 60  # seconds, of a deployment's slot; Prefect's own is 300
DEAD = 90  # seconds without a heartbeat; they come every 30
PASSWORD = "gristmill:planted-password"
RECIPE = {
    "name": "tiny",
    "turns": 1,
    "policy": {"model": "tiny-random", "device": "cpu"},
    "environment": {"tasks": 6, "heldout": 4},
    "collect": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
    "curate": {"min_reward": None, "keep_truncated": True},
    "checks": {"min_examples": 1, "max_truncated": 1.0},
    "train": {"epochs": 2, "batch_size": 4, "lora_rank": 2, "save_steps": 1, "deployment": "train-step/gpu"},
    "evaluate": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
}


def postgres_programs() -> Path | None:
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], T | None], seconds: float, why: str) -> T:
    """What `what` gives, once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    pytest.fail(f"after {seconds:.0f} s still no {why}")


def processes(text: str) -> list[int]:
    """Those that name `text` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if text.encode() in words and state != "Z" and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def descendants(pid: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


class Stack:
    """Postgres, a server, two workers; they may use a bucket."""

    def __init__(self, folder: Path, bucket: dict[str, str]) -> None:
        self.folder = folder
        self.bucket = bucket
        self.workspace = folder / "workspace"
        self.port, self.database = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        user, _, password = PASSWORD.partition(":")
        self.http = httpx.Client(base_url=self.url, auth=(user, password), timeout=30)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "GRISTMILL_"))},
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_WORKER_PREFETCH_SECONDS": "2",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            **bucket,
        }

    def start(self, name: str, command: list[str], **changes: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            command,
            env={**self.environment, **changes},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()

    def start_postgres(self) -> None:
        programs = postgres_programs()
        assert programs is not None
        data, become = self.folder / "postgres", []
        data.mkdir()
        if os.getuid() == 0:  # Postgres refuses to run as root
            os.chmod(self.folder, 0o755)
            os.chown(data, pwd.getpwnam("postgres").pw_uid, -1)
            become = ["runuser", "-u", "postgres", "--"]
        quiet = {"check": True, "cwd": data, "stdout": subprocess.DEVNULL}
        made = [str(programs / "initdb"), "-D", str(data / "data"), "-A", "trust", "-U", "prefect", "--no-sync"]
        subprocess.run([*become, *made], **quiet)  # type: ignore[call-overload]
        here = ["-p", str(self.database), "-k", str(data), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        self.start("postgres", [*become, str(programs / "postgres"), "-D", str(data / "data"), *here])
        ask = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(self.database), "-U", "prefect", "prefect"]
        until(lambda: subprocess.run(ask, stderr=subprocess.DEVNULL).returncode == 0, 30, "database")

    def start_server(self) -> None:
        self.start(
            "server",
            [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(self.port)],
            PREFECT_SERVER_API_AUTH_STRING=PASSWORD,
            PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://prefect@127.0.0.1:{self.database}/prefect",
            PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=LEASES,
            PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION=str(LEASE),
            PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS="3",
            PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
        )
        until(self.answers, 300, "server")

    def answers(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def start_workers(self) -> None:
        for pool in ("gristmill", "gristmill-gpu"):
            self.start(pool, [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"])

    def stop(self, name: str, sign: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        everybody = descendants(process.pid)
        process.send_signal(sign)
        if sign == signal.SIGKILL:  # the machine is gone, and not one process
            for pid in everybody:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        process.wait(60)

    def gristmill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gristmill", *arguments]
        return subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/deployments/name/{name}").raise_for_status().json()
        return found

    def begin(self, workspace: Path | None = None, **overrides: Any) -> str:
        """Start a run of the loop; its id."""
        nightly = self.deployment("improve/nightly")
        parameters = {**nightly["parameters"], "overrides": overrides}
        if workspace is not None:
            parameters["workspace"] = str(workspace)
        answer = self.http.post(f"/deployments/{nightly['id']}/create_flow_run", json={"parameters": parameters})
        return str(answer.raise_for_status().json()["id"])

    def runs(self, flow: str) -> list[dict[str, Any]]:
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.http.post("/flow_runs/filter", json=asked).raise_for_status().json()
        return found

    def state(self, run: str) -> str:
        return str(self.http.get(f"/flow_runs/{run}").raise_for_status().json()["state"]["name"])

    def ends(self, run: str, state: str, seconds: float = 400) -> None:
        final = {"Completed", "Failed", "Crashed", "Cancelled"}
        found = until(lambda: now if (now := self.state(run)) in final else None, seconds, f"end of run {run}")
        assert found == state, self.logs()

    def trainer(self, seconds: float = 400) -> list[int]:
        """The processes of a training in this workspace, stopped."""
        work = str(self.workspace / "work" / "train-")
        found = until(lambda: processes(work), seconds, f"training\n{self.logs()}")
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        return processes(work)

    def go_on(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def logs(self) -> str:
        return "\n".join(
            f"--- {name}\n" + "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-40:])
            for name in ("gristmill", "gristmill-gpu", "server")
            if (self.folder / f"{name}.log").exists()
        )

    def close(self) -> None:
        self.http.close()
        for pid in processes(str(self.folder)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for name in ("gristmill", "gristmill-gpu", "server"):
            if name in self.running:
                self.stop(name, signal.SIGKILL)
        if "postgres" in self.running:
            self.stop("postgres", signal.SIGINT)


LEASES = "prefect.server.concurrency.lease_storage.filesystem"


@pytest.fixture(scope="module")
def stack(s3: int) -> Iterator[Stack]:
    if postgres_programs() is None:
        pytest.skip("no Postgres here (Debian: postgresql)")
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("Postgres does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(prefix="gristmill-stack-") as folder:  # pytest's own folders are closed to others
        stack = Stack(Path(folder), s3_environment(s3))
        try:
            stack.start_postgres()
            stack.start_server()
            (stack.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
            text = (ROOT / "deployments" / "prefect.yaml").read_text()
            assert text.count('HEARTBEAT_FREQUENCY: "60"') == 1
            (stack.folder / "deploy.yaml").write_text(text.replace('FREQUENCY: "60"', 'FREQUENCY: "30"'))
            yield stack
        finally:
            stack.close()


def deploy(stack: Stack, *options: str) -> dict[str, Any]:
    arguments = ["recipe.yaml", "-w", str(stack.workspace), "--file", "deploy.yaml", "--dead-after", str(DEAD)]
    done = stack.gristmill("deploy", *arguments, "--json", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_it_is_there_once_however_often_it_is_deployed(stack: Stack) -> None:
    first = deploy(stack, "--cron", "none")
    assert first["deployments"] == ["improve/nightly", "prepare/on-demand", "train-step/gpu"]
    assert first["pools"] == {"gristmill": True, "gristmill-gpu": True}
    second = deploy(stack, "--cron", "none")
    assert second["pools"] == {"gristmill": False, "gristmill-gpu": False}
    assert len(stack.http.post("/deployments/filter", json={}).json()) == 3
    automations = stack.http.post("/automations/filter", json={}).json()
    assert len(automations) == 2  # what finds dead runs, and what starts `prepare` on arrivals
    assert DEAD in [one["trigger"]["within"] for one in automations]
    nightly = stack.deployment("improve/nightly")
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert stack.deployment("train-step/gpu")["global_concurrency_limit"] is None
    (schedule,) = nightly["schedules"]
    assert not schedule["active"]
    assert httpx.get(f"{stack.url}/flows/count").status_code in (401, 405)
    assert httpx.post(f"{stack.url}/flows/filter", json={}).status_code == 401


def test_two_overlapping_schedules_queue_and_the_training_goes_through_its_pool(stack: Stack) -> None:
    stack.start_workers()
    deploy(stack, "--cron", "* * * * *")
    # The first run is held in its training until the second is due.
    held = stack.trainer()
    first = next(run for run in stack.runs("improve") if run["state"]["name"] == "Running")
    queued = until(
        lambda: [run for run in stack.runs("improve") if run["state"]["name"] == "AwaitingConcurrencySlot"],
        300,
        "run that queues",
    )[0]
    assert [run["id"] for run in stack.runs("improve") if run["state"]["name"] == "Running"] == [first["id"]]
    deploy(stack, "--cron", "none")
    for run in stack.runs("improve"):  # on a slow machine more were due meanwhile
        if run["id"] not in (first["id"], queued["id"]):
            stack.http.delete(f"/flow_runs/{run['id']}").raise_for_status()
    stack.go_on(held)
    stack.ends(first["id"], "Completed")
    assert first["auto_scheduled"]
    (child,) = stack.runs("train-step")
    assert child["state"]["name"] == "Completed"
    assert child["work_pool_name"] == "gristmill-gpu"
    if stack.state(queued["id"]) != "Completed":
        stack.ends(queued["id"], "Completed")
    assert len(stack.runs("train-step")) == 1  # the second found everything in the cache
    assert len([ref for ref in Workspace(stack.workspace).store.refs() if ref.kind == "checkpoint"]) == 2


def test_a_finished_turn_and_arriving_rollouts_are_events(stack: Stack) -> None:
    wanted = {"filter": {"event": {"name": ["gristmill.turn.finished"]}}, "limit": 10}
    (event,) = stack.http.post("/events/filter", json=wanted).raise_for_status().json()["events"]
    assert event["payload"]["recipe"] == "tiny"
    assert event["payload"]["verdict"] in ("promoted", "rejected", "inconclusive")
    # The rollouts that the loop made, as if somebody else had collected them.
    store = Workspace(stack.workspace).store
    made = next(store.path(ref) / "rollouts.jsonl" for ref in store.refs() if ref.kind == "rollouts")
    (stack.folder / "incoming").mkdir()
    shutil.copyfile(made, stack.folder / "incoming" / "monday.jsonl")
    told = [stack.gristmill("watch", "incoming", "-w", "watched", "--once", "--settle", "1") for _ in range(2)]
    assert [one.returncode for one in told] == [0, 0], told[0].stderr
    assert "monday.jsonl" in told[0].stdout and told[1].stdout == ""
    (run,) = until(lambda: stack.runs("prepare"), 60, "run of prepare")
    assert run["parameters"]["files"] == [str(stack.folder / "incoming" / "monday.jsonl")]
    stack.ends(run["id"], "Completed")


def test_rollouts_that_arrive_in_a_bucket_start_a_run(stack: Stack) -> None:
    """The worker fetches them by itself: what it is told is a URL."""
    store = Workspace(stack.workspace).store
    made = next(store.path(ref) / "rollouts.jsonl" for ref in store.refs() if ref.kind == "rollouts")
    url = "s3://bucket/incoming/date=2026-01-01"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.bucket.items():
            patch.setenv(name, value)
        Bucket(url).write("tuesday.jsonl", made.read_bytes() + made.read_bytes().splitlines(keepends=True)[0])
    told = [stack.gristmill("watch", "s3://bucket/incoming", "-w", "watched", "--once", "--settle", "1") for _ in "12"]
    assert [one.returncode for one in told] == [0, 0], told[0].stderr
    assert f"{url}/tuesday.jsonl" in told[0].stdout and told[1].stdout == ""
    wanted = [f"{url}/tuesday.jsonl"]
    (run,) = until(
        lambda: [one["id"] for one in stack.runs("prepare") if one["parameters"]["files"] == wanted],
        60,
        "run of prepare",
    )
    stack.ends(run, "Completed")


def test_a_restart_of_the_server_ends_no_run(stack: Stack) -> None:
    run = stack.begin(seed=1)
    held = stack.trainer()
    stack.stop("server")
    stack.start_server()
    time.sleep(1.5 * LEASE)  # in which the slot's lease must be renewed
    assert stack.state(run) == "Running", stack.logs()
    stack.go_on(held)
    stack.ends(run, "Completed")


def test_cancelling_ends_the_training(stack: Stack) -> None:
    run = stack.begin(seed=2, **{"train.epochs": 100000, "train.save_steps": 1000})
    stack.go_on(stack.trainer())
    child = stack.runs("train-step")[-1]["id"]
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    stack.http.post(f"/flow_runs/{run}/set_state", json=state).raise_for_status()
    stack.ends(run, "Cancelled", 200)
    stack.ends(child, "Cancelled", 200)
    until(lambda: not processes(str(stack.workspace / "work")), 30, "end of the training's processes")


def test_a_dead_machine_is_found_and_the_next_run_goes_on(stack: Stack) -> None:
    run = stack.begin(seed=3)
    stack.trainer()
    child = stack.runs("train-step")[-1]["id"]
    for pool in ("gristmill", "gristmill-gpu"):
        stack.stop(pool, signal.SIGKILL)
    assert stack.state(run) == stack.state(child) == "Running"
    stack.ends(run, "Crashed", DEAD + 150)
    stack.ends(child, "Crashed", DEAD + 150)
    done = len(Workspace(stack.workspace).read("journal.jsonl"))
    stack.start_workers()
    again = stack.begin(seed=3)
    stack.ends(again, "Completed")
    lines = Workspace(stack.workspace).read("journal.jsonl")[done:]
    stages = {(line["turn"], line["stage"]): line["cached"] for line in lines if "stage" in line}
    assert stages[1, "collect"] and stages[1, "format"]
    assert not stages[1, "train"]
    assert stack.runs("train-step")[-1]["id"] != child


def test_a_restored_workspace_is_whole_and_knows_what_was_done(stack: Stack) -> None:
    trained = len(stack.runs("train-step"))
    restored = stack.folder / "another" / "place"
    for source, target in ((stack.workspace, stack.folder / "backup"), (stack.folder / "backup", restored)):
        done = stack.gristmill("workspace", "copy", str(source), str(target), "--verify")
        assert done.returncode == 0, done.stderr
    assert list(Workspace(restored).store.refs()) == list(Workspace(stack.workspace).store.refs())
    stack.ends(stack.begin(restored, seed=3), "Completed")
    assert len(stack.runs("train-step")) == trained
