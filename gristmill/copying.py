"""Copies of a workspace: from disk to a bucket, back, or between two of a kind, for backup, restore and moving house.

Every artifact is hashed against its manifest on its way, and is there only when all of it is; what the target has
already is not copied again, so that a copy that was cut short goes on, and repeated ones take what is new. Files that
only grow go last, as they were when the copy began: whatever they name is there before they are. Unfinished work,
locks and Prefect's own database stay behind. The source is only read, and may be in use; the target is locked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from gristmill.artifact import MANIFEST, ArtifactRef
from gristmill.errors import ArtifactDamaged, StoreError, UsageError
from gristmill.identity import file_digest
from gristmill.workspace import Workspace, without_folder

_LEFT = ("artifacts/", "work/", "prefect/", "manifests/", "probe/", "results.json", "running.json", "lock")
_GROWS = ".jsonl"

Watch = Callable[[int, int], None]


@dataclass
class Copied:
    """What a copy did."""

    artifacts: int = 0
    bytes: int = 0
    there: int = 0
    """Artifacts that the target had."""
    files: int = 0
    """Other files that were written: records, pages, lines."""
    damaged: list[str] = field(default_factory=list)
    """Artifacts of the source that are not what their manifests say, each with what is wrong; they were left out."""


def copy(source: Workspace, target: Workspace, watch: Watch | None = None) -> Copied:
    """Bring the target up to the source.

    Args:
        watch: called with (artifacts done, artifacts in all).

    Raises:
        UsageError: both are one place.
        StoreError: the target has lines that the source has not, or cannot be written; names the file.
        WorkspaceBusy: a run is going on in the target.
    """
    if source.location == target.location:
        raise UsageError(f"{source} is both source and target; name two places")
    with target.locked():
        names = [name for name in source.file_names("") if not name.startswith((*_LEFT, "."))]
        growing = {name: _lines(source, name) for name in names if name.endswith(_GROWS)}
        for name, data in growing.items():
            _require_one_history(source, target, name, data)
        refs = list(source.store.refs())
        done = Copied()
        for number, ref in enumerate(refs):
            if watch is not None:
                watch(number, len(refs))
            if target.store.exists(ref):
                done.there += 1
                continue
            try:
                done.bytes += _artifact(source, target, ref)
                done.artifacts += 1
            except ArtifactDamaged as error:
                done.damaged.append(str(error))
        if watch is not None:
            watch(len(refs), len(refs))
        for name in names:
            content = growing[name] if name in growing else source.get_file(name)
            if content is not None and name.startswith("results/"):
                content = without_folder(content)
            if content is not None and not (target.get_file(name) or b"").startswith(content):
                target.put_file(name, content)
                done.files += 1
    return done


def verify(workspace: Workspace, watch: Watch | None = None) -> list[str]:
    """Hash every artifact again; what is wrong with each damaged one."""
    refs = list(workspace.store.refs())
    wrong = []
    for number, ref in enumerate(refs, 1):
        try:
            workspace.store.verify(ref)
        except StoreError as error:
            wrong.append(str(error))
        if watch is not None:
            watch(number, len(refs))
    return wrong


def _artifact(source: Workspace, target: Workspace, ref: ArtifactRef) -> int:
    """Copy one; its payload's bytes."""
    kept = (source.root / ref.location).is_dir()
    manifest = source.store.manifest(ref)
    folder = source.store.path(ref)  # from a bucket: fetched, and hashed as it arrives
    with target.store.draft(ref.kind) as draft:
        for entry in manifest.files:
            path = draft.path / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(folder / entry.name, path)
            except FileNotFoundError:
                raise ArtifactDamaged(f"{source}/{ref.location}/{entry.name}: no such file") from None
            if (found := file_digest(path)) != entry.sha256:
                raise ArtifactDamaged(
                    f"{source}/{ref.location}/{entry.name}: expected sha256 {entry.sha256[:12]}, found {found[:12]}"
                )
        shutil.copyfile(folder / MANIFEST, draft.path / MANIFEST)
        target.store.settle(manifest, draft.path)
    if source.is_remote and not kept:
        shutil.rmtree(folder, ignore_errors=True)  # it was fetched for this copy only
    if target.is_remote:
        shutil.rmtree(target.root / ref.location, ignore_errors=True)
    return sum(entry.bytes for entry in manifest.files)


def _lines(workspace: Workspace, name: str) -> bytes:
    data = workspace.get_file(name) or b""
    return data[: data.rfind(b"\n") + 1]


def _require_one_history(source: Workspace, target: Workspace, name: str, data: bytes) -> None:
    there = _lines(target, name)
    if not data.startswith(there) and not there.startswith(data):
        raise StoreError(
            f"{target}/{name} has lines that {source} has not: the two went on apart, and neither is a copy of the "
            "other any more; nothing was copied. Copy into an empty place instead"
        )
