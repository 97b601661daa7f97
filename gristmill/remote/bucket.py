"""Objects under a URL: `s3://bucket/prefix`, `gs://…`, `az://…`, `abfs://…`, or `memory://name` for tests.

Reads and writes whole objects by keys relative to the prefix. `create` and `replace` are conditional: of several
writers exactly one wins, and a request whose answer was lost is found out about, not repeated blindly. Requests that
fail for a reason that passes (503, a refused connection, a slow answer) are repeated for `GRISTMILL_REMOTE_PATIENCE`
seconds (180 by default).

obstore (Rust's object_store) does the requests. fsspec has no conditional write in its interface, and its S3, Google
and Azure file systems each need another way around it; here one call serves all three. `obstore.fsspec` opens the same
objects to programs that want fsspec. Credentials come from where each cloud's own tools find them, never from a URL.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gristmill.errors import StoreError, StoreUnreachable, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PATIENCE_VARIABLE = "GRISTMILL_REMOTE_PATIENCE"
SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "az": "azure", "azure": "azure", "abfs": "azure", "abfss": "azure"}
"""URL scheme → the extra that brings what it needs."""
_URL = re.compile(rf"({'|'.join(SCHEMES)}|memory):/{{1,2}}(?=[^/])(.*)", re.IGNORECASE | re.DOTALL)
_BLOCK = 8 * 1024 * 1024  # bytes a download is read in
_PART = 8 * 1024 * 1024  # bytes of a part of an upload, at least
_PARTS = 9_000  # at most: S3 takes 10,000
# Whom the clouds' libraries ask, on the machine itself, when nothing else has given them credentials.
_METADATA = re.compile("latest/api/token|latest/meta-data|computeMetadata|metadata/identity")
_REFUSED = re.compile("status code: 40[13]")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")

Version = Mapping[str, str]
"""Which state of an object a conditional write replaces: its ETag, on Google its generation."""


class Entry(NamedTuple):
    """An object in a listing."""

    key: str
    size: int
    tag: str
    modified: datetime

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


class Stored(NamedTuple):
    """An object that was read; `modified` is by the server's clock."""

    data: bytes
    version: Version
    modified: datetime


def remote_url(place: str | Path) -> str | None:
    """The URL that is meant, or None for a path on this disk.

    `Path("s3://bucket/x")` has lost a slash on its way through the command line; both spellings are read.

    Raises:
        UsageError: the URL holds a password, which would end up in logs.
    """
    found = _URL.fullmatch(str(place))
    if found is None:
        return None
    scheme, rest = found[1].lower(), found[2].strip("/")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (":" in user or not scheme.startswith("abfs")):
        raise UsageError(
            f"the URL holds credentials ({scheme}://…@{rest.rpartition('@')[2]}); leave them out of it, "
            "and give them in the environment, as for the cloud's own tools (docs/workspace.md)"
        )
    if "?" in rest or "#" in rest:
        raise UsageError(f"expected {scheme}://bucket/prefix, found a '?' or '#' in it; leave it out")
    return f"{scheme}://{'/'.join(part for part in rest.split('/') if part)}"


class Bucket:
    """Objects under one URL. Making the object sends no request.

    Raises:
        UsageError: the extra that its scheme needs is not installed, or the URL means nothing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.patience = _patience()
        # Two clients: what may be repeated is repeated by the one; conditional writes are not, and `_decide` does it.
        self._patient = _connect(url, self.patience)
        self._once = _connect(url, 0.0)
        self._bare = False  # how this server wants an ETag in If-Match: Ceph, at least up to 16, without its quotes

    @property
    def identity(self) -> str:
        """Tells buckets of one name at different endpoints apart. Holds no secret."""
        return "\n".join([self.url, *(os.environ.get(name, "") for name in _ENDPOINTS)])

    def read(self, key: str) -> Stored | None:
        """An object; None when there is none."""
        import obstore

        def get() -> Stored:
            result = obstore.get(self._patient, key)
            return Stored(bytes(result.bytes()), _version(result.meta), result.meta["last_modified"])

        try:
            return self._said(f"read {key}", get)
        except FileNotFoundError:
            return None

    def write(self, key: str, data: bytes) -> None:
        """Write an object whatever was there."""
        import obstore

        self._said(f"write {key}", lambda: obstore.put(self._patient, key, data, use_multipart=False))

    def create(self, key: str, data: bytes, *, patience: float | None = None) -> Version | None:
        """Write an object only where there is none; None when somebody was first.

        What is written should be unlike what anybody else would write: by it an object is recognised as our own,
        when the answer to the request was lost.
        """
        return self._decide(key, data, None, patience)

    def replace(self, key: str, data: bytes, version: Version, *, patience: float | None = None) -> Version | None:
        """Write an object only if it is still as it was; None when it has changed or gone. `data` as for `create`."""
        return self._decide(key, data, version, patience)

    def upload(self, key: str, path: Path) -> None:
        """A file's content, in parts where it is large; nobody sees half of it."""
        import obstore

        part = max(_PART, -(-path.stat().st_size // _PARTS))
        self._said(f"write {key}", lambda: obstore.put(self._patient, key, path, chunk_size=part))

    def download(self, key: str, path: Path, watch: Callable[[int], None] | None = None) -> str:
        """Stream an object into a file, fsynced; its sha256.

        Args:
            watch: called with the number of bytes of every block.

        Raises:
            FileNotFoundError: no such object.
        """
        import obstore

        def fetch() -> str:
            hashed = hashlib.sha256()
            with path.open("wb") as file:
                for block in obstore.get(self._patient, key).stream(min_chunk_size=_BLOCK):
                    view = bytes(block)
                    file.write(view)
                    hashed.update(view)
                    if watch is not None:
                        watch(len(view))
                file.flush()
                os.fsync(file.fileno())
            return hashed.hexdigest()

        return self._said(f"read {key}", fetch)

    def digest(self, key: str, watch: Callable[[int], None] | None = None) -> str:
        """The sha256 of an object as it is there now.

        Args:
            watch: called with the number of bytes of every block.

        Raises:
            FileNotFoundError: no such object.
        """
        import obstore

        def fetch() -> str:
            hashed = hashlib.sha256()
            for block in obstore.get(self._patient, key).stream(min_chunk_size=_BLOCK):
                view = bytes(block)
                hashed.update(view)
                if watch is not None:
                    watch(len(view))
            return hashed.hexdigest()

        return self._said(f"read {key}", fetch)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Every object under a folder, by key."""
        import obstore

        def every() -> list[Entry]:
            return [_entry(meta) for batch in obstore.list(self._patient, prefix or None) for meta in batch]

        yield from sorted(self._said(f"list {prefix or 'it'}", every))

    def folder(self, prefix: str) -> list[Entry]:
        """The objects right in a folder, and not below, by key."""
        import obstore

        def found() -> list[Entry]:
            return [_entry(meta) for meta in obstore.list_with_delimiter(self._patient, prefix or None)["objects"]]

        return sorted(self._said(f"list {prefix or 'it'}", found))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        import obstore

        for key in keys:
            try:
                self._said(f"delete {key}", functools.partial(obstore.delete, self._patient, key))
            except FileNotFoundError:
                continue

    def require_conditional_writes(self, token: str) -> datetime:
        """The server's time now, as a by-product of making sure that it keeps the conditions of writes.

        Raises:
            StoreError: it takes a conditional write for any write; no lock can be held there.
        """
        key = f"probe/{token}"
        first = self.create(key, f"1 {token}".encode())
        try:
            if first is None:
                raise StoreError(f"{self.url}/{key} was there already; that should not be, run the command again")
            second = self.replace(key, f"2 {token}".encode(), first)
            kept = self.create(key, f"3 {token}".encode()) is None
            kept = kept and second is not None and self.replace(key, f"4 {token}".encode(), first) is None
            found = self.read(key)
            if not kept or found is None or found.data != f"2 {token}".encode():
                raise StoreError(
                    f"{self.url} ignores the conditions of conditional writes (If-None-Match and If-Match on PUT), so "
                    "that two runs could not be kept apart; use a store that knows them (AWS S3, Google Cloud Storage, "
                    "Azure Blob Storage, MinIO, Ceph; docs/workspace.md), or a workspace on disk"
                )
            return found.modified
        finally:
            self.delete([key])

    def _decide(self, key: str, data: bytes, version: Version | None, patience: float | None) -> Version | None:
        """One conditional write, repeated while nobody knows whether it happened."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        deadline = time.monotonic() + (self.patience if patience is None else patience)
        unsure, turned, pause = False, False, 0.1
        while True:
            try:
                mode: Any = "create" if version is None else _condition(version, self._bare)
                return _version(obstore.put(self._once, key, data, mode=mode, use_multipart=False))
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError) and version is None:
                    raise self._words(f"write {key}", error) from None
                # Somebody was first; perhaps an attempt of ours, whose answer got lost.
                found = self.read(key) if unsure or version is not None else None
                if found is not None and found.data == data and unsure:
                    return found.version
                if found is None or found.version != version or turned:
                    return None
                # Nobody was: the object is as it was, so the server reads the condition in another spelling.
                self._bare, turned = not self._bare, True
            except NotSupportedError as error:
                raise self._words(f"write {key} conditionally", error) from None
            except Exception as error:
                words = self._words(f"write {key}", error)
                if not isinstance(words, StoreUnreachable) or time.monotonic() + pause > deadline:
                    raise words from None
                unsure = True
                time.sleep(pause * (0.5 + random.random()))
                pause = min(5.0, pause * 2)

    def _said(self, what: str, request: Callable[[], T]) -> T:
        """Do a request; what the library says of a failure becomes one of our errors."""
        try:
            return request()
        except FileNotFoundError as error:
            if _no_bucket(str(error)):
                raise self._words(what, error) from None
            raise
        except Exception as error:
            raise self._words(what, error) from None

    def _words(self, what: str, error: Exception) -> StoreError:
        """One sentence: what was tried, what came of it, what to do."""
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        text = str(error)
        if _METADATA.search(text):
            return StoreUnreachable(
                f"{self.url}: no credentials to {what} with: there are none in the environment or the cloud's files, "
                "and this machine has no role of its own; docs/workspace.md says where they are looked for"
            )
        # A listing that is refused has no class of its own.
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
            return StoreError(
                f"{self.url}: not allowed to {what}{_status(text)}; check the credentials in the environment and what "
                "they may do (docs/workspace.md)"
            )
        if isinstance(error, FileNotFoundError) or _no_bucket(text):
            return StoreError(f"{self.url}: there is no such bucket or container; create it, or mend the URL")
        if isinstance(error, OSError) and error.strerror:
            return StoreError(f"{self.url}: could not {what}: {error.strerror}")
        if type(error).__name__ == "NotSupportedError":
            return StoreError(
                f"{self.url} has no conditional writes, which the lock and the files that grow need; use another store "
                "(docs/workspace.md), or a workspace on disk"
            )
        return StoreUnreachable(
            f"{self.url}: could not {what}{_status(text)}; what was committed is safe, and the same command goes on "
            "when the store answers again"
        )


def _connect(url: str, patience: float) -> ObjectStore:
    scheme = url.partition("://")[0]
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        extra = SCHEMES.get(scheme, "s3")
        raise UsageError(f"{scheme}:// needs the extra [{extra}]: pip install 'gristmill[{extra}]'") from None
    if scheme == "memory":
        return _in_memory(url)
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    options: dict[str, Any] = {
        "client_options": {"allow_http": endpoint.startswith("http://"), "timeout": "60s", "connect_timeout": "5s"},
        "retry_config": {
            "max_retries": 1_000_000 if patience else 0,
            "retry_timeout": timedelta(seconds=patience),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        },
    }
    if SCHEMES[scheme] == "s3" and (provider := _aws_profile()) is not None:
        options["credential_provider"] = provider
    try:
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise UsageError(f"{url} is no address of a bucket: {str(error).splitlines()[0]}") from None


def _aws_profile() -> Any:
    """Credentials of `~/.aws`, by boto3 where it is installed, unless the environment gives them."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return None
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:  # obstore then asks the machine that it runs on
        return None
    try:
        return Boto3CredentialProvider()
    except ValueError:  # no credentials in any file
        return None
    except BotoCoreError as error:
        raise UsageError(f"AWS credentials: {error}; mend AWS_PROFILE or ~/.aws") from None


@functools.cache
def _in_memory(url: str) -> ObjectStore:
    from obstore.store import MemoryStore

    return MemoryStore()


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], (meta["e_tag"] or "").strip('"'), meta["last_modified"])


def _version(meta: Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


def _condition(version: Version, bare: bool) -> dict[str, str]:
    return {name: value.strip('"') if bare and name == "e_tag" else value for name, value in version.items()}


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, "180")
    try:
        return max(0.1, float(text))
    except ValueError:
        raise UsageError(f"{PATIENCE_VARIABLE} is {text!r}; expected seconds, such as 180") from None


def _status(text: str) -> str:
    """What of the library's words is worth repeating: a status, a code, or why there was no connection."""
    found = []
    if status := re.search(r"status code: (\d+ [A-Za-z ]+)", text):
        found.append(status[1].strip())
    if code := re.search(r"<Code>(\w+)</Code>", text):
        found.append(code[1])
    if not found and (why := re.search(r"(Connection refused|dns error|operation timed out|timed out|reset)", text)):
        found.append(why[1].lower())
    return f" ({', '.join(found)})" if found else ""


def _no_bucket(text: str) -> bool:
    return "NoSuchBucket" in text or "ContainerNotFound" in text
