"""Launchers: where a job's processes run (this machine, Slurm, Ray), and following them to their end.

A job is a folder with a script for every node (`train`) and one that then runs once (`finish`). A launcher submits it
under a name that is the job's own, says what became of it, and ends it. `run` follows a job to its end:

- It attaches to what runs already under the job's name, and submits only where nothing does: a killed caller that
  comes back finds its job, and no job runs twice.
- A job that the cluster ended (a lost node, preemption, the time limit) is submitted again, up to a limit; training
  then resumes from its checkpoints.
- Whatever ends the caller in an orderly way (an exception, Ctrl-C, SIGTERM) ends the job. A caller that is killed
  leaves a local job no more than a moment; a job of Slurm or Ray goes on.

Slurm and Ray must see the workspace under the same path as this machine does.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gristmill import progress
from gristmill.errors import RecipeError, TrainingError
from gristmill.recipe import LaunchRecipe

LOG = "trainer.log"
"""What the job's processes say, in its folder; appended to by every submission."""

_PATIENCE = 900.0  # seconds that a scheduler may be silent before the caller gives up
_SILENCE = 60.0  # and before it says so


class Phase(StrEnum):
    """How far a submission is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Its own fault: submitting it again would fail again."""
    INTERRUPTED = "interrupted"
    """The cluster's doing: submitted again, it resumes."""
    CANCELLED = "cancelled"
    """Somebody's wish: not submitted again."""


ENDED = frozenset({Phase.DONE, Phase.FAILED, Phase.INTERRUPTED, Phase.CANCELLED})


class Status(NamedTuple):
    """What a launcher knows of a submission."""

    phase: Phase
    reason: str = ""
    """One sentence for people: why it waits, or what ended it."""


class LaunchJob(BaseModel):
    """What to run. Equal names mean the same job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="The job's own name, from its identity and its folder.")
    work: Path = Field(description="Its folder; everything it writes is in there.")
    train: Path = Field(description="Script for every node.")
    finish: Path | None = Field(None, description="Script that runs once, after all of `train` went well.")
    paths: tuple[Path, ...] = Field((), description="Folders that it reads, besides its own; a container sees them.")

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.work / LOG


class Handle(NamedTuple):
    """One submission of a job."""

    job: LaunchJob
    id: str
    """The launcher's own name for it: a process, a Slurm job id, a Ray submission id."""
    attempt: int
    """Counts the submissions of the job, from 1."""


class Launcher(Protocol):
    """Somewhere to run jobs."""

    name: str
    poll: float
    """Seconds between looks, where the recipe says nothing."""

    def check(self) -> None:
        """Refuse what cannot work before anything is spent.

        Raises:
            RecipeError: the launcher's commands or server are not there.
        """

    def find(self, job: LaunchJob, attempt: int, id: str | None) -> Handle | None:
        """The submission that an earlier caller began; None where nothing came of it.

        Args:
            id: what `submit` returned, where the caller lived to write it down.
        """

    def submit(self, job: LaunchJob, attempt: int) -> Handle:
        """Start the job.

        Raises:
            TrainingError: it was refused.
        """

    def status(self, handle: Handle) -> Status:
        """What became of it.

        Raises:
            Unreachable: the scheduler does not answer; ask again later.
        """

    def cancel(self, handle: Handle) -> None:
        """End it, if it has not ended. Does nothing to an ended one."""


class Unreachable(Exception):
    """A scheduler that does not answer now; its job may well be running."""


def get(recipe: LaunchRecipe) -> Launcher:
    """The recipe's launcher."""
    from gristmill.launch.local import Local
    from gristmill.launch.ray import Ray
    from gristmill.launch.slurm import Slurm

    kinds: dict[str, Callable[[LaunchRecipe], Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}
    return kinds[recipe.launcher](recipe)


def run(
    launcher: Launcher, job: LaunchJob, recipe: LaunchRecipe, on_look: Callable[[Status], None] | None = None
) -> Handle:
    """Follow a job to its good end, submitting it where that is needed.

    Args:
        on_look: called after every look at the job, the last of which sees its end.

    Returns:
        The submission that ended well.

    Raises:
        TrainingError: it was refused, failed, was cancelled, or was interrupted once too often.
        Unreachable: the scheduler has not answered for long; the job is left as it is.
    """
    record = _Record(job)
    interval = recipe.poll_seconds or launcher.poll
    handle = None
    with _terminable():
        try:
            if record.open():
                handle = launcher.find(job, record.attempt, record.id)
            handle = handle or record.submit(launcher)
            for left in reversed(range(recipe.resubmit + 1)):
                status = _follow(launcher, handle, interval, on_look)
                record.close()
                if status.phase is Phase.DONE:
                    return handle
                if status.phase is not Phase.INTERRUPTED or not left:
                    break
                handle = record.submit(launcher)
        except Unreachable:
            raise
        except BaseException:
            if handle is not None:
                launcher.cancel(handle)
                record.close()
            raise
    tries = f", after {recipe.resubmit + 1} submissions" if recipe.resubmit and not left else ""
    raise TrainingError(f"{launcher.name} job {handle.id} is {status.phase}{tries}: {status.reason}")


class _Record:
    """The job's latest submission, on disk before anything can be lost: first that it is tried, then under what id."""

    def __init__(self, job: LaunchJob) -> None:
        self.job, self.path = job, job.work / "launch.json"
        self.attempt, self.told = 0, True
        self.id: str | None = None
        if self.path.is_file():
            found = orjson.loads(self.path.read_bytes())
            # Attempts are counted on under another name, too: exit codes in the folder bear the attempt.
            self.attempt = found["attempt"]
            if found["name"] == job.name:
                self.id, self.told = found["id"], found["told"]

    def open(self) -> bool:
        """Whether there is a submission whose end nobody was told."""
        return not self.told

    def submit(self, launcher: Launcher) -> Handle:
        if self.told:
            self.attempt += 1
        self._write(None, told=False)
        handle = launcher.submit(self.job, self.attempt)
        self._write(handle.id, told=False)
        return handle

    def close(self) -> None:
        self._write(self.id, told=True)

    def _write(self, id: str | None, *, told: bool) -> None:
        self.id, self.told = id, told
        values = {"name": self.job.name, "attempt": self.attempt, "id": id, "told": told}
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(orjson.dumps(values))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _follow(launcher: Launcher, handle: Handle, interval: float, on_look: Callable[[Status], None] | None) -> Status:
    heard = time.monotonic()
    told = False
    while True:
        try:
            status = launcher.status(handle)
        except Unreachable as error:
            silent = time.monotonic() - heard
            if silent > _PATIENCE:
                raise
            if silent > _SILENCE and not told:
                progress.emit("running", note=f"{launcher.name} does not answer ({error}); its job may well be running")
                told = True
            time.sleep(interval)
            continue
        heard, told = time.monotonic(), False
        if on_look:
            on_look(status)
        if status.phase in ENDED:
            return status
        time.sleep(interval)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which would end Python at once, becomes an exception inside the block, so that the job is ended too.

    Only where nobody else has taken the signal (Prefect has), and in the main thread, where Python allows it.
    """
    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: Any = signal.signal(signal.SIGTERM, stop) if alone else None
    try:
        yield
    finally:
        if alone:
            signal.signal(signal.SIGTERM, before)


def require_command(name: str, needed: str) -> None:
    """Refuse a recipe whose launcher needs a command that is not on PATH.

    Raises:
        RecipeError: it is not there.
    """
    if shutil.which(name) is None:
        raise RecipeError(f"train.launch.launcher: {needed} needs the command {name}, which is not on PATH here")
