"""Unsloth: TRL's Parquet rows, and a program that renders them and puts loss on the assistant's turns alone.

    sft    prompt, completion, tools, meta
    dpo    prompt, chosen, rejected, tools, margin, meta

Unsloth needs a GPU to be imported, so that its launch is not verified here; the rows are those of the target trl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gristmill.example import Example, Method, Sft
from gristmill.targets import trl
from gristmill.targets.files import render, write_columns
from gristmill.targets.limits import require_no_earlier_answers
from gristmill.targets.protocol import Export, Row


@dataclass(frozen=True, slots=True)
class Unsloth:
    """Rows for Unsloth's patched TRL trainers."""

    name: str = "unsloth"
    methods: frozenset[Method] = frozenset(("sft", "dpo"))
    suffix: Literal["jsonl", "parquet"] = "parquet"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        if isinstance(example, Sft):
            require_no_earlier_answers(example.prompt)  # train_on_responses_only finds every answer
        return trl.json_columns(trl.columns(example))

    def write(self, rows: Sequence[Row], path: Path) -> None:
        write_columns(rows, path, trl.types())

    def finish(self, export: Export) -> None:
        render("unsloth.py.j2", export, "train.py", looked=trl.look(export))


UNSLOTH = Unsloth()
