"""Rollout files that have arrived in a folder or a bucket: each content once, and only when it is complete.

A file is complete when it has not changed for a while, as seen by this machine's own clock, and its last line is whole;
an object in a bucket is whole as soon as it is there. What was told stands in the workspace (`arrivals.jsonl`) by the
sha256 of the content, so that neither a restart, nor a rename, nor a copy tells it again. What cannot be read, and what
stays half a line, is said once and looked at again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ConfigDict

from gristmill.errors import InputError
from gristmill.identity import file_digest
from gristmill.remote.bucket import Bucket, remote_url
from gristmill.rollout_files import is_rollout_name
from gristmill.workspace import Workspace

LOG = "arrivals.jsonl"
_TAIL = 1 << 20  # bytes; a longer last line is not looked at


class Arrival(BaseModel):
    """A complete file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Path, or URL."""
    bytes: int
    sha256: str
    version: str | None = None
    """By which it is known again without being read; None where an older Gristmill told of it."""


class _Found(NamedTuple):
    """A file as it is now; `version` differs after a change."""

    path: str
    bytes: int
    version: str


class _Place(Protocol):
    """Where rollouts arrive."""

    def files(self) -> Iterator[_Found]:
        """Every rollout file there, by name."""

    def digest(self, found: _Found) -> str | None:
        """The sha256 of its content; None where that is not there, or not complete."""


class Arrivals:
    """Looks at a folder or a prefix, again and again."""

    def __init__(
        self,
        place: Path | str,
        workspace: Workspace,
        *,
        settle: float,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at what is there and below.

        Args:
            place: a folder, or a URL such as `s3://bucket/prefix`.
            settle: seconds for which a file must not have changed.
            warn: is told, a sentence each, what keeps a file from arriving.

        Raises:
            InputError: there is no such folder.
            UsageError: the URL means nothing, or needs an extra that is not installed.
        """
        url = remote_url(place)
        self._place: _Place = _Prefix(url) if url else _Folder(Path(place), warn)
        self._workspace, self._settle, self._clock = workspace, settle, clock
        self._seen: dict[str, tuple[str, float]] = {}  # path → version, and since when
        told = workspace.read(LOG)
        self._told = {line["sha256"] for line in told}
        self._done = {(line["path"], line["version"]) for line in told if line.get("version")}

    def look(self) -> Iterator[Arrival]:
        """What has arrived and was not told; call `told` for each before the next.

        Raises:
            StoreError: the bucket cannot be read.
        """
        for found in self._place.files():
            now = self._clock()
            version, since = self._seen.get(found.path, ("", now))
            if version != found.version:
                since = now
                self._seen[found.path] = found.version, now
            if (found.path, found.version) in self._done or now - since < self._settle or not found.bytes:
                continue
            digest = self._place.digest(found)
            if digest is None:
                continue
            if digest not in self._told:
                yield Arrival(path=found.path, bytes=found.bytes, sha256=digest, version=found.version)
            self._done.add((found.path, found.version))

    def told(self, arrival: Arrival) -> None:
        """Note, durably, that somebody knows."""
        self._workspace.append(LOG, arrival.model_dump(mode="json"))
        self._told.add(arrival.sha256)


class _Folder:
    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; make it, or name the one that rollouts are written to")
        self._folder = folder.resolve()
        self._warn, self._warned = warn, set[str]()

    def files(self) -> Iterator[_Found]:
        paths = []
        for place, _, names in os.walk(self._folder, onerror=self._unreadable):
            paths += [Path(place, name) for name in names if is_rollout_name(name)]
        for path in sorted(paths):
            try:
                stat = path.stat()
            except OSError as error:
                self._unreadable(error)
                continue
            yield _Found(str(path), stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}")

    def digest(self, found: _Found) -> str | None:
        path = Path(found.path)
        try:
            if _whole(path):
                return file_digest(path)
            self._say(f"{path} does not end with a whole line; it is told when it does")
        except OSError as error:
            self._unreadable(error)
        return None

    def _unreadable(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # moved away since
            self._say(f"{error.filename} cannot be read: {error.strerror}; make it readable")

    def _say(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._warn(sentence)


class _Prefix:
    def __init__(self, url: str) -> None:
        self._bucket = Bucket(url)

    def files(self) -> Iterator[_Found]:
        for entry in self._bucket.entries(""):
            if is_rollout_name(entry.name):
                yield _Found(f"{self._bucket.url}/{entry.key}", entry.size, entry.tag)

    def digest(self, found: _Found) -> str | None:
        try:
            return self._bucket.digest(found.path.removeprefix(f"{self._bucket.url}/"))
        except FileNotFoundError:  # removed since
            return None


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
