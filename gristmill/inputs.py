"""Task fields: what NeMo Gym's rollouts leave out and their materialized inputs hold.

A rollout row lacks its dataset row's fields (question, answer, options, difficulty …); they stand in
`NAME_materialized_inputs.jsonl` beside `NAME.jsonl`. Here they become `inputs.parquet` in the table's folder:

    run, task_index, rollout_index     join these with the table's columns of the same names
    fields                             the other fields of the dataset row, as JSON text

In SQL: `fields->>'difficulty'`. The first of several rows with one key counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from gristmill import columns
from gristmill.rollout import Unreadable, parse
from gristmill.rollout_files import MATERIALIZED, sidecar

INPUTS = "inputs.parquet"
_BATCH = 8192  # rows written at a time
# the prompt, which the rollout has too, and the stamps
_LEFT_OUT = frozenset({"responses_create_params", "agent_ref", "_ng_task_index", "_ng_rollout_index"})


class InputsRead(NamedTuple):
    """How many rows of the sidecars were taken, and how many lines were no such rows."""

    rows: int
    unreadable: int


def write_inputs(files: Sequence[tuple[Path, str]], out: Path) -> InputsRead:
    """Write `inputs.parquet` from the sidecars of rollout files, given with their runs, if there are any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    beside = [(inputs, run) for path, run in files if (inputs := sidecar(path, MATERIALIZED)).is_file()]
    if not beside:
        return InputsRead(0, 0)
    schema = pa.schema(
        [
            ("run", pa.string()),
            ("task_index", pa.int64()),
            ("rollout_index", pa.int64()),
            ("fields", pa.string()),
        ]
    )
    rows = unreadable = 0
    batch: list[tuple[str, int, int, str]] = []
    with pq.ParquetWriter(out / INPUTS, schema, compression="zstd") as writer:

        def flush() -> None:
            arrays = [
                columns.build(list(values), field.type)
                for values, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            batch.clear()

        for path, run in beside:
            seen: set[tuple[int, int]] = set()
            for row in _read(path):
                if row is None:
                    unreadable += 1
                elif row[:2] not in seen:
                    seen.add(row[:2])
                    batch.append((run, *row))
                    rows += 1
                    if len(batch) == _BATCH:
                        flush()
        if batch:
            flush()
    return InputsRead(rows, unreadable)


def _read(path: Path) -> Iterator[tuple[int, int, str] | None]:
    """Task index, rollout index and fields of each line; None for one that is torn or has no indices."""
    with path.open("rb") as lines:
        for line in lines:
            if line.isspace():
                continue
            try:
                row = parse(line)
                task, rollout = row["_ng_task_index"], row["_ng_rollout_index"]
                fields = orjson.dumps({name: value for name, value in row.items() if name not in _LEFT_OUT})
            except (Unreadable, KeyError, TypeError):
                yield None
                continue
            whole = all(type(value) is int and 0 <= value < 1 << 63 for value in (task, rollout))
            yield (task, rollout, fields.decode()) if whole else None
