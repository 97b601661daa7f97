"""Decisions: what people said about rollouts, as an append-only log, and what follows from it.

    {"rollout_id", "task_key", "decision", "tags", "note", "reviewer", "time", "shown"}     one JSON line an entry

The log only grows: a change of mind is a new entry, taking one back is an entry `undo`. Each entry is fsynced before
it counts; a line that a killed writer left unfinished is cut off by the next one. Several reviewers may write to one
log at the same time.

What holds now follows from the entries alone. Of one reviewer on one rollout the last entry counts that was not
taken back. Between reviewers **one rejection is enough**: a bad row in the training data costs more than a good one
that is missing, and whoever rejected can change it. Their disagreement stays visible (`disagreements`).
"""

from __future__ import annotations

import fcntl
import getpass
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gristmill.artifact import ArtifactRef
from gristmill.errors import StoreError
from gristmill.store import Store
from gristmill.workspace import append_line

FILE = "decisions.jsonl"

Judgement = Literal["accept", "reject"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReviewDecision(_Frozen):
    """One entry of the log."""

    rollout_id: str = Field(min_length=1)
    task_key: str | None = None
    decision: Literal["accept", "reject", "comment", "undo"] = Field(
        description="`comment` sets tags and note and leaves the judgement; `undo` takes back the entry before it."
    )
    tags: tuple[str, ...] = Field((), description="All tags from now on, sorted.")
    note: str = Field("", description="The whole note from now on.")
    reviewer: str = Field(min_length=1)
    time: str = Field(description="UTC, ISO 8601 with milliseconds.")
    shown: str | None = Field(None, description="Digest of the conversation as it was shown; null if unknown.")

    @field_validator("tags")
    @classmethod
    def _sorted(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({tag.strip() for tag in tags} - {""}))

    @field_validator("time")
    @classmethod
    def _utc(cls, time: str) -> str:
        moment = datetime.fromisoformat(time)
        if moment.tzinfo is None:
            raise ValueError("a time without its zone; write it as 2026-01-31T12:00:00+00:00")
        return moment.astimezone(UTC).isoformat(timespec="milliseconds")


class Opinion(_Frozen):
    """What one reviewer holds of one rollout now. `judgement` is None where there are only tags or a note."""

    rollout_id: str
    task_key: str | None = None
    reviewer: str
    judgement: Judgement | None
    tags: tuple[str, ...] = ()
    note: str = ""
    time: str
    shown: str | None = None


def opinions(decisions: Iterable[ReviewDecision]) -> list[Opinion]:
    """What every reviewer holds now, by rollout and reviewer.

    Entries count in the order of their times, and of the log where times are equal, so that logs from several
    machines can be put together in any order.
    """
    stacks: dict[tuple[str, str], list[Opinion]] = {}
    for entry in sorted(decisions, key=lambda one: one.time):
        stack = stacks.setdefault((entry.rollout_id, entry.reviewer), [])
        if entry.decision == "undo":
            if stack:
                stack.pop()
            continue
        judgement = entry.decision if entry.decision != "comment" else stack[-1].judgement if stack else None
        values = entry.model_dump(exclude={"decision"})
        stack.append(Opinion(judgement=judgement, **values))
    return [stack[-1] for _, stack in sorted(stacks.items()) if stack]


def resolve(held: Iterable[Opinion]) -> dict[str, Judgement]:
    """One judgement a rollout, for those that have any: `reject` as soon as one reviewer rejects."""
    result: dict[str, Judgement] = {}
    for opinion in held:
        if opinion.judgement and result.get(opinion.rollout_id) != "reject":
            result[opinion.rollout_id] = opinion.judgement
    return result


def effective(decisions: Iterable[ReviewDecision]) -> dict[str, Judgement]:
    """Rollout id → judgement, for the rollouts on which somebody's judgement stands."""
    return resolve(opinions(decisions))


def disagreements(held: Iterable[Opinion]) -> dict[str, list[Opinion]]:
    """Rollouts that one reviewer accepts and another rejects, with the opinions of those who judged."""
    by_rollout: dict[str, list[Opinion]] = {}
    for opinion in held:
        if opinion.judgement:
            by_rollout.setdefault(opinion.rollout_id, []).append(opinion)
    return {key: found for key, found in sorted(by_rollout.items()) if len({one.judgement for one in found}) > 1}


def last_of(decisions: Sequence[ReviewDecision], reviewer: str) -> ReviewDecision | None:
    """The reviewer's latest entry that was not taken back: what an `undo` would take back."""
    alive: dict[str, list[tuple[int, ReviewDecision]]] = {}
    mine = sorted((one for one in decisions if one.reviewer == reviewer), key=lambda one: one.time)
    for position, entry in enumerate(mine):
        stack = alive.setdefault(entry.rollout_id, [])
        if entry.decision != "undo":
            stack.append((position, entry))
        elif stack:
            stack.pop()
    tops = [stack[-1] for stack in alive.values() if stack]
    return max(tops, key=lambda top: top[0])[1] if tops else None


class DecisionLog:
    """The log in a file, which need not exist yet. Reading costs nothing while the file has not changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._entries: tuple[ReviewDecision, ...] = ()

    def entries(self) -> tuple[ReviewDecision, ...]:
        """Every complete entry, in the order of the file.

        Raises:
            StoreError: a line is no decision; names the file and line.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return ()
        seen = stat.st_mtime_ns, stat.st_size
        if seen != self._seen:
            data = self.path.read_bytes()
            lines = data[: data.rfind(b"\n") + 1].splitlines()
            self._entries = tuple(self._entry(number, line) for number, line in enumerate(lines, 1))
            self._seen = seen
        return self._entries

    def append(self, *entries: ReviewDecision) -> None:
        """Write entries durably, one after another.

        Raises:
            StoreError: the file cannot be written.
        """
        try:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)  # freed as the file closes
                for entry in entries:
                    append_line(self.path, entry.model_dump(mode="json"))
            if new:
                _sync(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"nothing was saved: {self.path} cannot be written ({error.strerror}); choose another with --log"
            ) from error

    def _entry(self, number: int, line: bytes) -> ReviewDecision:
        try:
            return ReviewDecision.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise StoreError(
                f"{self.path}, line {number}: expected a decision, found {where}: {first['msg'].lower()}; "
                "mend or remove that line (every line stands for itself)"
            ) from None


def now(after: Iterable[ReviewDecision] = ()) -> str:
    """The time of an entry that is made now, never before those it comes `after`, even if the clock was set back."""
    return max([datetime.now(UTC).isoformat(timespec="milliseconds"), *(entry.time for entry in after)])


def login_name() -> str:
    """Who reviews when nobody is named."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return "reviewer"


def read_opinions(store: Store, ref: ArtifactRef) -> list[Opinion]:
    """The opinions of a `decisions` artifact."""
    lines = (store.path(ref) / FILE).read_bytes().splitlines()
    return [Opinion.model_validate_json(line) for line in lines]


def write_opinions(held: Iterable[Opinion], path: Path) -> None:
    """One JSON line each, in the order of `opinions`; equal opinions give equal bytes."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    path.write_bytes(b"".join(orjson.dumps(one.model_dump(mode="json"), option=options) for one in held))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
