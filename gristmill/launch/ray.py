"""Ray launcher: one Ray job a submission, by the Jobs REST API of a cluster's dashboard.

The submission id is the job's own name and attempt, and Ray refuses an id that it has: a submission whose answer was
lost is found again, and never made twice. `ray` itself is not needed here. Where the cluster asks for a token
(RAY_AUTH_MODE=token), RAY_AUTH_TOKEN is sent.

Formats: Ray Jobs REST API; tried with Ray 2.60.
"""

from __future__ import annotations

import os
import shlex
import time
from typing import Any

import httpx

from gristmill.errors import RecipeError, TrainingError
from gristmill.launch import Handle, LaunchJob, Phase, Status, Unreachable
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
_SECONDS = 30.0
_TRIES = 3


class Ray:
    """A Ray cluster, by its dashboard."""

    name = "ray"
    poll = 15.0

    def __init__(self, recipe: LaunchRecipe) -> None:
        self.recipe = recipe
        token = os.environ.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=recipe.address, timeout=_SECONDS, headers=headers)

    def check(self) -> None:
        try:
            answer = self._http.get("/api/version")
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
        id = f"{job.name}-{attempt}"
        for left in reversed(range(_TRIES)):
            try:
                return Handle(job, id, attempt) if self._info(id) is not None else None
            except Unreachable as error:
                if not left:
                    raise TrainingError(
                        f"the Ray dashboard does not answer ({error}), and a job may run there; run again later"
                    ) from None
                time.sleep(1)
        raise AssertionError("unreachable")

    def submit(self, job: LaunchJob, attempt: int) -> Handle:
        id = f"{job.name}-{attempt}"
        steps = " && ".join(f"bash {shlex.quote(str(s))}" for s in (job.train, job.finish) if s)
        # Into our log and Ray's: `tee` hides the exit code, unless pipefail shows it.
        work, log = shlex.quote(str(job.work)), shlex.quote(str(job.log))
        script = f"set -o pipefail; cd {work}; ({steps}) 2>&1 | tee -a {log}"
        body: dict[str, Any] = {
            "entrypoint": f"bash -c {shlex.quote(script)}",
            "submission_id": id,
            "runtime_env": {"env_vars": dict(self.recipe.env)},
            "metadata": {"job": job.name},
        }
        if self.recipe.gpus:
            body["entrypoint_num_gpus"] = self.recipe.gpus
        said = ""
        for left in reversed(range(_TRIES)):
            try:
                answer = self._http.post("/api/jobs/", json=body)
                if answer.status_code == 200 or "already exists" in answer.text:
                    return Handle(job, id, attempt)
                said = (answer.text.strip().splitlines() or [str(answer.status_code)])[-1]
                if answer.status_code < 500:
                    break
            except httpx.HTTPError as error:  # it may have arrived: the same id is refused then, as above
                said = str(error) or type(error).__name__
            if left:
                time.sleep(1)
        raise TrainingError(f"Ray at {self.recipe.address} did not take the job: {said}")

    def status(self, handle: Handle) -> Status:
        info = self._info(handle.id)
        if info is None:
            return Status(Phase.INTERRUPTED, "the cluster no longer knows it, as after a restart of its head")
        phase = _PHASE.get(info["status"], Phase.RUNNING)
        if phase is Phase.FAILED and info.get("error_type") in _CLUSTERS:
            phase = Phase.INTERRUPTED
        said = (info.get("message") or "").strip().splitlines()
        code = info.get("driver_exit_code")
        return Status(phase, said[0] if said else f"it ended with code {code}" if code is not None else "")

    def cancel(self, handle: Handle) -> None:
        try:
            self._http.post(f"/api/jobs/{handle.id}/stop")
            until = time.monotonic() + 15
            while time.monotonic() < until:
                if (info := self._info(handle.id)) is None or info["status"] not in ("PENDING", "RUNNING"):
                    return
                time.sleep(0.5)
        except (httpx.HTTPError, Unreachable) as error:
            raise TrainingError(
                f"the Ray dashboard does not answer ({error}): job {handle.id} may still run; ray job stop {handle.id}"
            ) from error

    def _info(self, id: str) -> dict[str, Any] | None:
        try:
            answer = self._http.get(f"/api/jobs/{id}")
        except httpx.HTTPError as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise Unreachable(f"HTTP {answer.status_code}")
        found: dict[str, Any] = answer.json()
        return found
