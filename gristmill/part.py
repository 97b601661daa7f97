"""One part of a rollout table: a stretch of the input becomes one Parquet file.

A `PartWriter` works in any process. What it cannot know alone (the number of its first line, whether a row
repeats one of an earlier part) it asks for through `settle`, giving what the answer needs; all else follows
from its lines.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import orjson
from xxhash import xxh3_128_digest

from gristmill import columns
from gristmill.errors import InputError
from gristmill.identity import fingerprint
from gristmill.reasons import DropReason
from gristmill.rollout import Reader, Reading
from gristmill.table import REFERRED, schema

_LIMIT = (1 << 31) - 1  # an Arrow binary array's
_GROUP_BYTES = 8 << 20  # raw bytes in a row group, about: what a reader of one row must decompress
_BLOCK = 1 << 18  # bytes read at a time
_COUNTED = 1 << 22  # the same, where lines are only counted
_LEVEL = 3  # of zstd: a tenth slower than level 1 here, and two fifths smaller


class Segment(NamedTuple):
    """A stretch of one file that starts at a line's start and ends at a line's end."""

    source: int
    """Index of the file."""
    name: str
    run: str
    path: str
    start: int
    stop: int
    data: bytes | None
    """The bytes, where they cannot be read at `start` because the file is compressed."""
    last: bool
    """Whether the file ends here, so that the last line may be torn."""
    size: int = 0
    """Of the file, on disk."""
    modified: int = 0
    """When the file was, as `st_mtime_ns`."""


class Part(NamedTuple):
    number: int
    segments: tuple[Segment, ...]
    out: str
    """Folder of the table."""
    progress: int
    """Bytes of input files that are done with when this part is."""
    copy: bool
    """Whether the part holds its lines, or only says where they stand."""


class Claim(NamedTuple):
    """What one part tells of its rows, in order, so that the input as a whole can be settled."""

    lines: list[int]
    """Lines in each segment, blank ones counted."""
    rows: list[int]
    """Rows in each segment."""
    at: list[int]
    """Each row's line within its segment, from 0."""
    digests: list[bytes]
    """Each row's fingerprint (gristmill/identity.py)."""
    identities: list[bytes | None]
    """For a row that would be kept and has a task and a rollout index: what stands for the two."""
    reasons: list[DropReason | None]


class Settled(NamedTuple):
    """The answer to a claim."""

    first_lines: list[int]
    """Number of each segment's first line, from 1."""
    duplicates: list[int]
    """Positions of rows that repeat an earlier row."""


class _Rows(NamedTuple):
    """The rows of a part while it is read; lists with one entry a row."""

    claim: Claim
    ends: list[int]
    """Where each row's line ends when all lie one after another; begins with 0."""
    stands: list[int]
    """Where each row's line starts in its file."""
    readings: list[Reading]


class PartWriter:
    """Writes one part after another, and keeps what it learned of the rows.

    Where lines are copied, they gather in one buffer and are handed to the Parquet writer as they lie there: new
    pages of memory cost more than anything that is done with them.
    """

    def __init__(self) -> None:
        self._reader = Reader()
        self._buffer = bytearray()

    def write(self, part: Part, settle: Callable[[Claim], Settled]) -> None:
        """Read the part's lines, settle them, write `part-<number>.parquet`.

        Raises:
            InputError: a file is not as long as it was, or cannot be read.
        """
        size = sum(segment.stop - segment.start for segment in part.segments)
        if size > _LIMIT:
            raise InputError(f"{part.segments[-1].path} has a line of more than 2 GiB; no rollout is that long")
        if part.copy and len(self._buffer) < size:
            self._buffer = bytearray(size + size // 8)  # parts differ by a line
        rows = _Rows(Claim([], [], [], [], [], []), [0], [], [])
        for segment in part.segments:
            self._read(segment, rows, part.copy)
        claim, readings = rows.claim, rows.readings
        runs = [s.run for s, count in zip(part.segments, claim.rows, strict=True) for _ in range(count)]
        keys = self._task_keys(runs, readings)
        for key, reading in zip(keys, readings, strict=True):
            if key is None or reading.rollout_index is None or reading.drop_reason is not None:
                claim.identities.append(None)
            else:
                claim.identities.append(f"{key}{reading.rollout_index}".encode())
        settled = settle(claim)
        if readings:
            self._save(part, rows, settled, runs, keys)

    def _task_keys(self, runs: list[str], readings: list[Reading]) -> list[str | None]:
        """Each row's task; repeats of a task mostly stand side by side."""
        keys: list[str | None] = []
        before: tuple[object, ...] = ()
        key: str | None = None
        for run, reading in zip(runs, readings, strict=True):
            identity = (run, reading.groupable, reading.agent, reading.task_index, reading.prompt_key)
            if identity != before:
                key, before = task_key(run, reading), identity
            keys.append(key)
        return keys

    def _read(self, segment: Segment, rows: _Rows, copy: bool) -> None:
        """Read the segment's lines."""
        claim, ends, stands, readings = rows
        before = len(readings)
        read = self._reader.read
        number = 0
        at = segment.start
        end = ends[-1]
        for line in _lines(segment):
            if not line.isspace():
                reading = read(line)
                ended = line[-1] == 10
                text = memoryview(line)[:-1] if ended else line
                if not ended and segment.last and (reason := _torn(line, reading.drop_reason)):
                    reading = msgspec.structs.replace(reading, drop_reason=reason)
                readings.append(reading)
                claim.reasons.append(reading.drop_reason)
                claim.digests.append(xxh3_128_digest(text))
                claim.at.append(number)
                if copy:
                    self._buffer[end : end + len(text)] = text
                end += len(text)
                ends.append(end)
                stands.append(at)
            number += 1
            at += len(line)
        claim.lines.append(number)
        claim.rows.append(len(readings) - before)

    def _save(
        self,
        part: Part,
        rows: _Rows,
        settled: Settled,
        runs: list[str],
        keys: list[str | None],
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        claim, ends, stands, readings = rows
        reasons: list[DropReason | None] = list(claim.reasons)
        for position in settled.duplicates:
            reasons[position] = DropReason.DUPLICATE_ROLLOUT
        firsts = zip(part.segments, settled.first_lines, claim.rows, strict=True)
        places = [(segment.name, first) for segment, first, rows in firsts for _ in range(rows)]
        told = zip(*map(msgspec.structs.astuple, readings), strict=True)
        values: dict[str, Sequence[Any]] = dict(zip(Reading.__struct_fields__, told, strict=True))
        values |= {
            "rollout_id": [digest.hex() for digest in claim.digests],
            "source": [name for name, _ in places],
            "line": [first + at for (_, first), at in zip(places, claim.at, strict=True)],
            "offset": stands,
            "run": runs,
            "task_key": keys,
            "drop_reason": reasons,
            "row_bytes": [stop - start for start, stop in itertools.pairwise(ends)],
            "truncated": [reading.incomplete is not None for reading in readings],
        }
        arrays = [columns.build(values[field.name], field.type) for field in schema() if field.name != "raw"]
        metadata = None
        if part.copy:
            arrays.append(columns.binary(self._buffer, ends))
        else:
            arrays.append(pa.nulls(len(readings), pa.binary()))
            files = {s.name: (s.path, s.size, s.modified) for s in part.segments}
            metadata = {REFERRED: orjson.dumps(files)}
        table = pa.Table.from_arrays(arrays, schema=schema().with_metadata(metadata))
        plain = {"raw", "rollout_id", "answer_key"}
        pq.write_table(
            table,
            Path(part.out) / f"part-{part.number:05d}.parquet",
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=[name for name in table.column_names if name not in plain],
            write_statistics=[name for name in table.column_names if name != "raw"],
            row_group_size=max(1, len(readings) * _GROUP_BYTES // max(ends[-1], 1)) if part.copy else len(readings),
        )


_writer: PartWriter | None = None


def write_part(part: Part, settle: Callable[[Claim], Settled]) -> None:
    """`PartWriter.write`, in a process that keeps its writer: what workers run."""
    global _writer
    _writer = _writer or PartWriter()
    _writer.write(part, settle)


class Counted(NamedTuple):
    """A part whose lines before it are counted, for a process that cannot ask (gristmill/fleet.py)."""

    part: Part
    first_lines: list[int]
    duplicates: list[int]
    folder: str
    """Of the table."""


def count_lines(part: Part) -> list[int]:
    """Lines of each of the part's segments."""
    counts = []
    for segment in part.segments:
        left, ends, last = segment.stop - segment.start, 0, b"\n"
        try:
            with _stream(segment) as stream:
                while left and (block := stream.read(min(left, _COUNTED))):
                    ends += block.count(b"\n")
                    last = block[-1:]
                    left -= len(block)
        except OSError as error:
            raise InputError(f"{segment.path} cannot be read: {error.strerror or error}") from None
        counts.append(ends + (last != b"\n"))
    return counts


def write_counted(job: Counted) -> Claim:
    """Write the part as if no rows repeated earlier ones but those that are named."""
    claims: list[Claim] = []

    def settle(claim: Claim) -> Settled:
        claims.append(claim)
        return Settled(job.first_lines, job.duplicates)

    write_part(job.part._replace(out=job.folder), settle)
    return claims[0]


def task_key(run: str, reading: Reading) -> str | None:
    """Identity of a row's task within its run: agent, task index and prompt; None if it cannot be known."""
    if not reading.groupable:
        return None
    identity = "\x1f".join((run, reading.agent or "", str(reading.task_index), reading.prompt_key or ""))
    return fingerprint(identity.encode())


def _lines(segment: Segment) -> Iterator[bytes]:
    """The segment's lines with their line ends, read in blocks that stay in the processor's cache."""
    left = segment.stop - segment.start
    try:
        with _stream(segment) as stream:
            while left:
                line = stream.readline(left)
                if not line:
                    raise InputError(
                        f"{segment.path} became shorter while it was read; wait until its writer has ended"
                    )
                left -= len(line)
                yield line
    except OSError as error:
        raise InputError(f"{segment.path} cannot be read: {error.strerror or error}") from None


def _stream(segment: Segment) -> BinaryIO:
    if segment.data is not None:
        return io.BytesIO(segment.data)
    file = open(segment.path, "rb", _BLOCK)  # noqa: SIM115  the caller closes it
    file.seek(segment.start)
    return file


def _torn(line: bytes, reason: DropReason | None) -> DropReason | None:
    """TORN_LINE for an object that a file's end cut off while it was written; anything else there is what it is."""
    started = line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    return DropReason.TORN_LINE if started and reason is DropReason.NOT_JSON else None
