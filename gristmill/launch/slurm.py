"""Slurm launcher: one batch job a submission, by sbatch, squeue, sacct and scancel.

Guarantees:
- Never a second job: a submission has a name of its own, and where nobody wrote down what sbatch answered (the caller
  was killed, the answer timed out), the job is looked for by that name before another is submitted.
- The job's exit code is also written into its folder, for clusters without accounting, where a job that has ended is
  soon forgotten.
- Slurm itself does not requeue the job (`--no-requeue`): an interrupted one is submitted again by `launch.run`.

Formats: squeue(1), sacct(1), JOB STATE CODES; tried with Slurm 22.05.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

from gristmill.errors import RecipeError, TrainingError
from gristmill.launch import Handle, LaunchJob, Phase, Status, Unreachable, require_command
from gristmill.recipe import LaunchRecipe

# squeue(1), JOB STATE CODES.
_PHASES = {
    Phase.WAITING: (
        "PENDING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
    ),
    Phase.RUNNING: ("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"),
    Phase.DONE: ("COMPLETED",),
    Phase.FAILED: ("FAILED", "OUT_OF_MEMORY", "DEADLINE"),
    Phase.INTERRUPTED: ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REVOKED"),
    Phase.CANCELLED: ("CANCELLED",),
}
_PHASE = {state: phase for phase, states in _PHASES.items() for state in states}
_WORDS = {
    "PENDING": "it waits in the queue",
    "SUSPENDED": "it is suspended",
    "FAILED": "its script ended with code {code}",
    "OUT_OF_MEMORY": "it used more memory than the job was given; ask for more with train.launch.sbatch: [--mem=…]",
    "DEADLINE": "it would have ended after its deadline",
    "TIMEOUT": "its time limit was reached; train.launch.time sets it",
    "NODE_FAIL": "a node of it failed",
    "PREEMPTED": "a job of higher priority took its place",
    "BOOT_FAIL": "its nodes did not start",
    "CANCELLED": "somebody cancelled it",
}
# Answers after which the same request may well succeed; slurm_errno.c.
_TRANSIENT = re.compile(
    r"Socket timed out|Unable to contact|temporarily|Connection refused|Zero Bytes|Transport endpoint|timed out"
    r"|not responding|Protocol authentication error|communication",
    re.IGNORECASE,
)
_COMMAND_SECONDS = 60.0


class Slurm:
    """A Slurm cluster, by its commands."""

    name = "slurm"
    poll = 15.0
    settle = 10.0
    """Seconds in which a submission whose answer was lost may still arrive."""
    forgotten = 120.0
    """Seconds that a job may be unknown to both squeue and sacct before it counts as lost."""

    def __init__(self, recipe: LaunchRecipe) -> None:
        self.recipe = recipe
        self._unknown_since: dict[str, float] = {}

    def check(self) -> None:
        for command in ("sbatch", "squeue", "scancel"):
            require_command(command, "slurm")
        if self.recipe.time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.recipe.time):
            raise RecipeError(
                f"train.launch.time: {self.recipe.time!r} is no time limit such as 04:00:00 or 1-00:00:00"
            )

    def find(self, job: LaunchJob, attempt: int, id: str | None) -> Handle | None:
        if id is not None:
            return Handle(job, id, attempt)
        time.sleep(self.settle)
        found = self._named(_name(job, attempt))
        return Handle(job, found, attempt) if found else None

    def submit(self, job: LaunchJob, attempt: int) -> Handle:
        script = job.work / "job.sbatch"
        script.write_text(self.script(job, attempt), encoding="utf-8")
        for left in (2, 1, 0):
            ran = _run("sbatch", "--parsable", str(script))
            answer = ran.stdout.strip().splitlines()
            if ran.returncode == 0 and answer:
                return Handle(job, answer[-1].partition(";")[0], attempt)  # `id;cluster` in a federation
            said = (ran.stderr.strip() or "it said nothing").splitlines()[-1]
            if not _TRANSIENT.search(ran.stderr):
                raise TrainingError(f"sbatch refused {script}: {said}; change train.launch, then run again")
            time.sleep(self.settle)
            if found := self._named(_name(job, attempt)):
                return Handle(job, found, attempt)
            if not left:
                raise TrainingError(f"sbatch does not get through to the cluster ({said}); run again later")
        raise AssertionError("unreachable")

    def status(self, handle: Handle) -> Status:
        state, code, reason = self._state(handle)
        self._unknown_since.pop(handle.id, None) if state else None
        if not state:
            return self._unknown(handle)
        phase = _PHASE.get(state, Phase.RUNNING)
        words = _WORDS.get(state, f"Slurm says {state}").format(code=code)
        return Status(phase, f"{words} ({reason})" if reason and reason != "None" else words)

    def cancel(self, handle: Handle) -> None:
        for _ in range(3):
            ran = _run("scancel", handle.id)
            if ran.returncode == 0 or not _TRANSIENT.search(ran.stderr):
                return
            time.sleep(1)
        raise TrainingError(f"scancel does not get through: Slurm job {handle.id} may still run; scancel {handle.id}")

    def script(self, job: LaunchJob, attempt: int) -> str:
        """The batch script."""
        recipe, nodes = self.recipe, self.recipe.nodes
        options = [f"--job-name={_name(job, attempt)}", f"--nodes={nodes}", "--ntasks-per-node=1"]
        options += [f"--chdir={job.work}", f"--output={job.log}", "--open-mode=append", "--no-requeue"]
        if recipe.gpus:
            options.append(f"--gpus-per-node={recipe.gpus}")
        for option in ("partition", "account", "time"):
            if value := getattr(recipe, option):
                options.append(f"--{option}={value}")
        options += recipe.sbatch
        exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(recipe.env.items())]
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options)]
        lines += ["set -euo pipefail", "", "# For clusters that forget a job once it has ended."]
        exit_file = shlex.quote(str(_exit_file(job, attempt)))
        lines += [f"trap 'code=$?; echo $code > {exit_file}' EXIT", "trap 'exit 143' TERM", ""]
        lines += exports
        step = "srun --kill-on-bad-exit=1"
        if nodes > 1:
            lines += [
                'GRISTMILL_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
                "GRISTMILL_PORT=$((20000 + SLURM_JOB_ID % 20000))",
                "export GRISTMILL_HEAD GRISTMILL_PORT",
            ]
        if recipe.container:
            seen = sorted({str(path) for path in (job.work, *job.paths)})
            mounts = ",".join(f"{path}:{path}" for path in seen)
            step += f" --container-image={shlex.quote(recipe.container)} --container-mounts={shlex.quote(mounts)}"
        # In the background, because bash answers a signal only between foreground commands.
        lines += [f"{step} bash {shlex.quote(str(job.train))} &", "wait $!"]
        if job.finish:
            lines += [f"{step} --nodes=1 --ntasks=1 bash {shlex.quote(str(job.finish))} &", "wait $!"]
        return "\n".join(lines) + "\n"

    def _state(self, handle: Handle) -> tuple[str, str, str]:
        """(state, exit code, why it waits), each empty where unknown."""
        queue = _run("squeue", "--noheader", "--states=all", f"--jobs={handle.id}", "--format=%T|%r")
        if queue.returncode == 0 and (line := queue.stdout.strip()):
            state, _, reason = line.splitlines()[0].partition("|")
            if _PHASE.get(state) in (Phase.WAITING, Phase.RUNNING):
                return state, "", reason
            return state, self._code(handle), ""
        silent = queue.returncode != 0 and "Invalid job id" not in queue.stderr
        ran = _run("sacct", "--noheader", "--parsable2", "-X", f"--jobs={handle.id}", "--format=State,ExitCode")
        if ran.returncode == 0 and (line := ran.stdout.strip()):
            state, _, code = line.splitlines()[-1].partition("|")
            return state.split()[0], code.partition(":")[0], ""  # `CANCELLED by 1000`
        if silent and _exit_code(handle) is None:
            raise Unreachable(queue.stderr.strip())
        return "", "", ""

    def _code(self, handle: Handle) -> str:
        written = _exit_code(handle)
        return "unknown" if written is None else str(written)

    def _unknown(self, handle: Handle) -> Status:
        """Neither squeue nor sacct has the job: just submitted, or ended and forgotten."""
        code = _exit_code(handle)
        if code == 0:
            return Status(Phase.DONE)
        if code is not None and code != 143:
            return Status(Phase.FAILED, _WORDS["FAILED"].format(code=code))
        since = self._unknown_since.setdefault(handle.id, time.monotonic())
        if time.monotonic() - since < self.forgotten:
            return Status(Phase.WAITING, "squeue and sacct do not list it (yet)")
        return Status(Phase.INTERRUPTED, "squeue and sacct no longer list it, and it left no exit code")

    def _named(self, name: str) -> str | None:
        """The id of our job of that name, running or ended.

        Raises:
            TrainingError: the scheduler does not answer, so that nobody can tell; submitting might start a second.
        """
        for _ in range(20):
            queue = _run("squeue", "--me", "--noheader", "--states=all", f"--name={name}", "--format=%i")
            if queue.returncode == 0:
                break
            time.sleep(self.settle)
        else:
            raise TrainingError(f"squeue does not answer ({queue.stderr.strip()}); run again when the cluster does")
        if found := queue.stdout.split():
            return found[-1]
        ran = _run(
            "sacct", "--noheader", "--parsable2", "-X", f"--name={name}", "--format=JobID", "--starttime=now-30days"
        )
        return ran.stdout.split()[-1] if ran.returncode == 0 and ran.stdout.strip() else None


def _name(job: LaunchJob, attempt: int) -> str:
    return f"{job.name}-{attempt}"


def _exit_file(job: LaunchJob, attempt: int) -> Path:
    return job.work / f"exit-{attempt}"


def _exit_code(handle: Handle) -> int | None:
    path = _exit_file(handle.job, handle.attempt)
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm; one that hangs has failed like one that timed out itself."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            start_new_session=True,  # Ctrl-C is ours: an sbatch that it cut short might have submitted
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} timed out")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")
