"""A session: one reviewer, one queue, one log. What the page asks for, and what becomes of the decisions it sends.

Knows nothing of HTTP. Every answer is plain JSON values. Safe to be called from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from gristmill.decisions import DecisionLog, Opinion, ReviewDecision, disagreements, last_of, now, opinions, resolve
from gristmill.errors import UsageError
from gristmill.review.queue import Queue, Rollout
from gristmill.review.shown import Shown, show

ATTEMPTS = 32
"""Other attempts listed beside a rollout at most."""
_REMEMBERED = 256  # rollouts whose content is kept
_NOTE_CHARS = 20_000
_TAG_CHARS, _TAGS = 60, 50


class Progress(NamedTuple):
    """Of the queue: how many rollouts, how many that anybody judged, how many that this reviewer judged."""

    rollouts: int
    decided: int
    mine: int


class Session:
    """One reviewer at work."""

    def __init__(
        self,
        queue: Queue,
        log: DecisionLog,
        reviewer: str,
        *,
        title: str,
        waiting: str = "",
        on_decision: Callable[[Progress], None] | None = None,
    ) -> None:
        """`waiting` says what happens when all is decided, where a run waits for it."""
        self.queue, self.log, self.reviewer = queue, log, reviewer
        self.title, self.waiting = title, waiting
        self._on_decision = on_decision
        self._lock = threading.Lock()
        self._contents: OrderedDict[str, Shown] = OrderedDict()

    def state(self) -> dict[str, Any]:
        """The queue and everybody's opinions: all that the page needs to start, or to catch up."""
        with self._lock:
            held = opinions(self.log.entries())
            return {
                "title": self.title,
                "reviewer": self.reviewer,
                "waiting": self.waiting,
                "queue": [
                    {"id": one.rollout_id, "reward": one.reward, "stratum": one.stratum} for one in self.queue.rollouts
                ],
                "opinions": _by_rollout(one for one in held if one.rollout_id in self.queue.known),
                "tags": sorted({tag for one in held for tag in one.tags}),
            }

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """One rollout with its content, and the other attempts at its task.

        Raises:
            KeyError: it is neither in the queue nor an attempt at a task that is.
        """
        with self._lock:
            rollout = self.queue.known[rollout_id]
            content = self._content(rollout)
            attempts = self.queue.attempts(rollout)
            shown = attempts[:ATTEMPTS] if rollout in attempts[:ATTEMPTS] else [*attempts[: ATTEMPTS - 1], rollout]
            rewards = [one.reward for one in attempts]
            return {
                **asdict(content),
                "id": rollout_id,
                "digest": content.digest,
                "facts": _facts(rollout),
                "reward": rollout.reward,
                "metrics": {k: v for k, v in sorted(rollout.metrics.items()) if k != "reward"},
                "labels": dict(sorted(rollout.labels.items())),
                "task": {
                    "key": rollout.task_key,
                    "attempts": len(attempts),
                    "mean": sum(rewards) / len(rewards),
                    "fields": rollout.task_fields() or "",
                },
                "attempts": [
                    {
                        "id": one.rollout_id,
                        "reward": one.reward,
                        "truncated": bool(one.truncated),
                        "preview": self._content(one).preview,
                    }
                    for one in shown
                ],
            }

    def raw(self, rollout_id: str) -> bytes:
        """The line as it stood in the input.

        Raises:
            KeyError: as `rollout`.
        """
        with self._lock:
            return self.queue.known[rollout_id].raw()

    def decide(
        self,
        rollout_id: str,
        decision: Literal["accept", "reject", "comment"],
        tags: Sequence[str] = (),
        note: str = "",
    ) -> dict[str, Any]:
        """Append a decision; when this returns, it is on disk.

        Raises:
            KeyError: as `rollout`.
            UsageError: tags or a note beyond all measure.
            StoreError: the log cannot be written.
        """
        if len(note) > _NOTE_CHARS or len(tags) > _TAGS or any(len(tag) > _TAG_CHARS for tag in tags):
            raise UsageError(
                f"a note has at most {_NOTE_CHARS:,} characters, a tag {_TAG_CHARS}, a rollout {_TAGS} tags"
            )
        with self._lock:
            rollout = self.queue.known[rollout_id]
            return self._append(
                rollout_id, rollout.task_key, decision, self._content(rollout).digest, tags=tuple(tags), note=note
            )

    def undo(self) -> dict[str, Any]:
        """Take the reviewer's latest entry back that concerns this queue; `id` is None when there is none."""
        with self._lock:
            entries = [one for one in self.log.entries() if one.rollout_id in self.queue.known]
            last = last_of(entries, self.reviewer)
            if last is None:
                return {"id": None, "opinions": [], "undone": None}
            return {**self._append(last.rollout_id, last.task_key, "undo", None), "undone": last.decision}

    def progress(self) -> Progress:
        """How far the queue is reviewed."""
        held = opinions(self.log.entries())
        ids = {one.rollout_id for one in self.queue.rollouts}
        return Progress(
            rollouts=len(ids),
            decided=len(ids & resolve(held).keys()),
            mine=len(ids & {one.rollout_id for one in held if one.reviewer == self.reviewer and one.judgement}),
        )

    def _append(
        self,
        rollout_id: str,
        task_key: str | None,
        decision: Literal["accept", "reject", "comment", "undo"],
        shown: str | None,
        tags: tuple[str, ...] = (),
        note: str = "",
    ) -> dict[str, Any]:
        entries = self.log.entries()
        entry = ReviewDecision(
            rollout_id=rollout_id,
            task_key=task_key,
            decision=decision,
            tags=tags,
            note=note,
            reviewer=self.reviewer,
            time=now(after=(one for one in entries if one.reviewer == self.reviewer)),
            shown=shown,
        )
        self.log.append(entry)
        if self._on_decision:
            self._on_decision(self.progress())
        held = opinions(one for one in self.log.entries() if one.rollout_id == rollout_id)
        return {"id": rollout_id, "opinions": _by_rollout(held).get(rollout_id, [])}

    def _content(self, rollout: Rollout) -> Shown:
        key = rollout.rollout_id
        if key not in self._contents:
            self._contents[key] = show(rollout.raw())
            if len(self._contents) > _REMEMBERED:
                self._contents.popitem(last=False)
        self._contents.move_to_end(key)
        return self._contents[key]


class Status(NamedTuple):
    """How a review stands, as `--status` tells it."""

    rollouts: int
    accepted: int
    rejected: int
    undecided: int
    reviewers: dict[str, int]
    """Judgements of each."""
    tags: dict[str, int]
    disagreements: dict[str, list[Opinion]]


def status(queue: Queue, log: DecisionLog) -> Status:
    """Of the queue's rollouts only."""
    ids = {one.rollout_id for one in queue.rollouts}
    held = [one for one in opinions(log.entries()) if one.rollout_id in ids]
    judged = list(resolve(held).values())
    reviewers: dict[str, int] = {}
    tags: dict[str, int] = {}
    for one in held:
        reviewers[one.reviewer] = reviewers.get(one.reviewer, 0) + (one.judgement is not None)
        for tag in one.tags:
            tags[tag] = tags.get(tag, 0) + 1
    return Status(
        rollouts=len(ids),
        accepted=judged.count("accept"),
        rejected=judged.count("reject"),
        undecided=len(ids) - len(judged),
        reviewers=dict(sorted(reviewers.items())),
        tags=dict(sorted(tags.items())),
        disagreements=disagreements(held),
    )


def _by_rollout(held: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in held:
        found.setdefault(one.rollout_id, []).append(one.model_dump(include={"reviewer", "judgement", "tags", "note"}))
    return found


def _facts(rollout: Rollout) -> list[tuple[str, str]]:
    """Where it comes from and its shape, in words; what is not known is left out."""
    facts = [("file", f"{rollout.source}, line {rollout.line:,}"), ("agent", rollout.agent), ("model", rollout.model)]
    if rollout.task_index is not None:
        repeat = "" if rollout.rollout_index is None else f", attempt {rollout.rollout_index}"
        facts.append(("task", f"{rollout.task_index}{repeat}"))
    facts.append(("turns", f"{rollout.turns:,}"))
    if rollout.tool_calls:
        facts.append(("tool calls", f"{rollout.tool_calls:,}"))
    if rollout.output_tokens is not None:
        facts.append(("output tokens", f"{rollout.output_tokens:,}"))
    if rollout.incomplete:
        facts.append(("incomplete", rollout.incomplete))
    return [(name, value) for name, value in facts if value]
