"""The rollout table: its columns, and how it is read.

A table is a folder of `part-*.parquet` files; their rows, file after file, stand in the order of the input.
Every line of the input that is not blank is one row. What can be selected on has a column; the line itself
stands in `raw`, byte for byte, which only those read who format or show rows.

Rows that cannot be used have a `drop_reason` (gristmill/reasons.py); columns that could not be read are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.errors import ArtifactMissing

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@cache
def schema() -> pa.Schema:
    """Columns of a part, in order."""
    import pyarrow as pa

    return pa.schema(
        [
            # identity
            ("rollout_id", pa.string()),  # first 32 hex digits of the sha256 of the line's bytes
            ("source", pa.string()),  # the file, by its shortest telling name
            ("line", pa.int64()),  # from 1, blank lines counted
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
    """The lines of the rows at these positions of one part, as they stood in the input.

    Args:
        part: a `part-*.parquet`.
        rows: positions in the part, from 0, ascending.

    Only row groups that hold such a row are read, one at a time.
    """
    import numpy as np
    import pyarrow.parquet as pq

    at = np.asarray(rows, np.int64)
    if not len(at):
        return
    with pq.ParquetFile(part) as file:
        start = 0
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            first, last = np.searchsorted(at, [start, stop])
            if last > first:
                lines = file.read_row_group(group, columns=["raw"])["raw"]
                yield from lines.take(at[first:last] - start).to_pylist()
            start = stop
