"""`gristmill review`: rollouts of files or of a run, one at a time in the browser.

What is given are rollout files, folders or globs, or the name of a recipe that ran in the workspace: then the sample
that its run drew is opened, or one is drawn from the rollouts that its last run trained on. Decisions go to the
workspace's log and count for every later run there.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from rich.console import Console
from rich.live import Live
from rich.progress import Progress as ProgressBar
from rich.text import Text

from gristmill.decisions import DecisionLog, effective, login_name
from gristmill.errors import UsageError
from gristmill.workspace import Workspace

if TYPE_CHECKING:
    from gristmill.review.queue import Queue
    from gristmill.review.session import Progress, Status

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")  # of a recipe


@dataclass(frozen=True)
class Sizes:
    """Of the sample: how many rollouts of low, middle and high reward. With `everything` or conditions, all (such)."""

    low: int = 10
    middle: int = 10
    high: int = 10
    seed: int = 0
    everything: bool = False
    where: tuple[str, ...] = ()

    @property
    def sampled(self) -> bool:
        return not (self.everything or self.where)


class _Opened(NamedTuple):
    """What is under review."""

    queue: Queue
    title: str
    waiting: str


def review(
    what: Sequence[str],
    *,
    workspace: Path,
    sizes: Sizes,
    reviewer: str | None = None,
    port: int = 0,
    log: Path | None = None,
    browser: bool = False,
    status: bool = False,
    export: Path | None = None,
    take: Path | None = None,
    json: bool = False,
) -> None:
    """Serve the page until interrupted, or do what `status`, `export` or `take` (import) say instead.

    Raises:
        UsageError: nothing to review is meant by `what`, or a file or port cannot be used.
        InputError: a file to import holds something else.
    """
    from gristmill.review.waiting import log_of

    place = Workspace(workspace)
    who = (reviewer or login_name()).strip() or login_name()
    decisions = DecisionLog(log) if log else log_of(place)
    with _open(what, place, sizes, effective(decisions.entries())) as opened:
        if take is not None:
            _import(take, decisions, who, opened.queue, json)
        if export is not None:
            _export(export, decisions, who, opened.queue, json)
        if status:
            _tell(opened, decisions, json)
        if take is None and export is None and not status:
            _serve(opened, decisions, who, port, browser, json)


# ---- what is meant


@contextmanager
def _open(what: Sequence[str], place: Workspace, sizes: Sizes, judged: Mapping[str, str]) -> Iterator[_Opened]:
    if len(what) == 1 and _NAME.fullmatch(what[0]) and not Path(what[0]).exists():
        yield _run(what[0], place, sizes, judged)
        return
    from gristmill.ingest import ingest
    from gristmill.rollout_files import find_rollout_files

    files = find_rollout_files(what)  # which shows its own progress, where it takes long
    with tempfile.TemporaryDirectory(prefix="gristmill-review-") as folder:
        with ProgressBar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading", total=None)
            result = ingest(
                files,
                Path(folder),
                copy=False,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if not result.rows_kept:
            raise UsageError(
                f"none of the {result.rows_read:,} rows can be used; `gristmill inspect {what[0]}` says why of each"
            )
        title = Path(what[0]).name + (f" and {len(what) - 1} more" if len(what) > 1 else "")
        yield _Opened(_queue([result.tables], sizes, judged), title, "")


def _run(name: str, place: Workspace, sizes: Sizes, judged: Mapping[str, str]) -> _Opened:
    """The sample of a run, or one of what its last run trained on."""
    from gristmill.review import queue
    from gristmill.review.waiting import announced, names, read_sample
    from gristmill.table import parts

    store = place.store
    if (drawn := announced(place, name)) and sizes.sampled:
        tables = [parts(store.path(table)) for table in drawn.tables]
        title = f"{name}, turn {drawn.turn}"
        waiting = "A run that waits for these goes on by itself now. You can close this page."
        return _Opened(queue.sampled(tables, read_sample(store, drawn.sample), drawn.seed), title, waiting)
    trained = _trained_on(name, place)
    if not trained:
        known = ", ".join(names(place))
        raise UsageError(
            f"{name} is neither a file nor a recipe that ran in workspace {place.root.name}"
            + (f"; there are samples of: {known}" if known else "; give rollout files, or the workspace with -w")
        )
    return _Opened(_queue([parts(store.path(table)) for table in trained], sizes, judged), name, "")


def _trained_on(name: str, place: Workspace) -> list[Any]:
    """Tables of training rollouts of the recipe's latest finished run: report → checkpoints → datasets → tables."""
    store = place.store
    reports = [store.manifest(ref) for ref in store.refs() if ref.kind == "report"]
    mine = [one for one in reports if one.stage == "report" and one.settings.get("name") == name]
    if not mine:
        return []
    last = max(mine, key=lambda one: one.created)
    tables: dict[str, Any] = {}
    stack, seen = [last.ref], {last.ref}
    while stack:
        manifest = store.manifest(stack.pop())
        if manifest.kind == "dataset":
            tables |= {ref.digest: ref for ref in manifest.parents if ref.kind == "table"}
        for ref in manifest.parents:
            if ref not in seen and store.exists(ref):
                seen.add(ref)
                stack.append(ref)
    return sorted(tables.values(), key=lambda ref: (store.manifest(ref).created, ref.digest))


def _queue(tables: Sequence[Sequence[Path]], sizes: Sizes, judged: Mapping[str, str]) -> Queue:
    from gristmill.review import queue
    from gristmill.sample import stratified

    if not sizes.sampled:
        return queue.everything(tables, sizes.where, judged)
    sample = stratified(tables, low=sizes.low, middle=sizes.middle, high=sizes.high, seed=sizes.seed)
    if not sample:
        raise UsageError("the sample is empty; ask for more with --low, --middle or --high, or for --all")
    return queue.sampled(tables, sample, sizes.seed)


# ---- what is done


def _serve(opened: _Opened, log: DecisionLog, who: str, port: int, browser: bool, json: bool) -> None:
    from gristmill.review.server import bind, serve
    from gristmill.review.session import Session
    from gristmill.review.session import status as status_of

    console = Console(stderr=True)
    line = Live(console=console, auto_refresh=False)  # drawn when something changes, not all the time

    def show(progress: Progress) -> None:
        line.update(Text(_progress_words(progress)), refresh=True)

    session = Session(
        opened.queue,
        log,
        who,
        title=opened.title,
        waiting=opened.waiting,
        on_decision=show if console.is_terminal else None,
    )
    address = bind(port)
    count = len(opened.queue.rollouts)
    console.print(
        Text(f"{opened.title}: {count:,} rollouts to review as {who}; decisions go to {_near(log.path)}"),
        soft_wrap=True,
    )
    print(address.url, flush=True)
    console.print("open this address in a browser of this machine; Ctrl-C ends", soft_wrap=True)
    if browser:
        import webbrowser

        webbrowser.open(address.url)
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to end a review: all decisions are on disk
        if console.is_terminal:
            with line:
                show(session.progress())
                serve(session, address)
        else:
            serve(session, address)
    if json:
        _print(_plain(status_of(opened.queue, log)))
    elif not console.is_terminal:
        console.print(Text(_progress_words(session.progress())), soft_wrap=True)


def _progress_words(progress: Progress) -> str:
    words = f"{progress.mine:,} of {progress.rollouts:,} decided"
    if progress.decided > progress.mine:
        words += f", {progress.decided - progress.mine:,} more by others"
    return words


def _import(path: Path, log: DecisionLog, who: str, queue: Queue, json: bool) -> None:
    from gristmill.review.sheet import import_sheet

    done = import_sheet(path, log, who, list(queue.known))
    if json:
        _print(done._asdict())
        return
    words = f"{done.added:,} decisions added to {_near(log.path)}"
    print(f"{words}; {done.known:,} known already, {done.undecided:,} undecided")
    if done.elsewhere:
        print(f"{done.elsewhere:,} of them are about rollouts that are not under review here")


def _export(path: Path, log: DecisionLog, who: str, queue: Queue, json: bool) -> None:
    from gristmill.review.sheet import write_sheet

    count = write_sheet(queue, log, who, path)
    if json:
        _print({"rollouts": count, "path": str(path)})
    else:
        print(f"{count:,} rollouts written to {path}; fill in `decision` (accept or reject), then --import it")


def _tell(opened: _Opened, log: DecisionLog, json: bool) -> None:
    from gristmill.review.session import status as status_of

    found = status_of(opened.queue, log)
    if json:
        _print(_plain(found))
        return
    print(
        f"{opened.title}: {found.rollouts:,} rollouts, {found.accepted:,} accepted, {found.rejected:,} rejected, "
        f"{found.undecided:,} undecided"
    )
    for name, count in found.reviewers.items():
        print(f"  {_printable(name)}: {count:,} decided")
    if found.tags:
        print("tags: " + ", ".join(f"{_printable(tag)} {count:,}" for tag, count in found.tags.items()))
    if found.disagreements:
        print(f"{len(found.disagreements):,} disagreed on (one rejection is enough to leave a rollout out):")
    for rollout_id, held in found.disagreements.items():
        said = "; ".join(
            f"{one.reviewer} {one.judgement}s" + (f" ({' '.join(one.note.split())[:80]})" if one.note else "")
            for one in held
        )
        print(f"  {rollout_id}  {_printable(said)}")


def _plain(found: Status) -> dict[str, Any]:
    values = found._asdict()
    values["disagreements"] = {
        rollout_id: [one.model_dump(mode="json") for one in held] for rollout_id, held in found.disagreements.items()
    }
    return values


def _near(path: Path) -> str:
    """Relative to here where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def _print(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


def _printable(text: str) -> str:
    """No control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
