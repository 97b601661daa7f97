"""verl: Parquet with messages and tools as JSON text, and the dataset class that reads them.

    sft    messages, tools, meta        or, with token ids: input_ids, labels, meta

verl reads Parquet with pandas, which knows no JSON type, and structs would fill missing argument keys with null. Hence
text, decoded by `gristmill_dataset.py`, which is part of the export. An answer in a prompt is marked `"train": false`,
which that class takes out of the loss. verl has no trainer for preferences; for RL use the target gym.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from gristmill.example import Example, Method, Sft, Tokens
from gristmill.targets.files import render, write_columns
from gristmill.targets.limits import require_text
from gristmill.targets.protocol import Export, Row


@dataclass(frozen=True, slots=True)
class Verl:
    """Rows for verl.trainer.sft_trainer."""

    name: str = "verl"
    methods: frozenset[Method] = frozenset(("sft",))
    suffix: Literal["jsonl", "parquet"] = "parquet"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        match example:
            case Sft(prompt, completion, tools, meta):
                require_text(prompt, completion)
                messages = unlearned(prompt) + completion
                row: dict[str, Any] = {"messages": orjson.dumps(messages), "tools": orjson.dumps(tools)}
            case Tokens(input_ids, labels, meta):
                row = {"input_ids": input_ids, "labels": labels}
            case _:
                raise TypeError(f"verl has sft alone, not {type(example).__name__}")
        return {**row, "meta": orjson.dumps(meta)}

    def write(self, rows: Sequence[Row], path: Path) -> None:
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        types = {"input_ids": ids, "labels": ids}
        write_columns(rows, path, {**dict.fromkeys(("messages", "tools", "meta"), pa.string()), **types})

    def finish(self, export: Export) -> None:
        import pyarrow.parquet as pq

        token_ids = any("input_ids" in pq.read_schema(export.folder / name).names for name in export.train)
        render("verl_dataset.py.j2", export, "gristmill_dataset.py")
        render("verl.sh.j2", export, "train.sh", dataset="TokenIds" if token_ids else "JsonColumns")


def unlearned(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The prompt with `"train": false` in its answers."""
    return [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]


VERL = Verl()
