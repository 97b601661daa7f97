"""Runs: each records itself in the workspace, so that one can ask what it did and go on with it, without an engine.

    runs.jsonl      {"run": 4, "event": "start", "id", "command", "recipe", "refresh", "pid", "gristmill", "engine"}
                    {"run": 4, "event": "end", "outcome", "error"}
    journal.jsonl   {"run": 4, "turn", "stage", "task", "version", "key", "inputs", "cached", "result", "seconds"}
    running.json    what the run at work does now; not durable, and believed only while the lock is held

A run whose end is missing was killed, or works still: the workspace's lock tells. Journals of earlier versions have no
run numbers; what they hold counts as run 0. Numbers are given under the workspace's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from gristmill import progress
from gristmill.artifact import now
from gristmill.errors import GateError, GristmillError, UsageError, WorkspaceLost
from gristmill.progress import Update
from gristmill.recipe import Recipe
from gristmill.refresh import Refresh, Refreshing, named
from gristmill.workspace import Workspace

RUNS = "runs.jsonl"
JOURNAL = "journal.jsonl"
RUNNING = "running.json"
EVALUATE = "evaluate"
"""The flow of an evaluation on its own: a run, but none of the loop; its command names the policies."""
_EVERY = 1.0  # seconds between two writes of running.json

Outcome = Literal["done", "failed", "refused", "interrupted"]
"""`refused`: a gate said no. Without an outcome a run was killed or works still."""

_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


class Started(BaseModel):
    """A line of runs.jsonl: a run began."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: str
    run: int
    event: Literal["start"]
    command: tuple[str, ...]
    recipe: dict[str, Any]
    refresh: Refresh
    pid: int
    gristmill: str
    engine: str | None


class Ended(BaseModel):
    """A line of runs.jsonl: a run ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: str
    run: int
    event: Literal["end"]
    outcome: Outcome
    error: str | None


class Production(BaseModel):
    """One line of the journal: a stage that ended with a result."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: str
    run: int = 0
    turn: int
    stage: str
    cached: bool
    result: str
    """Short form of the artifact's reference."""
    task: str | None = None
    version: str | None = None
    key: str | None = None
    inputs: tuple[str, ...] = ()
    """Short forms of the artifacts that it took."""
    seconds: float | None = None


@dataclass
class Run:
    """What is known of one run."""

    number: int
    started: str = ""
    ended: str | None = None
    outcome: Outcome | None = None
    error: str | None = None
    command: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None
    refresh: Refresh = field(default_factory=Refresh)
    pid: int | None = None
    engine: str | None = None
    """Id of its flow run."""
    gristmill: str | None = None
    productions: list[Production] = field(default_factory=list)

    @property
    def flow(self) -> str:
        """`improve`, `prepare` …; empty for what earlier versions left."""
        return self.command[0] if self.command else ""

    @property
    def latest(self) -> dict[tuple[int, str], Production]:
        """The last production of each stage, by turn and stage, in the order of the run."""
        return {(one.turn, one.stage): one for one in self.productions}


class Recording:
    """A run that records itself; `run` of the tasks asks it."""

    def __init__(self, workspace: Workspace, number: int, refresh: Refresh) -> None:
        self.workspace, self.number = workspace, number
        self.refreshes = Refreshing(refresh)
        self._written = float("-inf")
        self._since: dict[tuple[int, str], str] = {}

    def production(self, **line: Any) -> None:
        """Record a stage that ended."""
        self.workspace.record({"run": self.number, **line})

    def watch(self, update: Update) -> None:
        """Keep running.json about as old as a second."""
        at = (update.turn, update.stage)
        since = self._since.setdefault(at, now())
        if update.state == "running" and (update.done or update.note) and time.monotonic() - self._written < _EVERY:
            return
        self._written = time.monotonic()
        line = {"run": self.number, "pid": os.getpid(), "since": since, "time": now(), **update._asdict()}
        path = self.workspace.root / RUNNING
        # What it says matters to nobody but whoever looks: a full disk is the next stage's to report.
        with contextlib.suppress(OSError, WorkspaceLost):
            self.workspace.require_lock()
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(orjson.dumps(line))
            temporary.replace(path)


def current() -> Recording | None:
    """The run that is recording; None outside of one."""
    return _recording.get()


@contextmanager
def recorded(
    workspace: Workspace,
    command: Sequence[str],
    recipe: Recipe,
    *,
    refresh: Refresh | None = None,
    engine: str | None = None,
) -> Iterator[Recording]:
    """Record the block as a run. The workspace's lock must be held.

    Args:
        command: the flow's name, and what else it was given.
        engine: id of the flow run at the Prefect API.

    Raises:
        UsageError: `refresh` names a stage that does not exist.
    """
    known = runs(workspace)
    wanted = resolve(refresh or Refresh(), recipe, known)
    number = max((one.number for one in known), default=0) + 1
    start = {
        "time": now(),
        "run": number,
        "event": "start",
        "id": uuid.uuid4().hex,
        "command": list(command),
        "recipe": recipe.resolved(),
        "refresh": wanted.model_dump(mode="json"),
        "pid": os.getpid(),
        "gristmill": metadata.version("gristmill"),
        "engine": engine,
    }
    workspace.append(RUNS, start)
    recording = Recording(workspace, number, wanted)
    token = _recording.set(recording)
    outcome: Outcome = "failed"
    words: str | None = None
    try:
        with progress.listening(recording.watch, also=True):
            yield recording
        outcome = "done"
    except BaseException as error:
        if isinstance(error, GateError):
            outcome = "refused"
        elif not isinstance(error, Exception):
            outcome = "interrupted"
        words = sentence(error)
        raise
    finally:
        _recording.reset(token)
        # If the disk refuses this too, the run reads as killed, which loses nothing.
        with contextlib.suppress(OSError, GristmillError):
            workspace.require_lock()
            workspace.append(RUNS, {"time": now(), "run": number, "event": "end", "outcome": outcome, "error": words})
            (workspace.root / RUNNING).unlink(missing_ok=True)


def runs(workspace: Workspace) -> list[Run]:
    """Every run, oldest first; run 0 holds what has no number.

    Raises:
        StoreError: a line of the files cannot be read; says which.
    """
    found: dict[int, Run] = {}
    for line in workspace.read(RUNS):
        run = found.setdefault(line["run"], Run(line["run"]))
        if line["event"] == "start":
            began = Started.model_validate(line)
            run.started, run.command, run.recipe = began.time, began.command, began.recipe
            run.refresh, run.pid, run.engine = began.refresh, began.pid, began.engine
            run.gristmill = began.gristmill
        else:
            ended = Ended.model_validate(line)
            run.ended, run.outcome, run.error = ended.time, ended.outcome, ended.error
    for line in workspace.read(JOURNAL):
        if "stage" not in line:
            continue
        made = Production.model_validate(line)
        run = found.setdefault(made.run, Run(made.run, started=made.time))
        run.productions.append(made)
    return [found[number] for number in sorted(found)]


def resolve(refresh: Refresh, recipe: Recipe, known: Sequence[Run]) -> Refresh:
    """The turns of the stages to refresh: the last turn that a run of this recipe took, where none is named.

    Raises:
        UsageError: there is no such stage.
    """
    if not refresh:
        return refresh
    same = [run for run in known if run.recipe == recipe.resolved()]
    same = same or [run for run in known if run.recipe is None or run.recipe.get("name") == recipe.name]
    last = max((one.turn for one in same[-1].productions), default=0) if same else 0
    seen = {one.stage for run in known for one in run.productions}
    return refresh.resolved(turns=recipe.turns, last=min(last, recipe.turns) or recipe.turns, known=seen)


def find(workspace: Workspace, text: str) -> Run:
    """A run by what people call it: `4`, `run 4`, `run:4`, `last`.

    Raises:
        UsageError: there is none such; says which there are.
    """
    known = runs(workspace)
    wanted = text.strip().lower().removeprefix("run").lstrip(" :-#")
    if wanted == "last" and known:
        return known[-1]
    for run in known:
        if wanted == str(run.number):
            return run
    there = f"runs {known[0].number} to {known[-1].number}" if known else "no runs"
    raise UsageError(f"there is no run {text!r} in {workspace}; it has {there}")


def unfinished(known: Sequence[Run]) -> list[Run]:
    """Runs that did not end well, and that no later run of the same recipe finished."""
    return [
        run
        for number, run in enumerate(known)
        if run.outcome != "done"
        and not any(
            later.outcome == "done" and (later.flow, later.recipe) == (run.flow, run.recipe)
            for later in known[number + 1 :]
        )
    ]


def owed(run: Run) -> Refresh:
    """What a run that goes on with this one must still do again."""
    if not run.refresh:
        return Refresh()
    again = Refreshing(run.refresh)
    done = [named(one.turn, one.stage) for one in run.productions if again(one.turn, one.stage)]
    return run.refresh.model_copy(update={"done": (*run.refresh.done, *done)})


def holder(workspace: Workspace) -> str | None:
    """Who holds the workspace's lock: the process id that it wrote; None if nobody does."""
    try:
        handle = os.open(workspace.root / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        # Shared, and given back at once: two who look do not see each other.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(handle, 64).decode(errors="replace").strip() or "unknown"
    else:
        return None
    finally:
        os.close(handle)


def running(workspace: Workspace) -> dict[str, Any] | None:
    """What running.json says; None without one. Meant for a workspace whose lock is held."""
    try:
        value = orjson.loads((workspace.root / RUNNING).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def sentence(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    words = " ".join(str(error).split())
    return words if isinstance(error, GristmillError) else f"{type(error).__name__}: {words}".rstrip(": ")


def folder_bytes(path: Path) -> int:
    """Bytes of all files below; 0 where there is nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # removed while we look
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
