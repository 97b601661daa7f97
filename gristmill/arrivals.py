"""Rollout files that have arrived in a folder: each content once, and only when it is complete.

A file is complete when it has not changed for a while, as seen by this machine's own clock, and its last line is whole.
What was told stands in the workspace (`arrivals.jsonl`) by the sha256 of the content, so that neither a restart, nor a
rename, nor a copy tells it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict

from gristmill.errors import InputError
from gristmill.identity import file_digest
from gristmill.rollout_files import is_rollout_name
from gristmill.workspace import Workspace

LOG = "arrivals.jsonl"
_TAIL = 1 << 20  # bytes; a longer last line is not looked at


class Arrival(BaseModel):
    """A complete file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str


class _Seen(NamedTuple):
    size: int
    modified: int
    since: float


class Arrivals:
    """Looks at a folder, again and again."""

    def __init__(
        self, folder: Path, workspace: Workspace, *, settle: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`settle`: seconds for which a file must not have changed.

        Raises:
            InputError: there is no such folder.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; make it, or name the one that rollouts are written to")
        self.folder, self.workspace, self.settle, self._clock = folder.resolve(), workspace, settle, clock
        self._seen: dict[Path, _Seen] = {}
        self._done: set[tuple[Path, int, int]] = set()
        self._told = {line["sha256"] for line in workspace.read(LOG)}

    def look(self) -> Iterator[Arrival]:
        """What has arrived and was not told; call `told` for each before the next."""
        for path in sorted(self.folder.rglob("*")):
            if not is_rollout_name(path.name):
                continue
            try:
                found = path.stat()
            except OSError:  # moved away since
                continue
            now = self._clock()
            before = self._seen.get(path)
            if before is None or (before.size, before.modified) != (found.st_size, found.st_mtime_ns):
                before = self._seen[path] = _Seen(found.st_size, found.st_mtime_ns, now)
            version = (path, before.size, before.modified)
            if version in self._done or now - before.since < self.settle or not _whole(path):
                continue
            arrival = Arrival(path=str(path), bytes=before.size, sha256=file_digest(path))
            if arrival.sha256 not in self._told:
                yield arrival
            self._done.add(version)

    def told(self, arrival: Arrival) -> None:
        """Note, durably, that somebody knows."""
        self.workspace.append(LOG, arrival.model_dump(mode="json"))
        self._told.add(arrival.sha256)


def _whole(path: Path) -> bool:
    """Whether the file ends with a whole line; of compressed ones only that there is something."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0 or path.suffix != ".jsonl":
                return size > 0
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError:
        return False
    last = tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :]
    if last.endswith(b"\n"):
        return True
    try:
        orjson.loads(last)
    except orjson.JSONDecodeError:
        return False
    return True
