"""The input cut into parts that can be read anywhere: fixed by the files' text, never by workers.

Cuts stand at line ends. A compressed file, which can only be read from its start, is cut while it is decompressed, at
the places where its plain copy would be; its parts then carry their text.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from gristmill.errors import InputError
from gristmill.part import Part, Segment

PART_BYTES = 32 << 20
_ENDS = 1 << 20
_PROBE = 4096
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def cut_parts(files: Sequence[Path], out: Path, copy: bool) -> Iterator[Part]:
    """The input as parts of about `PART_BYTES`; small files share one. Depends on the files alone."""

    def part() -> Part:
        # a line inside a compressed file cannot be read again by its place
        return Part(number, tuple(held), str(out), progress, copy or any(s.data is not None for s in held))

    names = names_of(files)
    number = size = progress = 0
    held: list[Segment] = []
    for source, path in enumerate(files):
        try:
            for segment, used in _segments(source, names[source], path):
                if held and size + segment.stop - segment.start > PART_BYTES:
                    yield part()
                    number, size, held = number + 1, 0, []
                held.append(segment)
                size += segment.stop - segment.start
                progress += used
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if held:
        yield part()


def names_of(files: Sequence[Path]) -> list[str]:
    """Each file's shortest telling name: relative to the folder that all of them share."""
    absolute = [Path(os.path.abspath(file)) for file in files]
    shared = Path(os.path.commonpath([file.parent for file in absolute]))
    return [file.relative_to(shared).as_posix() for file in absolute]


def run_of(path: Path) -> str:
    """A file's identity by content: its size and its two ends, so that no file is read twice for it."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        seen = hashlib.sha256(str(size).encode() + b"\n" + file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        seen.update(file.read(_ENDS))
    return seen.hexdigest()[:32]


def is_packed(path: Path) -> bool:
    """Whether the file is compressed."""
    with path.open("rb") as file:
        return file.read(4).startswith((_GZIP, _ZSTD))


def _segments(source: int, name: str, path: Path) -> Iterator[tuple[Segment, int]]:
    """A file's segments, each with the bytes of the file that it used up.

    Cuts stand at the first line end at or after `PART_BYTES`, in the uncompressed text, so a file and its
    compressed copies fall into the same parts.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        stat = os.fstat(file.fileno())
        whole = os.path.abspath(path)
        segment = Segment(source, name, run_of(path), whole, 0, 0, None, True, stat.st_size, stat.st_mtime_ns)
        if magic.startswith((_GZIP, _ZSTD)):
            yield from _compressed(file, magic, segment)
            return
        _refuse_binary(path, file.read(_PROBE))
        size = stat.st_size
        start = 0
        while start < size:
            stop = _line_end(file, start + PART_BYTES - 1, size)
            yield segment._replace(start=start, stop=stop, last=stop == size), stop - start
            start = stop


def _line_end(file: IO[bytes], position: int, size: int) -> int:
    """The position after the first newline at or after `position`, or the file's size."""
    if position >= size:
        return size
    file.seek(position)
    while block := file.read(1 << 16):
        if (at := block.find(b"\n")) >= 0:
            return min(size, file.tell() - len(block) + at + 1)
    return size


def _compressed(file: IO[bytes], magic: bytes, segment: Segment) -> Iterator[tuple[Segment, int]]:
    stream: Any
    if magic.startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=file)
    else:
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    pending = b""
    used = start = 0
    ended = False
    while not ended:
        blocks = [pending]
        held = len(pending)
        # searched from where a cut may stand; a line longer than a part is read on until it ends
        while (cut := _cut(blocks, held)) < 0:
            try:
                block = stream.read(1 << 22)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(
                    f"{segment.path} is damaged: it cannot be decompressed beyond {start + held} bytes "
                    f"({error}); decompress what can be saved and name that file instead"
                ) from None
            if not block:
                ended = True
                cut = held
                break
            blocks.append(block)
            held += len(block)
        text = b"".join(blocks)
        if start == 0:
            _refuse_binary(Path(segment.path), text[:_PROBE])
        pending = text[cut:]
        if cut:
            now = file.tell()
            last = ended or not (pending or (pending := stream.read(1 << 22)))
            yield segment._replace(start=start, stop=start + cut, data=text[:cut], last=last), now - used
            used, start, ended = now, start + cut, last


def _cut(blocks: list[bytes], held: int) -> int:
    """Where the text so far can be cut, or -1. Only the newest block has places not looked at before."""
    if held < PART_BYTES:
        return -1
    base = held - len(blocks[-1])
    at = blocks[-1].find(b"\n", max(0, PART_BYTES - 1 - base))
    return base + at + 1 if at >= 0 else -1


def _refuse_binary(path: Path, head: bytes) -> None:
    if b"\x00" in head:
        raise InputError(f"{path} is a binary file; expected JSON lines, plain or compressed with gzip or zstd")
