"""Rollout files that have arrived in a folder: each content once, and only when it is complete.

A file is complete when it has not changed for a while, as seen by this machine's own clock, and its last line is whole.
What was told stands in the workspace (`arrivals.jsonl`) by the sha256 of the content, so that neither a restart, nor a
rename, nor a copy tells it again. What cannot be read, and what stays half a line, is said once and looked at again.
"""

from __future__ import annotations

import os
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
        self,
        folder: Path,
        workspace: Workspace,
        *,
        settle: float,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at a folder and those below it.

        Args:
            settle: seconds for which a file must not have changed.
            warn: is told, a sentence each, what keeps a file from arriving.

        Raises:
            InputError: there is no such folder.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; make it, or name the one that rollouts are written to")
        self.folder, self.workspace, self.settle, self._clock = folder.resolve(), workspace, settle, clock
        self._warn, self._warned = warn, set[str]()
        self._seen: dict[Path, _Seen] = {}
        self._done: set[tuple[Path, int, int]] = set()
        self._told = {line["sha256"] for line in workspace.read(LOG)}

    def look(self) -> Iterator[Arrival]:
        """What has arrived and was not told; call `told` for each before the next."""
        for path in self._files():
            try:
                found = path.stat()
            except OSError as error:
                self._unreadable(error)
                continue
            now = self._clock()
            before = self._seen.get(path)
            if before is None or (before.size, before.modified) != (found.st_size, found.st_mtime_ns):
                before = self._seen[path] = _Seen(found.st_size, found.st_mtime_ns, now)
            version = (path, before.size, before.modified)
            if version in self._done or now - before.since < self.settle or not before.size:
                continue
            try:
                if not _whole(path):
                    self._say(f"{path} does not end with a whole line; it is told when it does")
                    continue
                digest = file_digest(path)
            except OSError as error:
                self._unreadable(error)
                continue
            arrival = Arrival(path=str(path), bytes=before.size, sha256=digest)
            if arrival.sha256 not in self._told:
                yield arrival
            self._done.add(version)

    def told(self, arrival: Arrival) -> None:
        """Note, durably, that somebody knows."""
        self.workspace.append(LOG, arrival.model_dump(mode="json"))
        self._told.add(arrival.sha256)

    def _files(self) -> list[Path]:
        found = []
        for place, _, names in os.walk(self.folder, onerror=self._unreadable):
            found += [Path(place, name) for name in names if is_rollout_name(name)]
        return sorted(found)

    def _unreadable(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # moved away since
            self._say(f"{error.filename} cannot be read: {error.strerror}; make it readable")

    def _say(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._warn(sentence)


def _whole(path: Path) -> bool:
    """Whether a file that is not empty ends with a whole line; of compressed ones nothing is known.

    Raises:
        OSError: it cannot be read.
    """
    if path.suffix != ".jsonl":
        return True
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL))
        tail = file.read()
    last = tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :]
    if last.endswith(b"\n"):
        return True
    try:
        orjson.loads(last)
    except orjson.JSONDecodeError:
        return False
    return True
