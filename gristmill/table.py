"""The rollout table: its columns, and how it is read.

A table is a folder of `part-*.parquet` files; their rows, file after file, stand in the order of the input.
Every line of the input that is not blank is one row. What can be selected on has a column; the line itself
stands in `raw`, byte for byte. A table that is thrown away soon may do without that copy: `raw` is then null, and
the part's metadata names the files. `read_raw` gives the lines of either.

Rows that cannot be used have a `drop_reason` (gristmill/reasons.py); columns that could not be read are null.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gristmill import columns
from gristmill.errors import ArtifactMissing, InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


REFERRED = b"gristmill.files"
"""Key in a part's metadata: the files that hold its lines, where the part has no copy: name → `Referred`."""


class Referred(NamedTuple):
    """A file as it was when it was ingested."""

    path: str
    size: int
    modified: int
    """In nanoseconds, as `st_mtime_ns`."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Its descriptor.

        Raises:
            InputError: it is gone, or not what it was.
        """
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115  closed below
        except OSError as error:
            raise InputError(f"{self.path} cannot be read again: {error.strerror or error}") from None
        with file:
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.size, self.modified):
                raise InputError(
                    f"{self.path} changed while it was worked on; wait until its writer has ended, and run again"
                )
            yield file.fileno()


@cache
def schema() -> pa.Schema:
    """Columns of a part, in order."""
    import pyarrow as pa

    return pa.schema(
        [
            # identity
            ("rollout_id", pa.string()),  # fingerprint of the line's bytes
            ("source", pa.string()),  # the file, by its shortest telling name
            ("line", pa.int64()),  # from 1, blank lines counted
            ("offset", pa.int64()),  # of the line's first byte in the file, uncompressed
            ("run", pa.string()),  # the file, by content
            ("agent", pa.string()),
            ("task_index", pa.int64()),
            ("rollout_index", pa.int64()),
            ("task_key", pa.string()),  # null: ungroupable
            ("prompt_key", pa.string()),  # equal across runs for equal instructions, input and tools
            # scores
            ("reward", pa.float64()),
            ("metrics", pa.map_(pa.string(), pa.float64())),
            ("labels", pa.map_(pa.string(), pa.string())),
            # shape
            ("model", pa.string()),
            ("turns", pa.int32()),
            ("tool_calls", pa.int32()),
            ("tools_called", pa.list_(pa.string())),
            ("output_items", pa.int32()),
            ("answer_key", pa.string()),
            ("answer_chars", pa.int64()),
            ("prompt_chars", pa.int64()),
            ("output_tokens", pa.int64()),
            ("row_bytes", pa.int64()),
            # flags
            ("truncated", pa.bool_()),
            ("incomplete", pa.string()),
            ("masked", pa.bool_()),
            ("drop_reason", pa.string()),
            # payload
            ("raw", pa.binary()),
        ]
    )


def parts(folder: Path) -> list[Path]:
    """The files of a table, in row order.

    Raises:
        ArtifactMissing: there are none.
    """
    found = sorted(folder.glob("part-*.parquet"))
    if not found:
        raise ArtifactMissing(f"{folder} holds no rollout table (no part-*.parquet); ingest the rollouts again")
    return found


def read_raw(part: Path, rows: Sequence[int] | np.ndarray[Any, Any]) -> Iterator[bytes]:
    """The lines of the rows at these positions of one part, as they stood in the input, one at a time.

    Args:
        part: a `part-*.parquet`.
        rows: positions in the part, from 0, ascending.

    Raises:
        InputError: the part has no copy of the lines, and their file is gone or has changed.
    """
    import numpy as np
    import pyarrow.parquet as pq

    at = np.asarray(rows, np.int64)
    if not len(at):
        return
    with pq.ParquetFile(part) as file:
        files = orjson.loads((file.metadata.metadata or {}).get(REFERRED, b"null"))
        if files is not None:
            places = file.read(columns=["source", "offset", "row_bytes"]).take(columns.integers(at))
            yield from _in_files({name: Referred(*entry) for name, entry in files.items()}, places)
            return
        # only the row groups that hold such a row, one after another
        start = 0
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            first, last = np.searchsorted(at, [start, stop])
            if last > first:
                lines = file.read_row_group(group, columns=["raw"])["raw"]
                wanted = columns.integers(at[first:last] - start)
                yield from (line.as_py() for line in lines.take(wanted))
            start = stop


def _in_files(files: dict[str, Referred], places: pa.Table) -> Iterator[bytes]:
    """Lines read from the files that a table refers to."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, int] = {}
        told = (places[name].to_pylist() for name in ("source", "offset", "row_bytes"))
        for name, offset, size in zip(*told, strict=True):
            if name not in opened:
                opened[name] = stack.enter_context(files[name].opened())
            yield os.pread(opened[name], size, offset)
