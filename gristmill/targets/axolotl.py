"""Axolotl: Parquet with JSON columns, rendered by its chat_template strategy; preferences pass through to TRL.

    sft    messages, tools, meta        or, with token ids: input_ids, attention_mask, labels, meta
    dpo    TRL's rows (the passthrough strategy, which alone keeps tool calls)

Tools and arguments of SFT rows are JSON as text, which Axolotl decodes after it has taken every null key out of a row.
An answer in a prompt is marked `"train": false`, which `message_field_training` takes out of the loss. KTO and reward
models have only text formats there, without tools; for RL use the target gym with the plugin nemo_gym.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from gristmill.example import Example, Method, Preference, Sft, Tokens
from gristmill.targets import trl
from gristmill.targets.files import render, texts, write_columns
from gristmill.targets.limits import require_text
from gristmill.targets.protocol import Export, Row
from gristmill.targets.verl import unlearned


@dataclass(frozen=True, slots=True)
class Axolotl:
    """Rows for `axolotl train`."""

    name: str = "axolotl"
    methods: frozenset[Method] = frozenset(("sft", "dpo"))
    suffix: Literal["jsonl", "parquet"] = "parquet"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        match example:
            case Sft(prompt, completion, tools, meta):
                require_text(prompt, completion)
                messages = map(_argued, unlearned(prompt) + completion)
                row: dict[str, Any] = {"messages": texts(messages), "tools": orjson.dumps(tools)}
            case Tokens(input_ids, labels, meta):
                row = {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), "labels": labels}
            case Preference():
                return trl.json_columns(trl.columns(example))
            case _:
                raise TypeError(f"axolotl has sft and dpo, not {type(example).__name__}")
        return {**row, "meta": orjson.dumps(meta)}

    def write(self, rows: Sequence[Row], path: Path) -> None:
        import pyarrow as pa

        types = {**trl.types(), "messages": pa.list_(pa.json_()), "attention_mask": pa.list_(pa.int8())}
        if rows and "messages" in rows[0]:
            types["tools"] = pa.string()
        write_columns(rows, path, types)

    def finish(self, export: Export) -> None:
        render("axolotl.yaml.j2", export, f"{export.method}.yaml", looked=trl.look(export))


def _argued(message: dict[str, Any]) -> dict[str, Any]:
    """The message with arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    called = [
        {**call, "function": {**call["function"], "arguments": orjson.dumps(call["function"]["arguments"]).decode()}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": called}


AXOLOTL = Axolotl()
