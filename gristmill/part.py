"""One part of a rollout table: a stretch of the input becomes one Parquet file.

`write_part` runs in any process. What it cannot know alone (the number of its first line, whether a row
repeats one of an earlier part) it asks for through `settle`, giving what the answer needs; all else follows from
its lines.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill.errors import InputError
from gristmill.reasons import DropReason
from gristmill.rollout import Reader, Reading
from gristmill.table import schema

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_BYTES = 8 << 20  # raw bytes in a row group, about: what a reader of one row must decompress
_LEVEL = 1  # of zstd: rows shrink about sixfold; level 3 costs a third more time for a tenth less


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


class Part(NamedTuple):
    number: int
    segments: tuple[Segment, ...]
    out: str
    """Folder of the table."""
    progress: int
    """Bytes of input files that are done with when this part is."""


class Claim(NamedTuple):
    """What one part tells of its rows, in order, so that the input as a whole can be settled."""

    lines: list[int]
    """Lines in each segment, blank ones counted."""
    rows: list[int]
    """Rows in each segment."""
    at: list[int]
    """Each row's line within its segment, from 0."""
    digests: list[bytes]
    """Each row's sha256."""
    identities: list[bytes | None]
    """For a row that would be kept and has a task and a rollout index: a digest of those."""
    reasons: list[DropReason | None]


class Settled(NamedTuple):
    """The answer to a claim."""

    first_lines: list[int]
    """Number of each segment's first line, from 1."""
    duplicates: list[int]
    """Positions of rows that repeat an earlier row."""


def write_part(part: Part, reader: Reader, settle: Callable[[Claim], Settled]) -> None:
    """Read the part's lines, settle them, write `part-<number>.parquet`.

    Raises:
        InputError: a file is not as long as it was, or cannot be read.
    """
    import pyarrow.parquet as pq

    lines: list[bytes] = []
    claim = Claim([], [], [], [], [], [])
    readings: list[Reading] = []
    names: list[str] = []
    runs: list[str] = []
    task_keys: list[str | None] = []
    for segment in part.segments:
        data = segment.data if segment.data is not None else _bytes_of(segment)
        count = 0
        before = len(lines)
        for count, line in enumerate(_lines(data)):
            if not line or line.isspace():
                continue
            reading = reader.read(line)
            lines.append(line)
            claim.at.append(count)
            readings.append(reading)
        rows = len(lines) - before
        if rows and segment.last and not data.endswith(b"\n"):
            readings[-1] = _torn(lines[-1], readings[-1])
        claim.lines.append(data.count(b"\n") if data.endswith(b"\n") else count + 1)
        claim.rows.append(rows)
        names += [segment.name] * rows
        runs += [segment.run] * rows
        del data
    for line, reading, run in zip(lines, readings, runs, strict=True):
        claim.digests.append(hashlib.sha256(line).digest())
        key = task_key(run, reading)
        task_keys.append(key)
        claim.reasons.append(reading.drop_reason)
        known = key is not None and reading.rollout_index is not None and reading.drop_reason is None
        claim.identities.append(f"{key} {reading.rollout_index}".encode() if known else None)
    settled = settle(claim)
    if not lines:
        return
    reasons: list[DropReason | None] = list(claim.reasons)
    for position in settled.duplicates:
        reasons[position] = DropReason.DUPLICATE_ROLLOUT
    numbers = [
        first + at
        for first, at in zip(
            itertools.chain.from_iterable(
                itertools.repeat(first, rows)
                for first, rows in zip(settled.first_lines, claim.rows, strict=True)
            ),
            claim.at,
            strict=True,
        )
    ]
    table = _table(lines, claim.digests, names, numbers, runs, task_keys, readings, reasons)
    total = sum(map(len, lines))
    pq.write_table(
        table,
        Path(part.out) / part_name(part.number),
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=[
            name for name in table.column_names if name not in ("raw", "rollout_id", "answer_key")
        ],
        write_statistics=[name for name in table.column_names if name != "raw"],
        row_group_size=max(1, len(lines) * _GROUP_BYTES // max(total, 1)),
        write_page_index=False,
    )


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def task_key(run: str, reading: Reading) -> str | None:
    """Identity of a row's task within its run: agent, task index and prompt; None if it cannot be known."""
    if not reading.groupable:
        return None
    identity = "\x1f".join((run, reading.agent or "", str(reading.task_index), reading.prompt_key or ""))
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _bytes_of(segment: Segment) -> bytes:
    size = segment.stop - segment.start
    try:
        with open(segment.path, "rb") as file:
            file.seek(segment.start)
            data = file.read(size)
    except OSError as error:
        raise InputError(f"{segment.path} cannot be read: {error.strerror or error}") from None
    if len(data) < size:
        raise InputError(f"{segment.path} became shorter while it was read; wait until its writer has ended")
    return data


def _lines(data: bytes) -> Iterator[bytes]:
    """Lines without their newline; one at a time, because a copy of each costs less than a copy of all."""
    start = 0
    find = data.find
    while (stop := find(b"\n", start)) >= 0:
        yield data[start:stop]
        start = stop + 1
    if start < len(data):
        yield data[start:]


def _torn(line: bytes, reading: Reading) -> Reading:
    """An object that a file's end cut off was being written; anything else at the end is what it is."""
    started = line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    if started and reading.drop_reason is DropReason.NOT_JSON:
        return reading._replace(drop_reason=DropReason.TORN_LINE)
    return reading


def _table(
    lines: Sequence[bytes],
    digests: Sequence[bytes],
    names: Sequence[str],
    numbers: Sequence[int],
    runs: Sequence[str],
    task_keys: Sequence[str | None],
    readings: Sequence[Reading],
    reasons: Sequence[DropReason | None],
) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Sequence[Any]] = dict(zip(Reading._fields, zip(*readings, strict=True), strict=True))
    columns |= {
        "rollout_id": [digest.hex()[:32] for digest in digests],
        "source": names,
        "line": numbers,
        "run": runs,
        "task_key": task_keys,
        "drop_reason": reasons,
        "row_bytes": [len(line) for line in lines],
        "truncated": [reading.incomplete is not None for reading in readings],
        "raw": lines,
    }
    arrays = []
    for field in schema():
        values = columns[field.name]
        if pa.types.is_map(field.type):
            arrays.append(_map(values, field.type))
        elif field.name == "raw":
            arrays.append(
                pa.chunked_array([pa.array(chunk, field.type) for chunk in _below_limit(lines)], field.type)
            )
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema())


def _map(values: Sequence[Mapping[str, object]], kind: pa.MapType) -> pa.Array:
    """Maps with sorted keys."""
    import pyarrow as pa

    offsets = [0, *itertools.accumulate(len(value) for value in values)]
    pairs = [pair for value in values for pair in sorted(value.items())]
    keys = pa.array([key for key, _ in pairs], kind.key_type)
    return pa.MapArray.from_arrays(offsets, keys, pa.array([item for _, item in pairs], kind.item_type), kind)


def _below_limit(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Runs of lines that fit an Arrow binary array (2 GiB)."""
    start = size = 0
    for position, line in enumerate(lines):
        if size and size + len(line) > 1 << 30:
            yield lines[start:position]
            start, size = position, 0
        size += len(line)
    yield lines[start:]
