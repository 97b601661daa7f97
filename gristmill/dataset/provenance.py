"""Which rollouts made which row: written beside every dataset, read back by row or by rollout.

`provenance.parquet` has a row for each (row of the dataset, rollout): `split`, `row` (from 0, over the split's files in
order), `role` (only, chosen, rejected, attempt), `rollout_id`, `task_key`, `reward`, `source` and `line` (from 1) of
the rollout's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill import columns
from gristmill.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

PROVENANCE = "provenance.parquet"


class Source(NamedTuple):
    """A rollout behind a row."""

    split: str
    row: int
    role: str
    rollout_id: str
    task_key: str | None
    reward: float
    source: str
    line: int


def schema() -> pa.Schema:
    """Columns of `provenance.parquet`."""
    import pyarrow as pa

    kinds = {"row": pa.int64(), "reward": pa.float64(), "line": pa.int64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Source._fields])


def table(values: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Columns, by the names of `Source`'s fields, as an Arrow table."""
    import pyarrow as pa

    arrays = [columns.build(values[field.name], field.type) for field in schema()]
    return pa.Table.from_arrays(arrays, schema=schema())


def provenance(export: Path, row: int, split: str = "train") -> list[Source]:
    """The rollouts that a row of an export was made from.

    Args:
        export: folder of the export, or of a dataset in the store.
        row: from 0, over the split's files in order.
        split: train or validation.

    Raises:
        UsageError: no export, or no such row.
    """
    found = _read(export, [("split", "=", split), ("row", "=", row)])
    if not found:
        raise UsageError(f"{export} has no row {row} in {split}; rows count from 0 over the files of the split")
    return found


def rows_of(export: Path, rollout_id: str) -> list[Source]:
    """The rows of an export that a rollout went into; none if it went into none.

    Raises:
        UsageError: no export.
    """
    return _read(export, [("rollout_id", "=", rollout_id)])


def _read(export: Path, filters: list[tuple[str, str, object]]) -> list[Source]:
    import pyarrow.parquet as pq

    path = export / PROVENANCE
    if not path.is_file():
        raise UsageError(f"{export} is no export of ours: it has no {PROVENANCE}")
    return [Source(**one) for one in pq.read_table(path, filters=filters).to_pylist()]
