"""The Ray launcher against a stand-in for the Jobs API that runs entrypoints as Ray does: by a shell of its own.

What a healthy cluster does not do on demand: answers that are lost, a head that is not ready, or that forgot. Ray
itself is in tests/live/test_ray_jobs.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gristmill import launch
from gristmill.errors import RecipeError, TrainingError
from gristmill.launch.ray import Ray
from gristmill.recipe import LaunchRecipe
from tests.launch_program import job
from tests.test_launch import alive, scripts, wait_for


class StandIn(ThreadingHTTPServer):
    """Ray's dashboard, as far as the launcher sees it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, subprocess.Popen[bytes]] = {}
        self.refuse = 0
        """So many submissions are answered as by a head that starts."""
        self.lose = 0
        """So many are taken, and not answered."""

    @property
    def recipe(self) -> LaunchRecipe:
        return LaunchRecipe(launcher="ray", address=f"http://127.0.0.1:{self.server_address[1]}", poll_seconds=0.05)

    def forget(self) -> None:
        """As a head that was started again; it leaves no shell, and nothing else ends."""
        for process in self.jobs.values():
            process.kill()
            process.wait()
        self.jobs.clear()


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None: ...

    def answer(self, code: int, said: Any) -> None:
        body = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/api/version":
            return self.answer(200, {"ray_version": "2.60.0"})
        process = self.server.jobs.get(self.path.rpartition("/")[2])
        if process is None:
            return self.answer(404, "no such job")
        code = process.poll()
        status = {None: "RUNNING", 0: "SUCCEEDED", -signal.SIGTERM: "STOPPED"}.get(code, "FAILED")
        said = f"Job entrypoint command failed with exit code {code}, last available logs:\nmuch more"
        self.answer(200, {"status": status, "driver_exit_code": code, "message": said})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path.endswith("/stop"):
            self.server.jobs[self.path.split("/")[-2]].terminate()
            return self.answer(200, {"stopped": True})
        if self.server.refuse:
            self.server.refuse -= 1
            return self.answer(500, "No available agent to submit job, please try again later.")
        id = body["submission_id"]
        if id in self.server.jobs:
            return self.answer(500, f"ValueError: Job with submission_id {id} already exists.")
        self.server.jobs[id] = subprocess.Popen(body["entrypoint"], shell=True, start_new_session=True)
        if self.server.lose:
            self.server.lose -= 1
            self.close_connection = True
            return None
        return self.answer(200, {"submission_id": id})


@pytest.fixture
def dashboard() -> Iterator[StandIn]:
    with StandIn() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()
            made.forget()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder"
    folder.mkdir()
    return folder


def test_a_job_runs_in_its_folder_and_a_failed_one_says_its_code(dashboard: StandIn, work: Path) -> None:
    recipe = dashboard.recipe
    Ray(recipe).check()
    launch.run(Ray(recipe), scripts(work, 'echo "$PWD"', "echo finished"), recipe)
    assert (work / launch.LOG).read_text() == f"{work}\nfinished\n"
    with pytest.raises(TrainingError, match=r"ray job gristmill-test-\w+-2 is failed: it ended with code 7$"):
        launch.run(Ray(recipe), scripts(work, "exit 7", "echo never"), recipe)
    assert len(dashboard.jobs) == 2 and "never" not in (work / launch.LOG).read_text()


def test_a_head_that_is_not_ready_and_an_answer_that_is_lost(dashboard: StandIn, work: Path) -> None:
    dashboard.refuse, dashboard.lose = 1, 1
    launch.run(Ray(dashboard.recipe), scripts(work, "echo once"), dashboard.recipe)
    assert (work / launch.LOG).read_text() == "once\n" and len(dashboard.jobs) == 1


def test_a_folder_that_is_made_again_is_another_job(dashboard: StandIn, work: Path) -> None:
    launch.run(Ray(dashboard.recipe), scripts(work, "echo first"), dashboard.recipe)
    shutil.rmtree(work)
    work.mkdir()
    launch.run(Ray(dashboard.recipe), scripts(work, "echo second"), dashboard.recipe)
    assert (work / launch.LOG).read_text() == "second\n" and len(dashboard.jobs) == 2


AGAIN = """
if [ -f pid ] && kill -0 $(cat pid) 2>/dev/null; then echo both at once; fi
echo $$ > pid
if [ -f checkpoint ]; then echo resumed; exit; fi
setsid bash -c 'echo $$ > worker; exec sleep 60' &
until [ -s worker ]; do sleep 0.02; done
touch checkpoint
wait
"""


def test_a_head_that_forgot_gets_the_job_once_more_after_the_earlier_processes_ended(
    dashboard: StandIn, work: Path
) -> None:
    forgot = threading.Event()

    def look(status: launch.Status) -> None:
        if (work / "checkpoint").exists() and not forgot.is_set():
            forgot.set()
            dashboard.forget()

    assert launch.run(Ray(dashboard.recipe), scripts(work, AGAIN), dashboard.recipe, look).attempt == 2
    assert (work / launch.LOG).read_text() == "resumed\n" and len(dashboard.jobs) == 1
    assert not alive(int((work / "worker").read_text()))


def test_a_cancelled_job_leaves_nothing(dashboard: StandIn, work: Path) -> None:
    def look(status: launch.Status) -> None:
        if (work / "checkpoint").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run(Ray(dashboard.recipe), scripts(work, AGAIN), dashboard.recipe, look)
    wait_for(lambda: not alive(int((work / "worker").read_text())) and not alive(int((work / "pid").read_text())))
    assert not dashboard.forget() and not job(work).log.read_text()


def test_no_dashboard_is_refused_before_anything(work: Path) -> None:
    with pytest.raises(RecipeError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9 "):
        Ray(LaunchRecipe(launcher="ray", address="http://127.0.0.1:9")).check()
