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
from typing import TYPE_CHECKING

from gristmill.errors import ArtifactMissing

if TYPE_CHECKING:
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


def raw_lines(tables: Sequence[Path], where: str = "true") -> Iterator[tuple[str, bytes]]:
    """(rollout_id, line) of the rows for which the SQL condition holds, in row order, streamed."""
    import duckdb

    with duckdb.connect() as db:
        for path in tables:
            rows = db.execute(f"SELECT rollout_id, raw FROM read_parquet(?) WHERE {where}", [str(path)])
            while batch := rows.fetchmany(256):
                yield from batch
