"""The content-addressed store: `artifacts/<kind>/<digest>/` with a payload and `manifest.json`.

A payload is written into a temporary folder on the same file system; at commit every file is hashed and
fsynced, the manifest is written last, and one rename makes the artifact visible. Whatever is killed before the
rename leaves only a `.tmp-*` folder, which nobody reads and `sweep` removes. Committing content that is already
there keeps the older copy.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from gristmill.artifact import MANIFEST, ArtifactRef, FileEntry, Kind, Manifest, content_digest
from gristmill.errors import ArtifactDamaged, ArtifactMissing, StoreError
from gristmill.identity import file_digest

_VERSIONS_OF = ("prefect", "pyarrow", "duckdb", "torch", "transformers", "trl", "peft")


_step_version: ContextVar[str] = ContextVar("step_version", default="1")


@contextmanager
def step_version(version: str) -> Iterator[None]:
    """Within the block, manifests say that this version of a step's logic made them."""
    token = _step_version.set(version)
    try:
        yield
    finally:
        _step_version.reset(token)


class Draft:
    """An artifact in the making. Write files under `path`, then `commit`."""

    def __init__(self, store: Store, kind: Kind, path: Path) -> None:
        self._store, self._kind = store, kind
        self._started = time.monotonic()
        self.path = path
        self.ref: ArtifactRef | None = None

    def adopt(self, folder: Path) -> None:
        """Move the files of `folder` (same file system) into the payload."""
        for item in sorted(folder.iterdir()):
            os.rename(item, self.path / item.name)

    def write_json(self, name: str, value: Any) -> None:
        """Write canonical JSON; models are dumped in JSON mode."""
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        (self.path / name).write_bytes(orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))

    def commit(
        self,
        *,
        stage: str,
        parents: Sequence[ArtifactRef] = (),
        settings: dict[str, Any] | None = None,
        counts: dict[str, Any] | None = None,
    ) -> ArtifactRef:
        """Hash, fsync, write the manifest, rename.

        Raises:
            StoreError: the payload is empty, or the disk refused.
        """
        files = tuple(
            FileEntry(name=p.relative_to(self.path).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
            for p in sorted(self.path.rglob("*"))
            if p.is_file()
        )
        if not files:
            raise StoreError(f"stage {stage} made an empty {self._kind}; nothing was stored")
        manifest = Manifest(
            kind=self._kind,
            digest=content_digest(self._kind, files),
            stage=stage,
            step_version=_step_version.get(),
            parents=tuple(parents),
            settings=settings or {},
            counts=counts or {},
            files=files,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._started, 3),
            gristmill=metadata.version("gristmill"),
            environment=environment(),
        )
        final = self._store.root / manifest.ref.location
        for entry in files:
            _fsync(self.path / entry.name)
        (self.path / MANIFEST).write_bytes(
            orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
        )
        _fsync(self.path / MANIFEST)
        _fsync(self.path)
        if not self._store.exists(manifest.ref):
            if final.exists():  # a folder without a manifest: the remains of a deletion that was cut short
                shutil.rmtree(final)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.path, final)
            _fsync(final.parent)
        self.ref = manifest.ref
        return manifest.ref


class Store:
    """Artifacts under one workspace root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def draft(self, kind: Kind) -> Iterator[Draft]:
        """A temporary folder that becomes an artifact by `commit`, or vanishes."""
        path = self.root / "artifacts" / kind / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        try:
            yield Draft(self, kind, path)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def path(self, ref: ArtifactRef) -> Path:
        """The artifact's folder.

        Raises:
            ArtifactMissing: it is not here (deleted, or another workspace's).
        """
        folder = self.root / ref.location
        if not (folder / MANIFEST).is_file():
            raise ArtifactMissing(
                f"{ref.location} is not in workspace {self.root.name}; run the command again to remake it"
            )
        return folder

    def exists(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is there with every file at its size (contents are not re-hashed)."""
        folder = self.root / ref.location
        try:
            manifest = self.manifest(ref)
            return all((folder / f.name).stat().st_size == f.bytes for f in manifest.files)
        except (OSError, StoreError):
            return False

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest.

        Raises:
            ArtifactMissing: no such artifact.
            ArtifactDamaged: its manifest cannot be read.
        """
        path = self.path(ref) / MANIFEST
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise ArtifactDamaged(
                f"{ref.location}/{MANIFEST} cannot be read; delete the folder {ref.location} and run again to remake it"
            ) from error

    def verify(self, ref: ArtifactRef) -> None:
        """Hash every file again.

        Raises:
            ArtifactDamaged: names the first file that differs.
        """
        folder, manifest = self.path(ref), self.manifest(ref)
        for entry in manifest.files:
            path = folder / entry.name
            if not path.is_file():
                found = "no such file"
            elif (actual := file_digest(path)) == entry.sha256:
                continue
            else:
                found = f"sha256 {actual[:12]}"
            raise ArtifactDamaged(
                f"{ref.location}/{entry.name}: expected sha256 {entry.sha256[:12]}, found {found}; "
                f"delete the folder {ref.location} and run again to remake it"
            )

    def read_json(self, ref: ArtifactRef, name: str) -> Any:
        """A JSON file of the payload."""
        return orjson.loads((self.path(ref) / name).read_bytes())

    def refs(self) -> Iterator[ArtifactRef]:
        """Every complete artifact, by kind and digest."""
        for path in sorted((self.root / "artifacts").glob(f"*/*/{MANIFEST}")):
            if not path.parent.name.startswith("."):
                yield ArtifactRef.model_validate({"kind": path.parent.parent.name, "digest": path.parent.name})

    def sweep(self) -> int:
        """Remove temporary folders that killed runs left. Call it only under the workspace lock."""
        stale = list((self.root / "artifacts").glob("*/.tmp-*"))
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)


@cache
def environment() -> dict[str, str]:
    """Versions that can change results. Nothing that names a machine or a person."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()}-{platform.machine()}"}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
