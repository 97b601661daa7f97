"""Rollout files in a bucket, copied to this disk before they are read.

    <cache>/rollouts/<bucket>-<identity>/<key>        a copy, and beside it those of the sidecars that are read
    <cache>/rollouts/<bucket>-<identity>/.tags.json   the tag of the object that each is a copy of

An object is copied once, and again when it has changed. The copies may be deleted while nothing reads them.
"""

from __future__ import annotations

import fcntl
import fnmatch
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import orjson

from gristmill import progress
from gristmill.cache import default_cache
from gristmill.errors import InputError, StoreError
from gristmill.identity import digest
from gristmill.remote.bucket import Bucket, Entry
from gristmill.remote.transfer import Counter, each, write_whole
from gristmill.rollout_files import SIDECARS_READ, is_rollout_name, sidecar
from gristmill.words import many, size

_TAGS = ".tags.json"


def fetch(url: str) -> list[Path]:
    """Copies of the rollout files under a URL, sorted.

    Args:
        url: of an object, of what is above some (all that have a rollout file's name are taken), or a glob.

    Raises:
        InputError: there are none, or one is removed meanwhile.
        StoreError: the bucket, or this disk, does not let us.
        UsageError: the URL means nothing, or the extra that its scheme needs is not installed.
    """
    scheme, _, rest = url.partition("://")
    place, _, path = rest.partition("/")
    bucket = Bucket(f"{scheme}://{place}")
    found = _find(bucket, path)
    if not found.rollouts:
        raise InputError(f"{url} holds no rollout files (*.jsonl, *.jsonl.gz, *.jsonl.zst)")
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", place)[:60]
    root = default_cache() / "rollouts" / f"{slug}-{digest(bucket.identity)[:12]}"
    copies = [_inside(root, entry.key) for entry in found.rollouts]
    try:
        with _locked(root):
            _copy(bucket, root, found)
    except OSError as error:
        raise StoreError(
            f"{url} could not be copied to {root}: {error.strerror or error}; make room there, or name another folder "
            "by GRISTMILL_CACHE"
        ) from error
    return copies


class _Found(NamedTuple):
    rollouts: list[Entry]
    sidecars: dict[str, Entry | None]
    """Where one would lie → what lies there."""


def _find(bucket: Bucket, path: str) -> _Found:
    parts = path.split("/")
    magic = [number for number, part in enumerate(parts) if "*" in part or "[" in part]
    if magic:
        there = list(bucket.entries("/".join(parts[: magic[0]])))
        wanted = [one for one in there if _matches(one.key.split("/"), parts) and is_rollout_name(one.name)]
    else:
        there = bucket.folder(path.rpartition("/")[0])
        wanted = [one for one in there if one.key == path]
        if not wanted:
            there = list(bucket.entries(path))
            wanted = [one for one in there if is_rollout_name(one.name)]
    known = {one.key: one for one in there}
    beside = [str(sidecar(PurePosixPath(one.key), suffix)) for one in wanted for suffix in SIDECARS_READ]
    return _Found(wanted, {key: known.get(key) for key in beside})


def _matches(key: Sequence[str], glob: Sequence[str]) -> bool:
    """Whether a key, in parts, is one that a glob means: `*` within a part, `**` for any number of parts."""
    if not glob:
        return not key
    if glob[0] == "**":
        return any(_matches(key[count:], glob[1:]) for count in range(len(key) + 1))
    return bool(key) and fnmatch.fnmatchcase(key[0], glob[0]) and _matches(key[1:], glob[1:])


def _inside(root: Path, key: str) -> Path:
    """Where the copy of an object is.

    Raises:
        InputError: the key would lead out of the folder.
    """
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InputError(f"the object {key!r} has no name that a file can have; copy it by hand, and name the file")
    return root / key


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time writes there; others wait for it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # freed as the file closes
        yield


def _copy(bucket: Bucket, root: Path, found: _Found) -> None:
    """Make the copies what the bucket has."""
    tags = _tags(root)
    for key, entry in found.sidecars.items():
        if entry is None:
            _inside(root, key).unlink(missing_ok=True)
    owed = [
        entry
        for entry in (*found.rollouts, *filter(None, found.sidecars.values()))
        if tags.get(entry.key) != entry.tag or not _is_copy(_inside(root, entry.key), entry)
    ]
    if not owed:
        return
    total = sum(entry.size for entry in owed)
    counted = Counter()

    def take(entry: Entry) -> None:
        path = _inside(root, entry.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid.uuid4().hex}")
        try:
            bucket.download(entry.key, part, counted.add)
            if not _is_copy(part, entry):
                raise InputError(f"{bucket.url}/{entry.key} changed while it was read; run the same command again")
            part.replace(path)
        except FileNotFoundError:
            raise InputError(f"{bucket.url}/{entry.key} was removed while it was read") from None
        finally:
            part.unlink(missing_ok=True)
        tags[entry.key] = entry.tag

    with progress.stage(0, "fetch"):
        tell = counted.telling(total, "bytes, fetching")
        try:
            each(owed, take, tell)
        finally:  # what was copied is not copied again
            write_whole(root / _TAGS, orjson.dumps(tags))
        if tell:
            progress.emit("done", note=f"{many(len(owed), 'file')}, {size(total)}")


def _is_copy(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size


def _tags(root: Path) -> dict[str, str]:
    """Key → tag of what was copied; damaged, nothing was."""
    try:
        tags: dict[str, str] = orjson.loads((root / _TAGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return tags if isinstance(tags, dict) else {}
