"""Samples that a run waits for, and the wait.

    workspace/reviews/decisions.jsonl    the log: every decision in this workspace (gristmill/decisions.py)
    workspace/reviews/NAME.json          the latest sample of the recipe NAME: what `gristmill review NAME` opens

The sample is an artifact, so an interrupted wait goes on where it was: the same command finds the same sample, and
decisions made meanwhile. Whoever waits only reads the log; the workspace's lock does not keep reviewers out.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.decisions import DecisionLog, Opinion, ReviewDecision, effective, opinions
from gristmill.errors import GateError, StoreError
from gristmill.sample import Sampled
from gristmill.store import Store
from gristmill.workspace import Workspace

SAMPLE = "sample.json"
WAIT_VARIABLE = "GRISTMILL_REVIEW_WAIT"
"""Environment variable: how many seconds a run waits for decisions; without it, as long as it takes."""
_POLL = 1.0  # seconds
_DEFAULT_WORKSPACE = "workspace"  # the command line's
_LOG = "reviews/decisions.jsonl"


class Waiting(BaseModel):
    """The latest sample of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    turn: int
    seed: int
    sample: ArtifactRef
    tables: tuple[ArtifactRef, ...]


class Looked(NamedTuple):
    """How far a sample is decided."""

    decided: int
    rollouts: int

    @property
    def complete(self) -> bool:
        return self.decided == self.rollouts


def log_of(workspace: Workspace) -> DecisionLog:
    """The workspace's decision log."""
    return _LogInBucket(workspace) if workspace.is_remote else DecisionLog(workspace.root / _LOG)


def write_sample(sample: Sequence[Sampled], path: Path) -> None:
    """The payload of a `sample` artifact."""
    rows = [row._asdict() for row in sample]
    path.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_sample(store: Store, ref: ArtifactRef) -> list[Sampled]:
    """The rollouts of a `sample` artifact."""
    return [Sampled(**row) for row in store.read_json(ref, SAMPLE)]


def announce(workspace: Workspace, waiting: Waiting) -> None:
    """Say which sample `gristmill review NAME` opens."""
    data = orjson.dumps(waiting.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    workspace.put_file(f"reviews/{waiting.recipe}.json", data)


def announced(workspace: Workspace, recipe: str) -> Waiting | None:
    """The latest sample of a recipe; None if it never had one."""
    name = f"reviews/{recipe}.json"
    try:
        data = workspace.get_file(name)
        return None if data is None else Waiting.model_validate_json(data)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{workspace}/{name} cannot be read ({str(error).splitlines()[0]}); delete it and run again"
        ) from None


def names(workspace: Workspace) -> list[str]:
    """Recipes that have a sample."""
    return [Path(name).stem for name in workspace.file_names("reviews") if name.endswith(".json")]


def command(workspace: Workspace, recipe: str) -> str:
    """What to type to decide."""
    here = os.path.relpath(workspace.root)
    place = here if not workspace.is_remote and len(here) < len(workspace.location) else workspace.location
    where = "" if place == _DEFAULT_WORKSPACE else f" -w {shlex.quote(place)}"
    return f"gristmill review {recipe}{where}"


def look(workspace: Workspace, waiting: Waiting) -> Looked:
    """How many rollouts of the sample somebody has accepted or rejected."""
    ids = {one.rollout_id for one in read_sample(workspace.store, waiting.sample)}
    return Looked(len(ids & effective(log_of(workspace).entries()).keys()), len(ids))


def wait(
    workspace: Workspace,
    waiting: Waiting,
    *,
    progress: Callable[[int, int], None] | None = None,
    seconds: float | None = None,
) -> None:
    """Return when every rollout of the sample is accepted or rejected by somebody.

    Args:
        progress: called with (decided, rollouts) at the start and at each change.
        seconds: how long to wait at most; by default what `GRISTMILL_REVIEW_WAIT` says, or for ever.

    Raises:
        GateError: it took longer; the same run goes on from here when they are decided.
        StoreError: the log is damaged.
    """
    if seconds is None:
        seconds = _seconds()
    log = log_of(workspace)
    ids = {one.rollout_id for one in read_sample(workspace.store, waiting.sample)}
    deadline = None if seconds is None else time.monotonic() + seconds
    told: Looked | None = None
    while True:
        looked = Looked(len(ids & effective(log.entries()).keys()), len(ids))
        if looked != told and progress is not None:
            progress(*looked)
        told = looked
        if looked.complete:
            return
        if deadline is not None and time.monotonic() >= deadline:
            raise GateError(
                f"turn {waiting.turn} waits for review, {looked.rollouts - looked.decided} of {looked.rollouts} "
                f"undecided; run `{command(workspace, waiting.recipe)}`, then the same command again"
            )
        time.sleep(_POLL if deadline is None else min(_POLL, max(0.0, deadline - time.monotonic())))


def opinions_on(log: DecisionLog, tables: Sequence[Sequence[Path]]) -> list[Opinion]:
    """What reviewers hold of the tables' rollouts; opinions without a judgement are left out."""
    held = [one for one in opinions(log.entries()) if one.judgement]
    if not held:
        return []
    from gristmill import scan

    with scan.connect(tables) as db:
        ids = sorted({one.rollout_id for one in held})
        found = db.execute("SELECT DISTINCT rollout_id FROM rollouts WHERE rollout_id IN (SELECT unnest(?))", [ids])
        there = {row[0] for row in found.fetchall()}
    return [one for one in held if one.rollout_id in there]


class _LogInBucket(DecisionLog):
    """The log of a workspace in a bucket; its file is the mirror's copy, as it was read last."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace.root / _LOG)
        self._workspace = workspace

    def entries(self) -> tuple[ReviewDecision, ...]:
        return super().entries() if self._workspace.get_file(_LOG) is not None else ()

    def append(self, *entries: ReviewDecision) -> None:
        self._workspace.append(_LOG, *(entry.model_dump(mode="json") for entry in entries))


def _seconds() -> float | None:
    text = os.environ.get(WAIT_VARIABLE, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise StoreError(f"{WAIT_VARIABLE} is {text!r}; expected seconds, such as 3600") from None
    return max(0.0, value)
