"""TRL: runs the export's own train.py on a tiny model and shows what its trainer made of the rows; SFT trains, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    model = tiny.model(template, work / "model")
    words = tiny.tokenizer(template)
    before, after = (export / "train.py").read_text().split("trainer.train()\n")
    sys.argv = ["train.py", str(model)]
    scope: dict[str, Any] = {"__file__": str(export / "train.py"), "__name__": "__main__"}
    exec(compile(before, str(export / "train.py"), "exec"), scope)
    rows = [prepared(words, row, method) for row in scope["trainer"].train_dataset]
    if method == "sft" and len(rows) < 20:  # more would take minutes
        scope["trainer"].train()
        exec(compile(after, "train.py", "exec"), scope)
    return rows


def prepared(words: Any, row: dict[str, Any], method: str) -> tiny.Row:
    if method == "sft":
        return {"": tiny.side(words, row["input_ids"], [label != -100 for label in row["labels"]])}
    if method == "kto":
        ids = {"": (row["prompt_ids"], row["completion_ids"])}
    elif method == "dpo":
        ids = {side: (row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")}
    else:
        ids = {side: ([], row[f"{side}_ids"]) for side in ("chosen", "rejected")}
    return {
        side: tiny.side(words, prompt + answer, [False] * len(prompt) + [True] * len(answer))
        for side, (prompt, answer) in ids.items()
    }


tiny.main(load)
