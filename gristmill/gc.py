"""Garbage collection: mark what is worth keeping, sweep the rest; nothing is removed unless that is asked for.

Kept are, each with everything that it was made of, all the way up:

- every promotion that holds: its checkpoint, the one it replaced, its decision;
- whatever a file of the workspace names that only grows (tags, aliases, notes, decisions …), known here or not;
- what the last runs made or found in the cache, and whatever runs ended within the last days made;
- what is younger than the oldest of those runs; and the last run, if it is unfinished, counts as one of them.

Swept are the other artifacts, children before parents and each by its manifest first, so that a kill at any moment
leaves a smaller and whole store; result records that name what is gone; work folders that no unfinished run among
those kept can go on with; damaged artifacts that the doctor set aside, once they were made again. A stage whose result
was swept runs again when it is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import MANIFEST, ArtifactRef, Manifest
from gristmill.champions import champions
from gristmill.errors import ArtifactDamaged, StoreError
from gristmill.references import dangling, refs_in
from gristmill.runs import JOURNAL, RUNS, Run, folder_bytes, runs, unfinished
from gristmill.workspace import Workspace

KEEP_RUNS = 5
_NO_ROOTS = frozenset({JOURNAL, RUNS, "champions.jsonl", "versions.jsonl", "openlineage.jsonl"})
"""Logs of all that ever was; champions count by whether they hold, runs by how recent they are; a version is only a
name."""


class Share(BaseModel):
    """What of one kind stays and what goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    kept: int
    kept_bytes: int
    swept: int
    swept_bytes: int


class Sweep(BaseModel):
    """What a collection would do, or did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deleted: bool
    runs: tuple[int, ...] = Field(description="Numbers of the runs whose artifacts are kept.")
    why: dict[str, int] = Field(description="Reason → artifacts that it keeps, before their ancestry.")
    shares: tuple[Share, ...]
    artifacts: tuple[str, ...] = Field(description="What is swept, in that order.")
    bytes: int


def collect(
    workspace: Workspace,
    *,
    keep_runs: int = KEEP_RUNS,
    days: float | None = None,
    delete: bool = False,
    now: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Find what nobody needs; with `delete`, remove it under the workspace's lock.

    Args:
        keep_runs: so many of the last runs keep what they used; 0 keeps only what the other rules do.
        days: runs that ended within so many days keep theirs, too.

    Raises:
        WorkspaceBusy: `delete`, and a run is going on.
        StoreError: a file of the workspace or a manifest cannot be read, so that nothing is known to be spare.
    """
    if not workspace.root.exists():
        return Sweep(deleted=delete, runs=(), why={}, shares=(), artifacts=(), bytes=0)
    if not delete:
        workspace.refresh()
        return _collect(workspace, keep_runs, days, False, now, progress)
    with workspace.locked():
        return _collect(workspace, keep_runs, days, True, now, progress)


def _collect(
    workspace: Workspace,
    keep_runs: int,
    days: float | None,
    delete: bool,
    now: datetime | None,
    progress: Callable[[int, int], None] | None,
) -> Sweep:
    manifests = _manifests(workspace)
    known = runs(workspace)
    recent = _recent(known, keep_runs, days, now or datetime.now(UTC))
    roots = _roots(workspace, manifests, recent)
    kept = closure(manifests, (ref for refs in roots.values() for ref in refs))
    spare = _children_first(manifests, manifests.keys() - kept)
    folders = _spare_folders(workspace, recent)
    sizes = {ref: folder_bytes(workspace.root / ref.location) for ref in manifests}
    shares = [
        Share(
            kind=kind,
            kept=sum(ref.kind == kind for ref in kept),
            kept_bytes=sum(sizes[ref] for ref in kept if ref.kind == kind),
            swept=sum(ref.kind == kind for ref in spare),
            swept_bytes=sum(sizes[ref] for ref in spare if ref.kind == kind),
        )
        for kind in sorted({ref.kind for ref in manifests})
    ]
    for name in ("work", "damaged"):
        inside = list((workspace.root / name).glob("*"))
        if inside:
            gone = [path for path in inside if path in folders]
            shares.append(
                Share(
                    kind=f"{name}/",
                    kept=len(inside) - len(gone),
                    kept_bytes=sum(_size(path) for path in inside if path not in folders),
                    swept=len(gone),
                    swept_bytes=sum(_size(path) for path in gone),
                )
            )
    if delete:
        for done, ref in enumerate(spare):
            workspace.store.remove(ref)
            if progress:
                progress(done + 1, len(spare))
        for path in folders:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in dangling(workspace):
            path.unlink()
    return Sweep(
        deleted=delete,
        runs=tuple(run.number for run in recent),
        why={reason: len(refs) for reason, refs in roots.items() if refs},
        shares=tuple(shares),
        artifacts=tuple(ref.short for ref in spare),
        bytes=sum(share.swept_bytes for share in shares),
    )


def closure(manifests: dict[ArtifactRef, Manifest], roots: Iterable[ArtifactRef]) -> set[ArtifactRef]:
    """The roots that are there, and everything they were made of."""
    found: set[ArtifactRef] = set()
    owed = list(roots)
    while owed:
        ref = owed.pop()
        if ref in found or ref not in manifests:
            continue
        found.add(ref)
        owed += manifests[ref].parents
    return found


def _manifests(workspace: Workspace) -> dict[ArtifactRef, Manifest]:
    found = {}
    for ref in workspace.store.refs():
        try:
            found[ref] = workspace.store.manifest(ref)
        except ArtifactDamaged as error:
            # What it was made of is not known, so anything might be part of some champion's ancestry.
            raise StoreError(
                f"{ref.location} is damaged, so its ancestry is unknown and nothing is swept; "
                "run `gristmill doctor --mend` first"
            ) from error
    return found


def _recent(known: Sequence[Run], keep_runs: int, days: float | None, now: datetime) -> list[Run]:
    last = {run.number for run in known[max(0, len(known) - keep_runs) :]} if keep_runs else set()
    if days is not None:
        since = (now - timedelta(days=days)).isoformat(timespec="seconds")
        last |= {run.number for run in known if (run.ended or _last_word(run)) >= since}
    if known and known[-1].outcome != "done":
        last.add(known[-1].number)  # it may be gone on with
    return [run for run in known if run.number in last]


def _last_word(run: Run) -> str:
    return max((one.time for one in run.productions), default=run.started)


def _roots(
    workspace: Workspace, manifests: dict[ArtifactRef, Manifest], recent: Sequence[Run]
) -> dict[str, set[ArtifactRef]]:
    roots: dict[str, set[ArtifactRef]] = {"promoted": set(), "named": set(), "recent runs": set(), "new": set()}
    for one in champions(workspace):
        roots["promoted"] |= {one.checkpoint, one.replaced, one.decision}
    for path in sorted([*workspace.root.glob("*.jsonl"), *workspace.root.glob("reviews/*.jsonl")]):
        if path.name not in _NO_ROOTS:
            roots["named"] |= refs_in(path) & manifests.keys()
    short = {ref.short: ref for ref in manifests}
    for run in recent:
        for production in run.productions:
            for name in (production.result, *production.inputs):
                if name in short:
                    roots["recent runs"].add(short[name])
    since = min((run.started for run in recent if run.started), default=None)
    if since is not None:
        roots["new"] = {ref for ref, manifest in manifests.items() if manifest.created >= since}
    return roots


def _children_first(manifests: dict[ArtifactRef, Manifest], spare: Iterable[ArtifactRef]) -> list[ArtifactRef]:
    """So that every artifact that is there still has its parents, however far a sweep got."""
    left = set(spare)
    children = dict.fromkeys(left, 0)
    for ref in left:
        for parent in set(manifests[ref].parents) & left:
            children[parent] += 1
    order: list[ArtifactRef] = []
    ready = sorted((ref for ref in left if not children[ref]), key=str)
    while ready:
        ref = ready.pop()
        order.append(ref)
        for parent in sorted(set(manifests[ref].parents) & left, key=str):
            children[parent] -= 1
            if not children[parent]:
                ready.append(parent)
    return order


def _spare_folders(workspace: Workspace, recent: Sequence[Run]) -> set[Path]:
    """Work that no unfinished run among those kept goes on with; damaged artifacts that were made again since."""
    begun = [run.started for run in unfinished(recent) if run.started]
    since = datetime.fromisoformat(min(begun)).timestamp() if begun else None
    spare = {path for path in (workspace.root / "work").glob("*") if since is None or _touched(path) < since}
    for path in (workspace.root / "damaged").glob("*-*.*"):
        kind, _, rest = path.name.partition("-")
        if (workspace.root / "artifacts" / kind / rest.partition(".")[0] / MANIFEST).exists():
            spare.add(path)
    return spare


def _touched(path: Path) -> float:
    """When anything below was last written."""
    return max((one.lstat().st_mtime for one in (path, *path.rglob("*"))), default=0.0)


def _size(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size
