"""The workspace in a bucket. The bucket has the layout of a workspace on disk, without what only one machine needs:

    artifacts/  results/  reports/  reviews/  *.jsonl     the truth
    lock                                                  a lease (gristmill/remote/lease.py)

`root` is its mirror under the cache folder, one for each URL: fetched artifacts, records that Prefect reads and
writes, and unfinished work, which goes on only from this machine. The mirror can be deleted whenever nothing runs; what
was unfinished is then done again.

Files that only grow are read, extended and written back under the condition that nobody wrote in between, so that
neither of two writers loses a line and a kill leaves the old file or the new one. Records of results are fetched when a
run takes the lock, and sent after every stage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from gristmill.cache import default_cache
from gristmill.errors import StoreError
from gristmill.identity import digest
from gristmill.remote.bucket import Bucket, Entry, remote_url
from gristmill.remote.lease import SECONDS, Lease
from gristmill.remote.store import RemoteStore
from gristmill.remote.transfer import THREADS, write_whole
from gristmill.workspace import Workspace, parse_lines, without_folder

_ATTEMPTS = 100
_SEEN = "results.json"


class RemoteWorkspace(Workspace):
    """A workspace under a URL. `Workspace("s3://…")` makes one of these; making it sends no request.

    Raises:
        UsageError: the URL holds a password, or what its scheme needs is not installed.
    """

    store: RemoteStore
    is_remote = True

    def __init__(self, root: Path | str) -> None:
        url = remote_url(root)
        assert url is not None
        self.bucket = Bucket(url)
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2])[:60]
        self.root = default_cache() / "workspaces" / f"{name}-{digest(self.bucket.identity)[:12]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.root}, which mirrors {url}, cannot be made: {error.strerror}; name another folder by "
                "GRISTMILL_CACHE"
            ) from error
        self.store = RemoteStore(self.root, self.bucket)
        self.lease_seconds = SECONDS

    @property
    def location(self) -> str:
        return self.bucket.url

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the mirror's kernel lock and the bucket's lease; what finished elsewhere is then known here.

        Raises:
            WorkspaceBusy: another run holds it, here or elsewhere.
            StoreError: the bucket cannot be used.
        """
        with super().locked():
            lease = Lease(self.bucket, self._place(), self.lease_seconds)
            lease.acquire()
            self.store.lease = lease
            try:
                self.store.refresh()
                self.refresh()
                yield
            except BaseException:
                with contextlib.suppress(StoreError):  # what stopped the run is worth telling, and not this
                    self._send_results()
                raise
            else:
                self._send_results()
            finally:
                self.store.lease = None
                lease.release()

    def refresh(self) -> None:
        for folder in ("", "reviews"):
            for entry in self.bucket.folder(folder):
                if entry.key.endswith(".jsonl"):
                    self.get_file(entry.key)
        self._fetch_results()

    def append(self, name: str, *lines: dict[str, Any]) -> None:
        """Append JSON lines to an object that only grows, all of them or none.

        Raises:
            WorkspaceLost: this run held the workspace, and another one has it now.
            StoreError: the bucket does not answer, or too many write at once.
        """
        if self.store.lease is not None:
            self.store.lease.check()
        added = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        for _ in range(_ATTEMPTS):
            found = self.bucket.read(name)
            if found is None:
                data, done = added, self.bucket.create(name, added)
            else:
                data = found.data[: found.data.rfind(b"\n") + 1] + added
                done = self.bucket.replace(name, data, found.version)
            if done is not None:
                write_whole(self.root / name, data)
                return
        raise StoreError(f"{self.location}/{name}: others kept writing to it in between; nothing was added, try again")

    def read(self, name: str) -> list[Any]:
        data = self.get_file(name)
        return [] if data is None else parse_lines(data, f"{self.location}/{name}", name)

    def put_file(self, name: str, data: bytes) -> None:
        self.bucket.write(name, data)
        write_whole(self.root / name, data)

    def get_file(self, name: str) -> bytes | None:
        found = self.bucket.read(name)
        if found is None:
            return None
        kept = self.root / name
        if not kept.is_file() or kept.read_bytes() != found.data:
            write_whole(kept, found.data)
        return found.data

    def file_names(self, folder: str) -> list[str]:
        return [entry.key for entry in self.bucket.entries(folder)]

    def record(self, line: dict[str, Any]) -> None:
        """Send the stage's result, then append its line to the journal."""
        self._send_results()
        super().record(line)

    def _place(self) -> str:
        """This mirror on this machine since it was started, as a digest: what the kernel's lock on it speaks for."""
        stat = (self.root / "lock").stat()
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:  # not Linux: a dead holder's lease is waited out
            boot = os.urandom(16).hex()
        return digest([boot, stat.st_dev, stat.st_ino])

    def _fetch_results(self) -> None:
        """Records that are new or changed in the bucket since they were seen last."""
        seen = self._seen()
        self.results.mkdir(exist_ok=True)

        def fetch(entry: Entry) -> str | None:
            found = self.bucket.read(entry.key)
            if found is None:
                return None
            write_whole(self.root / entry.key, found.data)
            return hashlib.sha256(found.data).hexdigest()

        owed = [
            entry
            for entry in self.bucket.entries("results")
            if seen.get(name := entry.key.partition("/")[2], {}).get("tag") != entry.tag
            or not (self.results / name).is_file()
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            for entry, found in zip(owed, pool.map(fetch, owed), strict=True):
                if found:
                    seen[entry.key.partition("/")[2]] = {"tag": entry.tag, "sha256": found}
        if owed:
            write_whole(self.root / _SEEN, orjson.dumps(seen))

    def _send_results(self) -> None:
        """Records that are new or changed here. They lose the folder they lie in, which is nobody's business."""
        if self.store.lease is not None:
            self.store.lease.check()
        seen = self._seen()
        changed = False
        for path in sorted(self.results.iterdir()) if self.results.is_dir() else ():
            if path.name.startswith("."):
                continue
            data = without_folder(path.read_bytes())
            found = hashlib.sha256(data).hexdigest()
            if seen.get(path.name, {}).get("sha256") != found:
                self.bucket.write(f"results/{path.name}", data)
                seen[path.name] = {"tag": "", "sha256": found}
                changed = True
        if changed:
            write_whole(self.root / _SEEN, orjson.dumps(seen))

    def _seen(self) -> dict[str, dict[str, str]]:
        try:
            seen: dict[str, dict[str, str]] = orjson.loads((self.root / _SEEN).read_bytes())
            return seen
        except (OSError, ValueError):
            return {}
