"""A collection's unfinished work on disk: what was asked for, and every answer, durably.

    rollouts_collection.json   what is collected: policy, tasks, sampling, seed. Another collection is refused here.
    rollouts.jsonl             one line a rollout, appended in batches, each fsynced
    rollouts_failures.jsonl    one line a rollout that was given up; it is asked for again by whoever resumes

A last line without a newline was torn by a kill: it is cut off, and its rollout is owed again. The rows stay on disk;
in memory there is a position of each, so a collection of any size needs little.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from gristmill.collect import COLLECTION, FAILURES, ROLLOUTS
from gristmill.errors import CollectionError
from gristmill.identity import canonical

_BLOCK = 1 << 20


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder this collection's, or see that it is.

    Raises:
        CollectionError: it holds another; names what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COLLECTION
    if path.exists():
        found = orjson.loads(path.read_bytes())
        changed = sorted(_differences("", found, orjson.loads(canonical(identity))))
        if changed:
            raise CollectionError(
                f"{folder} holds a collection with other settings ({'; '.join(changed)}); "
                "restore them to go on with it, or collect into another folder"
            )
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(canonical(identity))
    temporary.replace(path)


class Journal:
    """The journal in one folder. Not thread-safe: one writer at a time.

    Args:
        folder: made when absent.
        identity: what is collected, as plain JSON.
        tasks: number of tasks.
        samples: rollouts a task.

    Raises:
        CollectionError: the folder holds another collection; names what differs.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, tasks: int, samples: int) -> None:
        self.folder, self.samples = folder, samples
        claim(folder, identity)
        self._offsets = array("q", [-1]) * (tasks * samples)
        self.resumed = self._read()
        self._rows = (folder / ROLLOUTS).open("ab")
        self._failures = (folder / FAILURES).open("ab")
        self._at = self._rows.seek(0, os.SEEK_END)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._failures.close()

    def has(self, task: int, repeat: int) -> bool:
        """Whether this rollout is there."""
        return bool(self._offsets[task * self.samples + repeat] >= 0)

    def any(self) -> tuple[int, int] | None:
        """Task and repeat of some rollout that is here."""
        return next(self.keys(), None)

    def keys(self) -> Iterator[tuple[int, int]]:
        """Task and repeat of each rollout that is here."""
        return (divmod(slot, self.samples) for slot, offset in enumerate(self._offsets) if offset >= 0)

    def append(self, rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]] = ()) -> None:
        """Write stamped rows and failure records, and return when they are on disk."""
        if rows:
            lines = [orjson.dumps(row) + b"\n" for row in rows]
            self._rows.write(b"".join(lines))
            self._rows.flush()
            os.fsync(self._rows.fileno())
            for row, line in zip(rows, lines, strict=True):
                self._offsets[self._slot(row)] = self._at
                self._at += len(line)
        if failures:
            self._failures.write(b"".join(orjson.dumps(line) + b"\n" for line in failures))
            self._failures.flush()
            os.fsync(self._failures.fileno())

    def rows(self) -> Iterator[bytes]:
        """Every rollout once, as a line, by task and repeat."""
        with (self.folder / ROLLOUTS).open("rb") as file:
            for offset in self._offsets:
                if offset >= 0:
                    file.seek(offset)
                    yield file.readline()

    def failures(self) -> Iterator[dict[str, Any]]:
        """The last failure of each rollout that is still missing, by task and repeat."""
        last = {}
        for line in _lines(self.folder / FAILURES):
            record = orjson.loads(line)
            slot = self._slot(record)
            if slot < len(self._offsets) and self._offsets[slot] < 0:
                last[slot] = record
        for slot in sorted(last):
            yield last[slot]

    def _read(self) -> int:
        """Learn what is there; a torn tail is cut off. Returns the number of rollouts."""
        for name in (ROLLOUTS, FAILURES):
            _cut_torn_tail(self.folder / name)
        at = count = 0
        for line in _lines(self.folder / ROLLOUTS):
            slot = self._slot(orjson.loads(line))
            if self._offsets[slot] < 0:  # the first of two rows with one key counts
                self._offsets[slot] = at
                count += 1
            at += len(line)
        return count

    def _slot(self, row: dict[str, Any]) -> int:
        return int(row["_ng_task_index"]) * self.samples + int(row["_ng_rollout_index"])


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from file


def _cut_torn_tail(path: Path) -> None:
    """Truncate after the last newline, reading backwards a block at a time."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())


def _differences(where: str, before: Any, now: Any) -> Iterator[str]:
    """`sampling.temperature was 1.0 and is 0.7`, for each leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(f"{where}.{key}" if where else key, before.get(key), now.get(key))
    elif before != now:
        yield f"{where} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else f"{text[:37]}…"
