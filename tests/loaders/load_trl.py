"""TRL: runs the export's own train.py on a tiny model and shows what its trainer made of the rows; SFT trains, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    model = tiny.model(template, work / "model")
    words = tiny.tokenizer(template)
    if (export / f"{method}.yaml").exists():
        understood(export / f"{method}.yaml", method)
    before, after = (export / "train.py").read_text().split("trainer.train()\n")
    sys.argv = ["train.py", str(model)]
    scope: dict[str, Any] = {"__file__": str(export / "train.py"), "__name__": "__main__"}
    exec(compile(before, str(export / "train.py"), "exec"), scope)
    rows = [prepared(words, row, method) for row in scope["trainer"].train_dataset]
    if method == "sft" and len(rows) < 20:  # more would take minutes
        scope["trainer"].train()
        exec(compile(after, "train.py", "exec"), scope)
    return rows


def understood(config: Path, method: str) -> None:
    """The `trl` command's own parser takes every key of the config; it ends the program at one it does not know."""
    import trl

    kind = getattr(trl, {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward"}[method] + "Config")
    parser = trl.TrlParser((trl.ScriptArguments, kind, trl.ModelConfig, trl.DatasetMixtureConfig))
    made = parser.parse_args_and_config(["--config", str(config), "--use_cpu", "true", "--bf16", "false"])
    assert made[1].max_length and made[3].datasets


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
