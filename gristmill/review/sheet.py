"""The queue as JSONL, for those who review elsewhere: one line a rollout, to be filled in and taken back.

    rollout_id, task_key, reward, metrics, tools     what to look at
    messages                                         as chat; empty for a row that has no chat form
    items, problem                                   such a row as it is, and why
    decision, tags, note                             what to fill in; `decision` null is undecided

`read_sheet` takes these lines with whatever else another tool added, and the lines of a decision log, which say their
reviewer and time themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from gristmill.decisions import DecisionLog, ReviewDecision, now, opinions
from gristmill.errors import InputError, UsageError
from gristmill.review.queue import Queue
from gristmill.review.shown import Message, show


def write_sheet(queue: Queue, log: DecisionLog, reviewer: str, path: Path) -> int:
    """Write every rollout of the queue with what the reviewer holds of it; the number of lines.

    Raises:
        UsageError: the file cannot be written.
    """
    mine = {one.rollout_id: one for one in opinions(log.entries()) if one.reviewer == reviewer}
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            for rollout in queue.rollouts:
                shown = show(rollout.raw())
                held = mine.get(rollout.rollout_id)
                line = {
                    "rollout_id": rollout.rollout_id,
                    "task_key": rollout.task_key,
                    "reward": rollout.reward,
                    "metrics": rollout.metrics,
                    "messages": [_chat(message) for message in shown.messages],
                    "items": [asdict(item) for item in shown.items],
                    "tools": [asdict(tool) for tool in shown.tools],
                    "problem": shown.problem or shown.warning or None,
                    "shown": shown.digest,
                    "decision": held.judgement if held else None,
                    "tags": list(held.tags) if held else [],
                    "note": held.note if held else "",
                }
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    return len(queue.rollouts)


def _chat(message: Message) -> dict[str, Any]:
    """A message in the form that most tools read; arguments are JSON text."""
    chat: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning:
        chat["reasoning_content"] = message.reasoning
    if message.images:
        chat["images"] = list(message.images)
    if message.calls:
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        chat["tool_calls"] = [{"id": key, "type": "function", "function": function} for key, function in functions]
    if message.answers:
        chat |= {"tool_call_id": message.answers, "name": message.name}
    return chat


class Imported(NamedTuple):
    """What became of a sheet's lines."""

    added: int
    known: int
    """The log says the same already."""
    undecided: int
    """No decision was filled in."""
    elsewhere: int
    """Of those added: about rollouts that are not in the queue."""


def import_sheet(path: Path, log: DecisionLog, reviewer: str, known: Sequence[str] | None = None) -> Imported:
    """Add a sheet's decisions to the log: all of them, or on an error none.

    Args:
        reviewer: of lines that name none.
        known: ids of the rollouts under review, to count decisions about others.

    Raises:
        InputError: the file cannot be read, or a line is no decision; names it.
    """
    there = log.entries()
    held = {(one.rollout_id, one.reviewer): one for one in opinions(there)}
    moment = now(after=there)
    before = set(there)
    added: list[ReviewDecision] = []
    same = undecided = 0
    for entry, dated in _read(path, reviewer, moment):
        if entry is None:
            undecided += 1
            continue
        opinion = held.get((entry.rollout_id, entry.reviewer))
        if dated:
            repeats = entry in before
        elif entry.decision == "undo":
            repeats = False
        else:
            judgement = None if entry.decision == "comment" else entry.decision
            repeats = opinion is not None and (
                (judgement or opinion.judgement, entry.tags, entry.note)
                == (opinion.judgement, opinion.tags, opinion.note)
            )
        if repeats:
            same += 1
        else:
            added.append(entry)
            before.add(entry)
    log.append(*added)
    inside = None if known is None else set(known)
    elsewhere = 0 if inside is None else sum(one.rollout_id not in inside for one in added)
    return Imported(len(added), same, undecided, elsewhere)


def _read(path: Path, reviewer: str, moment: str) -> list[tuple[ReviewDecision | None, bool]]:
    """Each line's decision (None: undecided), and whether it says its own time."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    found: list[tuple[ReviewDecision | None, bool]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("rollout_id"), str):
            raise InputError(
                f"{path}, line {number}: expected a JSON object with `rollout_id`, as `gristmill review --export` "
                "writes it; nothing was imported"
            )
        if not row.get("decision"):
            found.append((None, False))
            continue
        dated = bool(row.get("time"))
        values = {
            "rollout_id": row["rollout_id"],
            "task_key": row.get("task_key"),
            "decision": row["decision"],
            "tags": row.get("tags") or (),
            "note": row.get("note") or "",
            "reviewer": row.get("reviewer") or reviewer,
            "time": row.get("time") or moment,
            "shown": row.get("shown"),
        }
        try:
            found.append((ReviewDecision.model_validate(values), dated))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path}, line {number}: `{name}`: {first['msg'].lower()}, found {first['input']!r:.80}; "
                "nothing was imported"
            ) from None
    return found
