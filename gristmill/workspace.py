"""The workspace: one folder that holds the store, cached results, the journal and the registry of champions.

    artifacts/      the store
    results/        Prefect's result records (small JSON files that point into the store)
    work/           unfinished collections and trainings, each under its own key; deleted when they finish
    reports/        the latest page of each recipe
    journal.jsonl   one line per production, fsynced: the truth about what finished
    runs.jsonl      one line when a run begins and one when it ends (gristmill/runs.py)
    champions.jsonl who was promoted, when, on what evidence
    lock            held by `fcntl` while a run writes; the kernel frees it when its process dies

`gristmill/remote` is the same in a bucket, with a mirror of it on this disk in the place of the folder.

One workspace is current at a time (`entered`), so that tasks find it without carrying paths in their inputs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from gristmill import entries
from gristmill.artifact import now, refuse_newer
from gristmill.errors import StoreError, WorkspaceBusy, WorkspaceLost
from gristmill.remote.bucket import remote_url
from gristmill.store import Store

_current: ContextVar[Workspace | None] = ContextVar("workspace", default=None)

ENVIRONMENT_VARIABLE = "GRISTMILL_WORKSPACE"
JOURNAL = "journal.jsonl"
LINES_VERSION = 1
"""Of the lines of files that grow. A line says its `schema_version` from 2 on; without one it is of version 1."""


class Workspace:
    """A workspace on a local or shared file system. Creating the object creates nothing on disk.

    Of a URL (`s3://bucket/prefix`, …) it makes a `gristmill.remote.workspace.RemoteWorkspace`, as `pathlib.Path` makes
    the kind of path that the system has.
    """

    is_remote = False
    """Whether `root` is only a mirror, of what is under the URL `location`."""

    _lock: int | None = None
    """The open lock file, while this object holds it."""

    def __new__(cls, root: Path | str) -> Workspace:
        if cls is Workspace and remote_url(root):
            from gristmill.remote.workspace import RemoteWorkspace

            return super().__new__(RemoteWorkspace)
        return super().__new__(cls)

    def __init__(self, root: Path | str) -> None:
        self.root = Path(str(root).removeprefix("file://") if "://" in str(root) else root).resolve()
        self.store = Store(self.root)

    @property
    def location(self) -> str:
        """What names this workspace again, in another process: its folder, or its URL."""
        return str(self.root)

    def __str__(self) -> str:
        return self.location

    @property
    def results(self) -> Path:
        return self.root / "results"

    def work(self, key: str) -> Path:
        """A folder for unfinished work under `key`; made on demand, kept until `finish_work`."""
        path = self.root / "work" / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    @staticmethod
    def found(place: Path | str) -> Workspace | None:
        """The workspace at a folder or URL; None where there is no such folder."""
        return Workspace(place) if remote_url(place) or Path(place).is_dir() else None

    @staticmethod
    def current() -> Workspace:
        """The entered workspace, or the one that GRISTMILL_WORKSPACE names (in a worker process).

        Raises:
            StoreError: neither is set.
        """
        entered = _current.get()
        if entered is not None:
            return entered
        if named := os.environ.get(ENVIRONMENT_VARIABLE):
            return _named(named)
        raise StoreError(f"no workspace: enter one, or set {ENVIRONMENT_VARIABLE}")

    @contextmanager
    def entered(self) -> Iterator[Workspace]:
        """Make this the current workspace."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the workspace's lock; stale temporary folders are swept first.

        Raises:
            WorkspaceBusy: another live process holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"workspace {self.root} cannot be written: {error.strerror}; choose another with --workspace"
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.read(handle, 64).decode(errors="replace").strip() or "unknown"
                raise WorkspaceBusy(
                    f"workspace {self.root} is in use by process {holder}; "
                    "wait for it, or choose another with --workspace"
                ) from None
            self._lock = handle
            self.require_lock()  # the folder may have been deleted between the two calls
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            self.store.sweep()
            yield
        finally:
            self._lock = None
            os.close(handle)  # also frees the lock

    def require_lock(self) -> None:
        """See that the lock which this run took is still the workspace's; nothing to see where it took none.

        Raises:
            WorkspaceLost: the folder was deleted or replaced under the run, and another may work there now.
        """
        if self._lock is None:
            return
        try:
            there = os.stat(self.root / "lock")
        except OSError:
            there = None
        ours = os.fstat(self._lock)
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise WorkspaceLost(
                f"workspace {self.root} was deleted or replaced while this run worked in it; the run stops here and "
                "writes nothing more: run the command again to begin anew there"
            )

    def refresh(self) -> None:
        """Bring a mirror's small files up to date, for whoever looks at them without the lock. On disk: nothing."""

    def page(self, recipe: str) -> Path:
        """Where the latest report of a recipe's runs lies, under a name that people can keep open."""
        return self.root / "reports" / f"{recipe}.html"

    def publish(self, source: Path, page: Path) -> None:
        """Copy a finished page into place, all or nothing."""
        self.put_file(page.relative_to(self.root).as_posix(), source.read_bytes())

    def put_file(self, name: str, data: bytes) -> None:
        """Write a small file that is replaced as a whole, such as a page; nobody sees half of it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    def get_file(self, name: str) -> bytes | None:
        """The content of such a file; None when there is none."""
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def file_names(self, folder: str) -> list[str]:
        """Names of the files below a folder, as `get_file` takes them, sorted."""
        files = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def append(self, name: str, *lines: dict[str, Any]) -> None:
        """Append JSON lines durably to a file of the workspace that only grows, such as `champions.jsonl`.

        Raises:
            StoreError: it cannot be written; none of the lines, or only the first ones, are there then.
        """
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in lines:
            append_line(path, line)

    def read(self, name: str) -> list[Any]:
        """The complete lines of such a file, oldest first; [] when there is none."""
        return read_lines(self.root / name, name)

    def record(self, line: dict[str, Any]) -> None:
        """Append one production to the journal."""
        self.append(JOURNAL, {"time": now(), **line})


def called(place: Path | str) -> str:
    """A workspace as it was asked for; `Path` takes a slash out of a URL."""
    return remote_url(place) or str(place)


@cache
def _named(place: str) -> Workspace:
    """One object a process, so that what a remote one knows of its bucket is asked for once."""
    return Workspace(place)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line durably: a torn tail from an earlier kill is cut off first, then write and fsync."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                repair_tail(path)
                file.seek(0, os.SEEK_END)
        file.write(orjson.dumps(value) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def repair_tail(path: Path) -> None:
    """Cut a last line that has no newline: its writer was killed, and what it said is owed again."""
    data = path.read_bytes()
    with path.open("rb+") as file:
        file.truncate(data.rfind(b"\n") + 1)


def read_lines(path: Path, name: str | None = None) -> list[Any]:
    """The complete JSON lines of a file that `append_line` wrote; [] when it is not there. `name` as for `parse_lines`.

    Raises:
        StoreError: a line is no JSON, or not what this file has; names the file and line.
        NewerSchema: a newer Gristmill wrote one.
    """
    return parse_lines(path.read_bytes(), str(path), name) if path.exists() else []


def parse_lines(data: bytes, where: str, name: str | None = None) -> list[Any]:
    """The complete lines in a file's bytes; a last one without a newline is owed again.

    Args:
        where: what an error calls the file.
        name: the file's, relative to the workspace, where its lines must be what that file has.

    Raises:
        StoreError: a line is no JSON, or not what this file has.
        NewerSchema: a newer Gristmill wrote one.
    """
    lines = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _bad_line(where, number, f"expected JSON, found {line[:40]!r} ({error.msg})") from None
        if isinstance(value, dict) and isinstance(version := value.get("schema_version"), int):
            refuse_newer(version, LINES_VERSION, f"{where}, line {number},")
        if name is not None and (wrong := entries.problem(name, value)):
            raise _bad_line(where, number, f"found {line[:40]!r}…, which is damaged ({wrong})")
        lines.append(value)
    return lines


def _bad_line(where: str, number: int, found: str) -> StoreError:
    return StoreError(
        f"{where}, line {number}: {found}; `gristmill doctor --mend` moves that line aside (every line stands for "
        "itself), or restore the file from a copy"
    )


def without_folder(record: bytes) -> bytes:
    """A record of Prefect's whose `storage_key` is a name; what is no such record stays as it is."""
    try:
        value = orjson.loads(record)
        value["metadata"]["storage_key"] = Path(value["metadata"]["storage_key"]).name
    except (ValueError, KeyError, TypeError):
        return record
    return orjson.dumps(value)
