"""What the doctor finds in a bucket: the lease, and the objects of every artifact, not the mirror's copies of some.

By their sizes in a listing, or (`deep`) by streaming every byte through sha256 again; nothing is fetched for good. The
mend, under the workspace's lock: what this machine's mirror has whole is sent again; what it has not is brought to
`damaged/` in the mirror and taken out of the bucket, so that the next run makes it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from gristmill.artifact import MANIFEST, ArtifactRef
from gristmill.doctor import Finding, Progress, free_place, how
from gristmill.errors import ArtifactDamaged, ArtifactMissing
from gristmill.remote.lease import held
from gristmill.remote.workspace import RemoteWorkspace
from gristmill.workspace import Workspace


def lock(workspace: Workspace) -> Finding:
    """Who has the workspace, as far as the bucket tells; nobody on this machine does."""
    assert isinstance(workspace, RemoteWorkspace)
    found = held(workspace.bucket)
    if found is None:
        return Finding(check="lock", level="ok", what="nobody holds it, here or elsewhere")
    renewed = found.renewed.isoformat(timespec="seconds")
    words = f"a run elsewhere has it, or died: its lease was renewed at {renewed} by the store's clock"
    return Finding(check="lock", level="ok", what=f"{words}, and lasts {found.seconds:.0f} s")


def artifacts(workspace: Workspace, deep: bool, mend: bool, progress: Progress | None) -> Iterator[Finding]:
    """Every artifact of the bucket, by kind and digest.

    Raises:
        StoreUnreachable: the bucket does not answer.
    """
    assert isinstance(workspace, RemoteWorkspace)
    listing = workspace.store.listing()
    total = sum(size for files in listing.values() for size in files.values())
    counted = _Counted(total, progress if deep else None)
    whole = wrong = 0
    for location, sizes in sorted(listing.items()):
        _, kind, digest = location.split("/")
        ref = ArtifactRef.model_validate({"kind": kind, "digest": digest})
        if MANIFEST not in sizes:
            yield Finding(
                check="artifacts",
                level="note",
                what=f"{ref.short}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, and no manifest, so "
                "it does not exist: its upload was cut short, or is under way",
                mend=f"the command that makes it goes on with it; if none will, delete {location}/ in the bucket",
            )
        elif words := _wrong(workspace, ref, sizes, deep, counted):
            wrong += 1
            yield Finding(
                check="artifacts",
                level="wrong",
                what=f"{ref.short}: {words}",
                mend=_mend(workspace, ref)
                if mend
                else "--mend sends it again if this machine's mirror has it whole, else sets it aside to be made again",
                mended=mend,
            )
        else:
            whole += 1
    if not wrong:
        yield Finding(check="artifacts", level="ok", what=f"{whole} artifacts in the bucket, {how(deep)}")


def _wrong(
    workspace: RemoteWorkspace, ref: ArtifactRef, sizes: dict[str, int], deep: bool, counted: Callable[[int], None]
) -> str:
    """What is wrong with an artifact; empty if nothing is."""
    store = workspace.store
    try:
        manifest = store.manifest_there(ref) if deep else store.manifest(ref)
        for entry in manifest.files:
            if entry.name not in sizes:
                return f"{entry.name} is missing"
            if sizes[entry.name] != entry.bytes:
                return f"{entry.name} has {sizes[entry.name]:,} bytes, expected {entry.bytes:,}"
        if deep:
            store.verify(ref, counted)
    except (ArtifactDamaged, ArtifactMissing) as error:
        return str(error).removeprefix(f"{workspace.location}/{ref.location}/").split("; ")[0]
    return ""


def _mend(workspace: RemoteWorkspace, ref: ArtifactRef) -> str:
    """Mend a damaged artifact; what was done. The caller holds the workspace's lock."""
    store = workspace.store
    if store.restore(ref):
        return "this machine's mirror had it whole, and it was sent again"
    folder = free_place(workspace, ref.location)
    for entry in workspace.bucket.entries(ref.location):
        path = folder / entry.key.removeprefix(f"{ref.location}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        workspace.bucket.download(entry.key, path)
    store.remove(ref)
    return f"set aside as {folder.relative_to(workspace.root)} in this machine's mirror; the next run makes it again"


class _Counted:
    """Bytes that several threads hash."""

    def __init__(self, total: int, tell: Progress | None) -> None:
        self._done, self._total, self._tell, self._lock = 0, total, tell, threading.Lock()

    def __call__(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            if self._tell:
                self._tell(self._done, self._total, "bytes hashed again")
