"""Doctor: what is wrong with a workspace, each with its mend; on request, the safe mends are done.

Looks at disk space, the lock, files that only grow, artifacts, result records, unfinished work, processes that a dead
run left behind, and the versions that artifacts were made with. Nothing is deleted that cannot be made again: what is
damaged is set aside under `damaged/`. Of a workspace in a bucket it is the bucket's artifacts that count
(gristmill/remote/examine.py). Processes are ours exactly if what they print goes to a file of this
workspace's work folder, or their command names such a file; they are left behind if nobody holds the lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import MANIFEST, ArtifactRef, now
from gristmill.errors import NewerSchema, StoreError
from gristmill.processes import end, left_behind
from gristmill.references import dangling
from gristmill.runs import Run, folder_bytes, holder, runs
from gristmill.store import environment
from gristmill.words import many
from gristmill.workspace import Workspace, parse_lines

Progress = Callable[[int, int, str], None]
_LEAST_FREE = 1 << 30  # bytes; for a workspace that has made nothing yet


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    level: Literal["ok", "note", "wrong"] = Field(description="Only `wrong` makes the doctor's exit code 1.")
    what: str
    mend: str | None = Field(None, description="What to do, or what `--mend` does.")
    mended: bool = False


Left = Callable[[Sequence[str]], Sequence[tuple[str, str]]]
"""Ids of flow runs → those that the Prefect server has as not ended, with their state."""
Crash = Callable[[str], None]


class Engine(BaseModel):
    """What is known of the Prefect API. The library does not import Prefect: whoever may passes it in."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    url: str | None
    answers: bool = False
    unfinished: Left | None = None
    crash: Crash | None = None


def examine(
    workspace: Workspace,
    *,
    deep: bool = False,
    mend: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Look at everything; with `mend`, under the workspace's lock.

    Raises:
        WorkspaceBusy: `mend`, and a run is going on.
    """
    if not workspace.root.exists():
        return [Finding(check="workspace", level="ok", what=f"there is nothing at {workspace} yet")]
    if not mend:
        workspace.refresh()
        return list(_every(workspace, deep, False, engine, progress))
    with workspace.locked():
        return list(_every(workspace, deep, True, engine, progress))


def _every(
    workspace: Workspace, deep: bool, mend: bool, engine: Engine | None, progress: Progress | None
) -> Iterator[Finding]:
    held = None if mend else holder(workspace)
    yield from _lock(workspace, held, mend)
    yield from _lines(workspace, mend)
    try:
        known = runs(workspace)
    except StoreError:  # said by _lines
        known = []
    yield from _space(workspace)
    yield from _artifacts(workspace, deep, mend, progress)
    yield from _records(workspace, mend)
    yield from _work(workspace, known, held)
    yield from _processes(workspace, held, mend)
    yield from _versions(workspace)
    if engine is not None:
        yield from _engine(engine, known, held, mend)


def _lock(workspace: Workspace, held: str | None, mend: bool) -> Iterator[Finding]:
    if workspace.is_remote and held is None and not mend:
        from gristmill.remote.examine import lock

        yield lock(workspace)
    elif held is None:
        yield Finding(check="lock", level="ok", what="held by this command" if mend else "nobody holds it")
    else:
        yield Finding(check="lock", level="ok", what=f"held by process {held}, which is alive")


def _lines(workspace: Workspace, mend: bool) -> Iterator[Finding]:
    """Files that only grow: a torn last line, and lines that are damaged."""
    for path in sorted(
        path for folder in (".", "reviews", "sinks") for path in workspace.root.glob(f"{folder}/*.jsonl")
    ):
        name = path.relative_to(workspace.root).as_posix()
        data = path.read_bytes()
        whole, tail = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
        if tail:
            yield _cut_tail(workspace, path, whole, tail, mend)
        bad = []
        for number, line in enumerate(whole.splitlines(keepends=True), 1):
            try:
                parse_lines(line, name, name)
            except NewerSchema:
                yield Finding(
                    check="files",
                    level="wrong",
                    what=f"{name}, line {number}, was written by a newer Gristmill",
                    mend="use that version, or a newer one, with this workspace",
                )
            except StoreError:
                bad.append(number)
        if bad:
            yield _take_out(workspace, path, whole, bad, mend)
        elif not tail:
            yield Finding(check="files", level="ok", what=f"{name}: {many(len(whole.splitlines()), 'line')}")


def _cut_tail(workspace: Workspace, path: Path, whole: bytes, tail: bytes, mend: bool) -> Finding:
    name = path.relative_to(workspace.root).as_posix()
    if mend:
        aside = free_place(workspace, name)
        aside.write_bytes(tail)
        with path.open("rb+") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    return Finding(
        check="files",
        level="wrong",
        what=f"{name} ends in a torn line of {len(tail)} bytes: its writer was killed, and what it said is owed again",
        mend=f"the line was moved to {_shown(workspace, aside)}"
        if mend
        else "the next run cuts it off, or --mend does",
        mended=mend,
    )


def _take_out(workspace: Workspace, path: Path, whole: bytes, bad: list[int], mend: bool) -> Finding:
    """Damaged lines, out of the file; each line stands for itself."""
    name = path.relative_to(workspace.root).as_posix()
    words = f"line{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad[:5]))}{' …' if len(bad) > 5 else ''}"
    if mend:
        lines = whole.splitlines(keepends=True)
        aside = free_place(workspace, name)
        aside.write_bytes(b"".join(lines[number - 1] for number in bad))
        workspace.put_file(name, b"".join(line for number, line in enumerate(lines, 1) if number not in bad))
    loss = {
        "journal.jsonl": "the stages that they tell of are still cached",
        "runs.jsonl": "the artifacts are all there",
        "champions.jsonl": "a promotion that they tell of is entered again by the next run of its recipe",
    }.get(name, "what they said is not known any more")
    return Finding(
        check="files",
        level="wrong",
        what=f"{name}, {words}: damaged, so nothing can read the file; {loss}",
        mend=f"moved to {_shown(workspace, aside)}"
        if mend
        else "--mend moves them to damaged/; or restore from a copy",
        mended=mend,
    )


def _space(workspace: Workspace) -> Iterator[Finding]:
    free = shutil.disk_usage(workspace.root).free
    checkpoints = [folder_bytes(path) for path in (workspace.root / "artifacts" / "checkpoint").glob("*")]
    # A turn writes a checkpoint, and beside it, while it trains, about two more to resume from.
    needed = max([_LEAST_FREE, *(3 * size for size in checkpoints)])
    level: Literal["ok", "wrong"] = "ok" if free >= needed else "wrong"
    yield Finding(
        check="disk",
        level=level,
        what=f"{free / 1e9:.1f} GB free; a turn takes up to about {needed / 1e9:.1f} GB",
        mend=None if level == "ok" else "`gristmill gc` says what this workspace can spare",
    )


def _artifacts(workspace: Workspace, deep: bool, mend: bool, progress: Progress | None) -> Iterator[Finding]:
    if workspace.is_remote:
        from gristmill.remote.examine import artifacts

        yield from artifacts(workspace, deep, mend, progress)
        return
    store = workspace.store
    folders = [
        path
        for path in sorted((workspace.root / "artifacts").glob("*/*"))
        if path.is_dir() and not path.name.startswith(".")
    ]
    wrong = 0
    sizes = [folder_bytes(path) for path in folders]
    done = 0
    for folder, size in zip(folders, sizes, strict=True):
        if progress and deep:
            progress(done, sum(sizes), "bytes hashed again")
        done += size
        ref = ArtifactRef.model_validate({"kind": folder.parent.name, "digest": folder.name})
        try:
            if not (folder / MANIFEST).is_file():
                words = "has no manifest, so it does not exist: a deletion was cut short, or the file is lost"
            elif not _sizes_hold(workspace, ref):
                words = _what_differs(workspace, ref)
            elif deep:
                store.verify(ref)
                continue
            else:
                continue
        except StoreError as error:
            words = str(error).removeprefix(f"{ref.location}/").split("; delete")[0]
        wrong += 1
        if mend:
            aside = free_place(workspace, ref.location)
            os.rename(folder, aside)
        yield Finding(
            check="artifacts",
            level="wrong",
            what=f"{ref.short}: {words}",
            mend=f"set aside as {_shown(workspace, aside)}; the next run makes it again"
            if mend
            else "--mend sets it aside, and the next run that needs it makes it again",
            mended=mend,
        )
    for path in (workspace.root / "artifacts").glob("*/.tmp-*"):
        yield Finding(
            check="artifacts",
            level="note",
            what=f"{_shown(workspace, path)} was left by a killed run",
            mend="the next run removes it",
        )
    if not wrong:
        yield Finding(check="artifacts", level="ok", what=f"{len(folders)} artifacts, {how(deep)}")


def how(deep: bool) -> str:
    """How artifacts were looked at, where nothing is wrong."""
    return "every byte hashed again" if deep else "sizes as their manifests say; --deep hashes every byte again"


def _sizes_hold(workspace: Workspace, ref: ArtifactRef) -> bool:
    return workspace.store.exists(ref)


def _what_differs(workspace: Workspace, ref: ArtifactRef) -> str:
    folder = workspace.root / ref.location
    for entry in workspace.store.manifest(ref).files:
        path = folder / entry.name
        if not path.is_file():
            return f"{entry.name} is missing"
        if path.stat().st_size != entry.bytes:
            return f"{entry.name} has {path.stat().st_size:,} bytes, expected {entry.bytes:,}"
    return "its manifest cannot be read"


def _records(workspace: Workspace, mend: bool) -> Iterator[Finding]:
    """Result records that name what is not there: each is a cache miss, and no harm."""
    ghosts = dangling(workspace)
    if not ghosts:
        return
    if mend:
        for path in ghosts:
            path.unlink()
    yield Finding(
        check="results",
        level="note",
        what=f"{len(ghosts)} cached results name artifacts that are gone, so their stages run again when needed",
        mend="the records were removed" if mend else "no harm; --mend removes the records",
        mended=mend,
    )


def _work(workspace: Workspace, known: Sequence[Run], held: str | None) -> Iterator[Finding]:
    """Unfinished collections and trainings: kept for whoever goes on, and worth knowing where nobody will."""
    for path in sorted((workspace.root / "work").glob("*")):
        size = folder_bytes(path) / 1e6
        if held is not None:
            yield Finding(check="work", level="ok", what=f"{path.name}, {size:.1f} MB: in use, or to go on with")
            continue
        last = known[-1] if known else None
        ended = last is not None and last.outcome == "done"
        yield Finding(
            check="work",
            level="note",
            what=f"{path.name}, {size:.1f} MB: unfinished",
            mend="`gristmill gc` clears what no unfinished run needs"
            if ended
            else "`gristmill resume` goes on with it",
        )


def _processes(workspace: Workspace, held: str | None, mend: bool) -> Iterator[Finding]:
    if held is not None:
        return
    for process in left_behind(workspace):
        words = " ".join(process.info["cmdline"] or [process.info["name"]])
        if mend:
            end(process)
        yield Finding(
            check="processes",
            level="wrong",
            what=f"process {process.pid} still works for this workspace, and the run that began it is gone: "
            f"{words[:120]}",
            mend="it was ended" if mend else f"--mend ends it, or `kill {process.pid}`",
            mended=mend,
        )


def _versions(workspace: Workspace) -> Iterator[Finding]:
    """What the newest artifact was made with, against today's."""
    store = workspace.store
    manifests = []
    for ref in store.refs():
        try:
            manifests.append(store.manifest(ref))
        except StoreError:  # said by _artifacts
            continue
    if not manifests:
        return
    newest = max(manifests, key=lambda one: (one.created, one.digest))
    today = environment()
    differ = [
        f"{name} {newest.environment[name]} → {today.get(name, 'none')}"
        for name in sorted(newest.environment)
        if newest.environment[name] != today.get(name)
    ]
    if differ:
        yield Finding(
            check="versions",
            level="note",
            what=f"the newest artifact was made with other versions: {', '.join(differ)}",
            mend="cached stages stay cached; what runs anew may differ in the last digits",
        )
    else:
        yield Finding(check="versions", level="ok", what="as the newest artifact was made with")
    later = [one for one in manifests if one.created > now()]
    if later:
        yield Finding(
            check="clock",
            level="note",
            what=f"{len(later)} artifacts are dated in the future: a clock was set back; nothing depends on the dates",
        )


def _engine(engine: Engine, known: Sequence[Run], held: str | None, mend: bool) -> Iterator[Finding]:
    if engine.url is None:
        yield Finding(check="server", level="ok", what="none is configured: each run starts its own")
        return
    if not engine.answers:
        yield Finding(
            check="server",
            level="wrong",
            what=f"the Prefect API at {engine.url} does not answer",
            mend="start it, or unset PREFECT_API_URL",
        )
        return
    yield Finding(check="server", level="ok", what=f"{engine.url} answers")
    over = [run for run in known if run.engine is not None and not (held is not None and run is known[-1])]
    if engine.unfinished is None or not over:
        return
    numbers = {run.engine: run.number for run in over}
    for identity, state in engine.unfinished([run.engine for run in over if run.engine]):
        if mend and engine.crash:
            engine.crash(identity)
        of = f"run {numbers[identity]}" if identity in numbers else "a turn of a run"
        yield Finding(
            check="server",
            level="wrong",
            what=f"flow run {identity} ({of}) is {state} there, and its process is gone",
            mend="it was set to Crashed" if mend else "--mend sets it to Crashed",
            mended=mend,
        )


def free_place(workspace: Workspace, name: str) -> Path:
    """A free place under `damaged/`."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    path = workspace.root / "damaged" / f"{name.removeprefix('artifacts/').replace('/', '-')}.{stamp}"
    path.parent.mkdir(exist_ok=True)
    count = 1
    while path.exists():
        count += 1
        path = path.with_name(f"{path.name}-{count}")
    return path


def _shown(workspace: Workspace, path: Path) -> str:
    return path.relative_to(workspace.root).as_posix()
