"""Format: selected rollouts become rows in a training format, with the rollout that each row came from.

Reads a selection and the raw rows it chose (only those); writes

    train.parquet        prompt, completion (chat messages), tools: as JSON values, which keeps every key set exact
    provenance.parquet   row, rollout_id, task_key, reward: which rollout made which row

Rows stand in the order of the selection, so equal input gives equal bytes. A rollout that has no chat form is
dropped with its reason, never mangled. Arguments stay objects, nothing is null-filled: the message columns hold
Arrow's JSON type, which `datasets` reads as `List(Json())`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gristmill import chat
from gristmill.rollout import parse
from gristmill.table import read_raw

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN = "train.parquet"
PROVENANCE = "provenance.parquet"
_BATCH = 4096  # rows converted and written at a time


def write_sft(selection: Path, tables: Sequence[Sequence[Path]], counted: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write prompt-completion rows for supervised fine-tuning.

    Args:
        selection: a `selection.parquet`.
        tables: the Parquet files of each table that it was made from, in the same order.
        counted: the selection's counts.
        out: folder that gets the two files.

    Returns:
        The selection's counts with `rows_kept` and `dropped` brought up to date, and `examples`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.json_())
    schema = pa.schema([("prompt", messages), ("completion", messages), ("tools", messages), ("meta", pa.json_())])
    origin = pa.schema(
        [
            ("row", pa.int64()),
            ("rollout_id", pa.string()),
            ("task_key", pa.string()),
            ("reward", pa.float64()),
        ]
    )
    lost: Counter[str] = Counter()
    written = 0
    with (
        pq.ParquetWriter(out / TRAIN, schema, compression="zstd") as rows_to,
        pq.ParquetWriter(out / PROVENANCE, origin, compression="zstd") as origin_to,
    ):
        for batch in _chosen(selection, tables):
            rows: list[dict[str, Any]] = []
            origins: list[dict[str, Any]] = []
            for chosen in batch:
                try:
                    conversation = chat.convert(parse(chosen["raw"]))
                    chat.require_trainable(conversation)
                except chat.Unrepresentable as problem:
                    lost[problem.reason] += 1
                    continue
                rows.append(_sft_row(conversation, chosen))
                origins.append(
                    {
                        "row": written + len(origins),
                        **{k: chosen[k] for k in ("rollout_id", "task_key", "reward")},
                    }
                )
            written += len(rows)
            rows_to.write_table(_table(rows, schema))
            origin_to.write_table(pa.Table.from_pylist(origins, schema=origin))
    dropped = Counter(counted["dropped"])
    dropped.update(lost)
    return {**counted, "rows_kept": written, "examples": written, "dropped": dict(sorted(dropped.items()))}


def _sft_row(conversation: chat.Conversation, chosen: dict[str, Any]) -> dict[str, Any]:
    split = conversation.prompt_length
    return {
        "prompt": [_json(m) for m in conversation.messages[:split]],
        "completion": [_json(m) for m in conversation.messages[split:]],
        "tools": [_json(t) for t in conversation.tools],
        "meta": _json({k: chosen[k] for k in ("rollout_id", "task_key", "reward")}),
    }


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """JSON columns are built as text and then given their type, since Arrow does not convert to it."""
    import pyarrow as pa

    def column(field: pa.Field) -> pa.Array:
        values = [row[field.name] for row in rows]
        if pa.types.is_list(field.type):
            text = pa.array(values, pa.list_(pa.string()))
            inner = pa.ExtensionArray.from_storage(pa.json_(), text.values)
            return pa.ListArray.from_arrays(text.offsets, inner)
        return pa.ExtensionArray.from_storage(pa.json_(), pa.array(values, pa.string()))

    return pa.table([column(field) for field in schema], schema=schema)


def _chosen(selection: Path, tables: Sequence[Sequence[Path]]) -> Iterator[list[dict[str, Any]]]:
    """Chosen rows with their raw bytes, a batch at a time, in the selection's order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pq.read_table(selection)
    wanted = wanted.filter(pc.is_null(wanted["reason"]))
    at_table, at_file = wanted["at_table"].to_numpy(), wanted["at_file"].to_numpy()
    pending: list[dict[str, Any]] = []
    for number, files in enumerate(tables):
        for order, path in enumerate(files):
            mine = wanted.filter((at_table == number) & (at_file == order))
            named = mine.select(["rollout_id", "task_key", "reward"]).to_pylist()
            for row, raw in zip(named, read_raw(path, mine["at_row"].to_numpy()), strict=True):
                pending.append({**row, "raw": raw})
                if len(pending) == _BATCH:
                    yield pending
                    pending = []
    yield pending
