"""The store on a bucket: `artifacts/<kind>/<digest>/` under its URL, and a mirror of it on this disk.

A stage sees folders of the mirror. `path` fetches an artifact when somebody looks into it: every file is streamed into
a temporary folder and must have its size and sha256, then one rename makes it visible, so that several processes can
share a mirror. A commit renames into the mirror first, then uploads every file under its final key, and creates the
manifest last: without one, the artifact does not exist. All of it can be repeated after a kill, and two that commit
the same content do each other no harm. What is in the mirror and not in the bucket counts for nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from gristmill.artifact import MANIFEST, ArtifactRef, FileEntry, Manifest, read_manifest
from gristmill.errors import ArtifactDamaged, ArtifactMissing, StoreError
from gristmill.remote.bucket import Bucket
from gristmill.remote.lease import Lease
from gristmill.remote.transfer import Counter, each, write_whole
from gristmill.store import Store


class RemoteStore(Store):
    """Artifacts under one URL.

    Args:
        root: the mirror.
        bucket: where the artifacts are.
    """

    def __init__(self, root: Path, bucket: Bucket) -> None:
        super().__init__(root)
        self.bucket = bucket
        self.lease: Lease | None = None
        """Held while a run is at work here; every commit checks it."""
        self._listed: dict[str, dict[str, int]] = {}  # location → file → bytes, of artifacts that were there

    def settle(self, manifest: Manifest, folder: Path) -> None:
        """Into the mirror, then into the bucket, the manifest last. The older copy of equal content is kept.

        Raises:
            WorkspaceLost: another run has taken the workspace over; nothing was made visible.
            StoreUnreachable: the bucket does not answer; the same commit can be repeated.
            StoreError: what arrived is not what was sent.
        """
        ref = manifest.ref
        self._rename(ref, folder)
        self._require_lease()
        self._listed.pop(ref.location, None)
        if not self.exists(ref):
            self._upload(manifest)
            self._require_lease()
            data = (self.root / ref.location / MANIFEST).read_bytes()
            if self.bucket.create(f"{ref.location}/{MANIFEST}", data) is not None:
                self._listed[ref.location] |= {MANIFEST: len(data)}
                return
        self._adopt_older(ref)

    def path(self, ref: ArtifactRef) -> Path:
        """The artifact's folder in the mirror, fetched if it is not there whole.

        Raises:
            ArtifactMissing: it is not in the bucket.
            ArtifactDamaged: what is in the bucket is not what its manifest says.
        """
        if not Store.exists(self, ref):
            self._fetch(ref)
        return self.root / ref.location

    def exists(self, ref: ArtifactRef) -> bool:
        """Whether the bucket has the manifest, and every file at its size."""
        sizes = self._sizes(ref)
        if MANIFEST not in sizes:
            return False
        try:
            return all(sizes.get(entry.name) == entry.bytes for entry in self.manifest(ref).files)
        except (ArtifactDamaged, ArtifactMissing):
            return False

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest, which is read once, and not the payload.

        Raises:
            ArtifactMissing: no such artifact.
            ArtifactDamaged: its manifest cannot be read.
            NewerSchema: a newer Gristmill wrote it.
        """
        for known in (self._kept(ref), self.root / ref.location / MANIFEST):
            try:
                return read_manifest(known.read_bytes())
            except (OSError, ValueError):
                continue
        return self.manifest_there(ref)

    def manifest_there(self, ref: ArtifactRef) -> Manifest:
        """The manifest as the bucket has it now.

        Raises:
            as `manifest`.
        """
        stored = self.bucket.read(f"{ref.location}/{MANIFEST}")
        if stored is None:
            raise ArtifactMissing(
                f"{ref.location} is not in workspace {self.bucket.url}; run the command again to remake it"
            )
        try:
            manifest = read_manifest(stored.data)
        except ValueError:
            raise ArtifactDamaged(
                f"{self.bucket.url}/{ref.location}/{MANIFEST} cannot be read; delete it and run again to remake the "
                "artifact, or restore it from a copy (`gristmill workspace copy`)"
            ) from None
        write_whole(self._kept(ref), stored.data)
        return manifest

    def verify(self, ref: ArtifactRef, watch: Callable[[int], None] | None = None) -> None:
        """Hash every file in the bucket again; a copy in the mirror that differs is dropped.

        Args:
            watch: called with the number of bytes of every block, from several threads.

        Raises:
            ArtifactMissing: no such artifact.
            ArtifactDamaged: names the first file that differs.
        """
        files = self.manifest(ref).files
        for entry, found in zip(files, each(files, lambda entry: self._digest(ref, entry, watch)), strict=True):
            if found != entry.sha256:
                raise self._damaged(ref, entry, f"sha256 {found[:12]}" if found else "no such file")
        if Store.exists(self, ref):
            try:
                Store.verify(self, ref)
            except ArtifactDamaged:
                Store.remove(self, ref)

    def read_json(self, ref: ArtifactRef, name: str) -> Any:
        """A JSON file of the payload; of an artifact that is not in the mirror, only this file is fetched."""
        if Store.exists(self, ref):
            return super().read_json(ref, name)
        entry = next((entry for entry in self.manifest(ref).files if entry.name == name), None)
        if entry is None:
            raise ArtifactMissing(f"{ref} has no file {name}")
        folder = self._temporary(ref)
        try:
            self._take(ref, entry, folder, None)
            return orjson.loads((folder / name).read_bytes())  # its sha256 was compared
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def refs(self) -> Iterator[ArtifactRef]:
        """Every complete artifact of the bucket, by kind and digest."""
        self.refresh()
        for location in sorted(place for place, files in self._listed.items() if MANIFEST in files):
            _, kind, digest = location.split("/")
            yield ArtifactRef.model_validate({"kind": kind, "digest": digest})

    def remove(self, ref: ArtifactRef) -> None:
        """Delete an artifact from the bucket, its manifest first, and from the mirror."""
        keys = [entry.key for entry in self.bucket.entries(ref.location)]
        self.bucket.delete(sorted(keys, key=lambda key: key != f"{ref.location}/{MANIFEST}"))
        self._listed.pop(ref.location, None)
        self._kept(ref).unlink(missing_ok=True)
        super().remove(ref)

    def restore(self, ref: ArtifactRef) -> bool:
        """Send an artifact again that the mirror has whole; whether it has. The caller holds the workspace's lock."""
        try:
            if not Store.exists(self, ref):
                return False
            Store.verify(self, ref)
        except (ArtifactDamaged, ArtifactMissing):
            return False
        self._require_lease()
        self._upload(read_manifest(data := (self.root / ref.location / MANIFEST).read_bytes()))
        self.bucket.write(f"{ref.location}/{MANIFEST}", data)
        self._listed.pop(ref.location, None)
        return True

    def listing(self) -> dict[str, dict[str, int]]:
        """Location → file → bytes of all that lies where artifacts are, as it is now, complete or not."""
        self.refresh()
        return self._listed

    def refresh(self) -> None:
        """List the bucket's artifacts again: one request a thousand files."""
        listed: dict[str, dict[str, int]] = {}
        for entry in self.bucket.entries("artifacts"):
            parts = entry.key.split("/", 3)
            if len(parts) == 4:
                listed.setdefault("/".join(parts[:3]), {})[parts[3]] = entry.size
        self._listed = listed

    def _sizes(self, ref: ArtifactRef) -> dict[str, int]:
        """The artifact's files in the bucket. What was there is not asked about again: only a `gc` deletes."""
        if MANIFEST not in self._listed.get(ref.location, {}):
            skip = len(ref.location) + 1
            self._listed[ref.location] = {entry.key[skip:]: entry.size for entry in self.bucket.entries(ref.location)}
        return self._listed[ref.location]

    def _upload(self, manifest: Manifest) -> None:
        ref, folder = manifest.ref, self.root / manifest.ref.location
        total = sum(entry.bytes for entry in manifest.files)
        counted = Counter()

        def send(entry: FileEntry) -> None:
            self.bucket.upload(f"{ref.location}/{entry.name}", folder / entry.name)
            counted.add(entry.bytes)

        each(manifest.files, send, counted.telling(total, "bytes, uploading"))
        self._listed.pop(ref.location, None)
        sizes = self._sizes(ref)
        for entry in manifest.files:
            if sizes.get(entry.name) != entry.bytes:
                raise StoreError(
                    f"{self.bucket.url}/{ref.location}/{entry.name}: sent {entry.bytes} bytes, and the store has "
                    f"{sizes.get(entry.name, 'none of them')}; run the same command again"
                )

    def _adopt_older(self, ref: ArtifactRef) -> None:
        """The mirror shows the manifest that the bucket has: where the content came from first."""
        stored = self.bucket.read(f"{ref.location}/{MANIFEST}")
        if stored is not None:
            write_whole(self.root / ref.location / MANIFEST, stored.data)
            self._listed.pop(ref.location, None)

    def _fetch(self, ref: ArtifactRef) -> None:
        manifest = self.manifest(ref)
        total = sum(entry.bytes for entry in manifest.files)
        counted = Counter()
        folder = self._temporary(ref)
        try:
            each(
                manifest.files,
                lambda entry: self._take(ref, entry, folder, counted.add),
                counted.telling(total, "bytes, fetching"),
            )
            (folder / MANIFEST).write_bytes(
                orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
            )
            self._rename(ref, folder)
        except OSError as error:
            raise StoreError(
                f"{ref.location} could not be fetched into {self.root}: {error.strerror or error}; make room there, or "
                "name another folder by GRISTMILL_CACHE"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _take(self, ref: ArtifactRef, entry: FileEntry, folder: Path, watch: Callable[[int], None] | None) -> None:
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self.bucket.download(f"{ref.location}/{entry.name}", path, watch)
        except FileNotFoundError:
            raise self._damaged(ref, entry, "no such file") from None
        if (size := path.stat().st_size) != entry.bytes:
            raise self._damaged(ref, entry, f"{size} bytes instead of {entry.bytes}")
        if found != entry.sha256:
            raise self._damaged(ref, entry, f"sha256 {found[:12]}")

    def _kept(self, ref: ArtifactRef) -> Path:
        """The mirror's copy of a manifest."""
        return self.root / "manifests" / ref.kind / f"{ref.digest}.json"

    def _digest(self, ref: ArtifactRef, entry: FileEntry, watch: Callable[[int], None] | None) -> str | None:
        try:
            return self.bucket.digest(f"{ref.location}/{entry.name}", watch)
        except FileNotFoundError:
            return None

    def _damaged(self, ref: ArtifactRef, entry: FileEntry, found: str) -> ArtifactDamaged:
        return ArtifactDamaged(
            f"{self.bucket.url}/{ref.location}/{entry.name}: expected sha256 {entry.sha256[:12]}, found {found}; "
            f"restore it from a copy (`gristmill workspace copy`), or delete {ref.location}/ in the bucket and run "
            "again to remake it"
        )

    def _temporary(self, ref: ArtifactRef) -> Path:
        path = self.root / "artifacts" / ref.kind / f".get-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        return path

    def _require_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()
