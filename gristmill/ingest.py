"""Ingest: rollout files become the rollout table, in parallel and in flat memory.

Reads `.jsonl`, plain or compressed (gzip, zstd; told by content), directories and globs. Writes Parquet parts
(gristmill/table.py) into a folder that the caller made and will publish. Guarantees:

* every line that is not blank is one row: rows_read = rows_kept + Σ dropped;
* equal input gives equal bytes, with any number of workers: a part is a fixed stretch of the input, and what
  crosses parts (line numbers, duplicates) is settled in the order of the input;
* memory is bounded by a few parts; workers end with their parent, however it ends.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from xxhash import xxh3_128, xxh3_128_digest

from gristmill import fleet, segments
from gristmill.columns import numbers
from gristmill.errors import InputError
from gristmill.inputs import InputsRead, write_inputs
from gristmill.part import Claim, Counted, Part, PartWriter, Settled
from gristmill.reasons import DropReason
from gristmill.rollout_files import find_rollout_files
from gristmill.segments import cut_parts, is_packed, names_of, run_of
from gristmill.table import parts, read_raw
from gristmill.workers import Worker, crew

_AHEAD_PACKED = 4  # parts of compressed files that are under way at a time: they travel as bytes
_WRITE = "gristmill.part:write_counted"
_PARALLEL_FROM = 3 * segments.PART_BYTES  # below this a second process costs more than it gives


@dataclass(frozen=True)
class IngestResult:
    """What became of the lines. `dropped` has reasons that occurred; `examples` the first line of each."""

    rows_read: int
    rows_kept: int
    dropped: dict[DropReason, int]
    examples: dict[DropReason, tuple[str, int]]
    tables: list[Path]
    sources: list[dict[str, Any]]
    """One a file: `name`, `fingerprint` (of its rows' fingerprints, in order), `bytes` (uncompressed), `rows`."""
    inputs: InputsRead
    """Of the materialized inputs that lie beside the files (gristmill/inputs.py)."""


# ---- settling what crosses parts


class _Ledger:
    """Settles claims in the order of the parts, whoever brings them first, and keeps the counts."""

    def __init__(self, names: Sequence[str], progress: Callable[[int, int], None] | None, total: int) -> None:
        self._turn = threading.Condition()
        self._next = 0
        self._stopped = False
        self._names = names
        self.files = len(names)
        self._progress = progress
        self._total = total
        self._done = 0
        self._lines = [0] * len(names)
        self._bytes = [0] * len(names)
        self._digests = [xxh3_128() for _ in names]
        self.source_rows = [0] * len(names)
        self._seen: set[bytes] = set()
        self.rows = 0
        self.dropped: Counter[DropReason] = Counter()
        self.examples: dict[DropReason, tuple[str, int]] = {}

    def settle(self, part: Part, claim: Claim) -> Settled:
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._next == part.number)
            if self._stopped:
                raise _Stopped
            first_lines: list[int] = []
            duplicates: list[int] = []
            position = 0
            for segment, lines, rows in zip(part.segments, claim.lines, claim.rows, strict=True):
                first = self._lines[segment.source] + 1
                first_lines.append(first)
                self._lines[segment.source] += lines
                self._bytes[segment.source] += segment.stop - segment.start
                self.source_rows[segment.source] += rows
                self._digests[segment.source].update(b"".join(claim.digests[position : position + rows]))
                for row in range(position, position + rows):
                    reason = claim.reasons[row]
                    if reason is None and self._repeats(claim.digests[row], claim.identities[row]):
                        duplicates.append(row)
                        reason = DropReason.DUPLICATE_ROLLOUT
                    if reason is not None:
                        self.dropped[reason] += 1
                        self.examples.setdefault(reason, (segment.name, first + claim.at[row]))
                position += rows
            self.rows += position
            self._next += 1
            self._turn.notify_all()
        return Settled(first_lines, duplicates)

    def _repeats(self, line: bytes, identity: bytes | None) -> bool:
        """Whether a usable row is known already; it is known from now on."""
        # 15 bytes, so that it is never taken for a line's 16
        key = line if identity is None else xxh3_128_digest(identity)[:15]
        if line in self._seen or key in self._seen:
            return True
        self._seen.add(line)
        self._seen.add(key)
        return False

    def written(self, part: Part) -> None:
        with self._turn:
            self._done = max(self._done, part.progress)
            if self._progress is not None:
                self._progress(self._done, self._total)

    def stop(self) -> None:
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def sources(self) -> list[dict[str, Any]]:
        columns = zip(self._names, self._digests, self._bytes, self.source_rows, strict=True)
        return [
            {"name": name, "fingerprint": seen.hexdigest(), "bytes": size, "rows": rows}
            for name, seen, size, rows in columns
        ]


class _Stopped(Exception):
    """Another part failed; this one's result is not wanted."""


# ---- ingest


def ingest(
    paths: Sequence[Path | str],
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    quarantine: Path | None = None,
    copy: bool = True,
) -> IngestResult:
    """Read rollout files into a rollout table.

    Args:
        paths: files, directories and globs, as `find_rollout_files` takes them.
        out: an empty folder; made if it is not there. After an error what stands in it is of no use.
        workers: processes, this one counted; as many as there are cores if not given, one for small input.
        progress: called with (bytes of the files done, bytes in all), never from two threads at once.
        quarantine: folder for the dropped lines, as `write_quarantine` writes them.
        copy: keep the lines in the table, so that it needs its files no more. Without, plain files are referred
            to, and ingest costs a third of the time: for a table that does not outlive its files.

    Raises:
        InputError: a file is absent, unreadable, binary or damaged, or there is no row at all.
    """
    files = find_rollout_files(paths)
    out.mkdir(parents=True, exist_ok=True)
    total = sum(file.stat().st_size for file in files)
    if workers is None and total < _PARALLEL_FROM:
        workers = 1
    ledger = _Ledger(names_of(files), progress, total)
    work = cut_parts(files, out, copy)
    if workers is None and (cluster := fleet.current()):
        packed = any(is_packed(file) for file in files)
        _write_on(cluster, work, ledger, out, _AHEAD_PACKED if packed else None)
    else:
        _write_parts(work, ledger, workers)
    if not ledger.rows:
        raise InputError(f"{files[0]} is empty" if len(files) == 1 else f"none of the {len(files)} files has a row")
    inputs = write_inputs([(file, run_of(file)) for file in files], out)
    dropped = {reason: ledger.dropped[reason] for reason in DropReason if ledger.dropped[reason]}
    result = IngestResult(
        rows_read=ledger.rows,
        rows_kept=ledger.rows - sum(dropped.values()),
        dropped=dropped,
        examples={reason: ledger.examples[reason] for reason in dropped},
        tables=parts(out),
        sources=ledger.sources(),
        inputs=inputs,
    )
    if quarantine is not None:
        write_quarantine(result.tables, quarantine)
    return result


def _write_parts(work: Iterator[Part], ledger: _Ledger, workers: int | None) -> None:
    """Write all parts, in this process and its crew's children."""
    taking = threading.Lock()
    failures: list[BaseException] = []

    def drain(write: Callable[[Part, Callable[[Claim], Settled]], None]) -> None:
        try:
            while not failures:
                with taking:
                    part = next(work, None)
                if part is None:
                    return
                write(part, functools.partial(ledger.settle, part))
                ledger.written(part)
        except _Stopped:
            pass
        except BaseException as error:
            failures.append(error)
            ledger.stop()

    with crew(workers) as shared:
        threads: list[threading.Thread] = []
        try:
            for child in shared.children(shared.workers - 1):
                # in the caller's context, which says where progress is heard
                task = functools.partial(contextvars.copy_context().run, drain, functools.partial(_in_child, child))
                threads.append(threading.Thread(target=task, daemon=True))
                threads[-1].start()
            drain(PartWriter().write)
            for thread in threads:
                thread.join()
        finally:
            ledger.stop()
            for thread in threads:
                thread.join()
    if failures:
        raise failures[0]


def _in_child(child: Worker, part: Part, settle: Callable[[Claim], Settled]) -> None:
    child.run("gristmill.part:write_part", part, settle)


def _write_on(cluster: fleet.Fleet, work: Iterator[Part], ledger: _Ledger, out: Path, ahead: int | None) -> None:
    """Write all parts on a cluster, whose processes cannot ask in mid-part what the parts before them hold.

    So lines are counted first, which reads the input once more; and a part that turns out to repeat rows of earlier
    parts, which is rare, is written again.

    Args:
        ahead: parts that may be under way; as many as the cluster likes if not given.
    """
    listed: deque[Part] = deque()
    written: deque[Part] = deque()

    def counted() -> Iterator[Part]:
        for part in work:
            listed.append(part)
            yield part

    def numbered() -> Iterator[Counted]:
        lines = [0] * ledger.files
        for counts in fleet.map_on(cluster, "gristmill.part:count_lines", counted(), ahead=ahead):
            part = listed.popleft()
            firsts = []
            for segment, count in zip(part.segments, counts, strict=True):
                firsts.append(lines[segment.source] + 1)
                lines[segment.source] += count
            written.append(part)
            yield Counted(part, firsts, [], str(out))

    def repeated() -> Iterator[Counted]:
        for claim in fleet.map_on(cluster, _WRITE, numbered(), ahead=ahead):
            part = written.popleft()
            settled = ledger.settle(part, claim)
            ledger.written(part)
            if settled.duplicates:
                yield Counted(part, settled.first_lines, settled.duplicates, str(out))

    for _ in fleet.map_on(cluster, _WRITE, repeated(), ahead=ahead):
        pass


def write_quarantine(tables: Sequence[Path], folder: Path) -> int:
    """Write the dropped lines of a table, byte for byte, and why.

    `dropped.jsonl` has the lines as they stood in their files; the same line of `reasons.jsonl` has `reason`,
    `source`, `line` and `rollout_id`. Returns how many.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "dropped.jsonl").open("wb") as lines, (folder / "reasons.jsonl").open("wb") as reasons:
        for path in tables:
            told = pq.ParquetFile(path).read(columns=["drop_reason", "source", "line", "rollout_id"])
            told = told.rename_columns(["reason", "source", "line", "rollout_id"])
            dropped = pc.is_valid(told["reason"])
            at = pc.indices_nonzero(dropped)
            for why, raw in zip(told.take(at).to_pylist(), read_raw(path, numbers(at)), strict=True):
                lines.write(raw + b"\n")
                reasons.write(orjson.dumps(why) + b"\n")
            count += len(at)
    return count
