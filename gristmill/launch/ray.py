"""Ray launcher: one Ray job a submission, by the Jobs REST API of a cluster's dashboard.

The submission id is made of the job's name, a mark of its folder and the attempt, and Ray refuses an id that it has: a
submission whose answer was lost is found again, and never made twice. (Ray remembers ended jobs: without the mark, a
folder that was removed and made again would find the end of its earlier self.) `ray` itself is not needed here. Where
the cluster asks for a token (RAY_AUTH_MODE=token), RAY_AUTH_TOKEN is sent.

A node whose Ray dies kills the shell that it started for a job and nothing below that (Ray 2.60), and a head that comes
back knows of no job. So the same keeper runs the job there as on this machine (`watch.py`): it ends all of the job when
that shell is gone, and the next submission waits for that. A node needs `python3`, as Ray itself does.

Formats: Ray Jobs REST API; tried with Ray 2.60 (tests/live/test_ray_jobs.py).
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import time
from typing import Any

import httpx

from gristmill.errors import RecipeError, TrainingError
from gristmill.launch import Handle, LaunchJob, Phase, Status, Unreachable, watch
from gristmill.recipe import LaunchRecipe

_PHASE = {
    "PENDING": Phase.WAITING,
    "RUNNING": Phase.RUNNING,
    "SUCCEEDED": Phase.DONE,
    "STOPPED": Phase.CANCELLED,
    "FAILED": Phase.FAILED,
}
# Of a failure: the cluster's doing, not the job's (JobErrorType).
_CLUSTERS = {"JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "JOB_SUPERVISOR_ACTOR_START_FAILURE"}
_SECONDS = 30.0  # for one answer
_PATIENCE = 90.0  # for a head that starts: its dashboard answers before it can take a job


class Ray:
    """A Ray cluster, by its dashboard."""

    name = "ray"
    poll = 15.0

    def __init__(self, recipe: LaunchRecipe) -> None:
        self.recipe = recipe

    def check(self) -> None:
        try:
            answer = self._ask("GET", "/api/version")
        except httpx.HTTPError as error:
            raise RecipeError(
                f"train.launch.address: no Ray dashboard answers at {self.recipe.address} ({error or type(error)}); "
                "`ray start --head --dashboard-host 127.0.0.1` starts one here"
            ) from error
        if answer.status_code in (401, 403):
            raise RecipeError(f"train.launch.address: {self.recipe.address} wants a token; set RAY_AUTH_TOKEN")
        if answer.status_code != 200:
            raise RecipeError(
                f"train.launch.address: {self.recipe.address} answers {answer.status_code}, which is no Ray dashboard"
            )

    def find(self, job: LaunchJob, attempt: int, id: str | None) -> Handle | None:
        id = id or _id(job, attempt)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return Handle(job, id, attempt) if self._info(id) is not None else None
            except Unreachable as error:
                if time.monotonic() > until:
                    raise TrainingError(
                        f"the Ray dashboard does not answer ({error}), and a job may run there; run again later"
                    ) from None
                time.sleep(1)

    def submit(self, job: LaunchJob, attempt: int) -> Handle:
        id = _id(job, attempt)
        body: dict[str, Any] = {
            "entrypoint": _entrypoint(job),
            "submission_id": id,
            # How long Ray lets a stopped job end before it kills it: longer than the keeper takes.
            "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(round(2 * watch.GRACE)), **self.recipe.env}},
            "metadata": {"job": job.name},
        }
        if self.recipe.gpus:
            body["entrypoint_num_gpus"] = self.recipe.gpus
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                answer = self._ask("POST", "/api/jobs/", body)
                if answer.status_code == 200 or "already exists" in answer.text:
                    return Handle(job, id, attempt)
                said = (answer.text.strip().splitlines() or [str(answer.status_code)])[-1]
                if answer.status_code < 500:
                    break
            except httpx.HTTPError as error:  # it may have arrived: the same id is refused then, as above
                said = str(error) or type(error).__name__
            if time.monotonic() > until:
                break
            time.sleep(1)
        raise TrainingError(f"Ray at {self.recipe.address} did not take the job: {said}")

    def status(self, handle: Handle) -> Status:
        info = self._info(handle.id)
        if info is None:
            return Status(Phase.INTERRUPTED, "the cluster no longer knows it, as after a restart of its head")
        phase = _PHASE.get(info["status"], Phase.RUNNING)
        code = info.get("driver_exit_code")
        if phase is Phase.FAILED and code:
            # Ray's own message goes on with the job's last output, which is in our log.
            return Status(phase, f"it ended with code {code}" if code > 0 else f"it was ended by signal {-code}")
        if phase is Phase.FAILED and info.get("error_type") in _CLUSTERS:
            phase = Phase.INTERRUPTED
        said = (info.get("message") or "").strip().splitlines()
        return Status(phase, said[0] if said else "")

    def cancel(self, handle: Handle) -> None:
        try:
            self._ask("POST", f"/api/jobs/{handle.id}/stop")
            until = time.monotonic() + 15
            while time.monotonic() < until:
                if (info := self._info(handle.id)) is None or info["status"] not in ("PENDING", "RUNNING"):
                    return
                time.sleep(0.5)
        except (httpx.HTTPError, Unreachable) as error:
            raise TrainingError(
                f"the Ray dashboard does not answer ({error}): job {handle.id} may still run; ray job stop {handle.id}"
            ) from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """One connection a question: they are seldom, and a head may have been another since."""
        token = os.environ.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = self.recipe.address.rstrip("/") + path
        return httpx.request(method, url, json=body, headers=headers, timeout=_SECONDS)

    def _info(self, id: str) -> dict[str, Any] | None:
        try:
            answer = self._ask("GET", f"/api/jobs/{id}")
        except httpx.HTTPError as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise Unreachable(f"HTTP {answer.status_code}")
        found: dict[str, Any] = answer.json()
        return found


def _id(job: LaunchJob, attempt: int) -> str:
    """The same for the same attempt in the same folder."""
    mark = job.work / "ray.mark"
    if not mark.is_file():
        temporary = mark.with_suffix(".tmp")
        temporary.write_text(secrets.token_hex(4))
        temporary.replace(mark)
    return f"{job.name}-{mark.read_text()}-{attempt}"


def _entrypoint(job: LaunchJob) -> str:
    """A line for the shell that Ray starts: the scripts under the keeper, whose words go to our log and to Ray's."""
    keeper = job.work / "watch.py"
    shutil.copyfile(watch.__file__, keeper)
    steps = " && ".join(f"bash {shlex.quote(str(script))}" for script in (job.train, job.finish) if script)
    # `tee` hides the exit code, unless pipefail shows it.
    script = f"set -o pipefail; ({steps}) 2>&1 | tee -a {shlex.quote(str(job.log))}"
    kept = shlex.join([str(job.work / "launch.lock"), "bash", "-c", script])
    # With a command after it, the shell stays, and the keeper sees it go.
    return f"cd {shlex.quote(str(job.work))} && python3 -I {shlex.quote(str(keeper))} $$ {kept}; exit $?"
