"""OpenRLHF: Parquet with JSON columns; conversations under names that its own columns do not collide with.

    sft            messages, meta
    dpo, reward    prompt_messages, chosen_messages, rejected_messages, margin, meta

Tools are never given to the chat template: they stand in the system text. With `--data.multiturn` every assistant turn
carries loss, so that answers in a prompt are refused. Turns are found by rendering prefixes: the template must keep
what it rendered before (Qwen 3's does not; TRL's qwen3_training.jinja does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from gristmill.example import Example, Method, Preference, Sft, Tokens
from gristmill.targets.files import render, texts, write_columns
from gristmill.targets.fold import fold_tools
from gristmill.targets.limits import require_no_earlier_answers, require_no_token_ids, require_single, require_text
from gristmill.targets.protocol import Export, Row

_SIDES = ("prompt_messages", "chosen_messages", "rejected_messages")


@dataclass(frozen=True, slots=True)
class OpenRlhf:
    """Rows for openrlhf.cli.train_sft, train_dpo and train_rm."""

    name: str = "openrlhf"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "reward"))
    suffix: Literal["jsonl", "parquet"] = "parquet"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        match example:
            case Sft(prompt, completion, tools, meta):
                require_text(prompt, completion)
                require_no_earlier_answers(prompt)
                row: dict[str, Any] = {"messages": texts(fold_tools(prompt, tools) + completion)}
            case Preference(prompt, chosen, rejected, tools, margin, meta):
                require_text(prompt, chosen, rejected)
                require_single(chosen, rejected)
                sides = (fold_tools(prompt, tools), chosen, rejected)
                row = {**dict(zip(_SIDES, map(texts, sides), strict=True)), "margin": margin}
            case Tokens():
                require_no_token_ids()
            case _:
                raise TypeError(f"openrlhf has sft, dpo and reward, not {type(example).__name__}")
        return {**row, "meta": orjson.dumps(meta)}

    def write(self, rows: Sequence[Row], path: Path) -> None:
        import pyarrow as pa

        messages = dict.fromkeys(("messages", *_SIDES), pa.list_(pa.json_()))
        write_columns(rows, path, {**messages, "margin": pa.float64(), "meta": pa.json_()})

    def finish(self, export: Export) -> None:
        render("openrlhf.sh.j2", export, "train.sh")


OPENRLHF = OpenRlhf()
