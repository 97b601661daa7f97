"""The content-addressed store: `artifacts/<kind>/<digest>/` with a payload and `manifest.json`.

A payload is written into a temporary folder on the same file system; at commit every file is hashed and
fsynced, the manifest is written last, and one rename makes the artifact visible. Whatever is killed before the
rename leaves only a `.tmp-*` folder, which nobody reads and `sweep` removes. Committing content that is already
there keeps the older copy. `gristmill.remote.store` is the same on a bucket.
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
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from gristmill.artifact import MANIFEST, ArtifactRef, FileEntry, Kind, Manifest, content_digest, now, read_manifest
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
        # A loop that starts again while a training of its goes on elsewhere has swept what was still empty.
        self.path.mkdir(parents=True, exist_ok=True)
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
        try:
            return self._commit(stage, tuple(parents), settings or {}, counts or {})
        except OSError as error:
            raise StoreError(
                f"the {self._kind} of stage {stage} could not be stored: {error.strerror or error}; nothing else was "
                "lost: make room in the workspace, and run the same command again"
            ) from error

    def _commit(
        self, stage: str, parents: tuple[ArtifactRef, ...], settings: dict[str, Any], counts: dict[str, Any]
    ) -> ArtifactRef:
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
            parents=parents,
            settings=settings,
            counts=counts,
            files=files,
            created=now(),
            seconds=round(time.monotonic() - self._started, 3),
            gristmill=metadata.version("gristmill"),
            environment=environment(),
        )
        for entry in files:
            _fsync(self.path / entry.name)
        (self.path / MANIFEST).write_bytes(
            orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
        )
        _fsync(self.path / MANIFEST)
        _fsync(self.path)
        self._store.settle(manifest, self.path)
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

    def settle(self, manifest: Manifest, folder: Path) -> None:
        """Make a finished folder, with its manifest in it, the artifact; the last step of a commit.

        Raises:
            StoreError: the disk refused.
        """
        self._rename(manifest.ref, folder)

    def _rename(self, ref: ArtifactRef, folder: Path) -> None:
        final = self.root / ref.location
        if _whole(final):
            return
        if final.exists():  # the remains of a deletion that was cut short, or damage
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, final)
        except OSError:
            if not _whole(final):  # another process committed the same in this moment
                raise
        _fsync(final.parent)

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
        return _whole(self.root / ref.location)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest.

        Raises:
            ArtifactMissing: no such artifact.
            ArtifactDamaged: its manifest cannot be read.
            NewerSchema: a newer Gristmill wrote it.
        """
        path = self.path(ref) / MANIFEST
        try:
            return read_manifest(path.read_bytes())
        except (ValueError, OSError) as error:
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
        """A JSON file of the payload.

        Raises:
            ArtifactMissing: no such artifact.
            ArtifactDamaged: the file is gone, or is no JSON.
        """
        try:
            return orjson.loads((self.path(ref) / name).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError) as error:
            found = "no such file" if isinstance(error, OSError) else f"no JSON ({error})"
            raise ArtifactDamaged(
                f"{ref.location}/{name} is damaged: {found}; `gristmill doctor --deep --mend` sets the artifact aside, "
                "and the run that made it makes it again"
            ) from None

    def refs(self) -> Iterator[ArtifactRef]:
        """Every complete artifact, by kind and digest."""
        for path in sorted((self.root / "artifacts").glob(f"*/*/{MANIFEST}")):
            if not path.parent.name.startswith("."):
                yield ArtifactRef.model_validate({"kind": path.parent.parent.name, "digest": path.parent.name})

    def remove(self, ref: ArtifactRef) -> None:
        """Delete an artifact: its manifest first, so that what a kill leaves does not exist."""
        folder = self.root / ref.location
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

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


def _whole(folder: Path) -> bool:
    """Whether a folder has a manifest and every file at its size.

    Raises:
        NewerSchema: a newer Gristmill wrote it; it is neither read nor replaced.
    """
    try:
        manifest = read_manifest((folder / MANIFEST).read_bytes())
        return all((folder / entry.name).stat().st_size == entry.bytes for entry in manifest.files)
    except (OSError, ValueError):
        return False


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
