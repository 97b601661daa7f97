"""OpenRLHF 0.11.2: its own dataset classes, with the keys that the export's train.sh gives."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    from openrlhf.datasets import RewardDataset, SFTDataset
    from openrlhf.datasets.utils import blending_datasets

    flags = dict(re.findall(r"--data\.(\w+)(?: '?([^\s'\\]+)'?)?", (export / "train.sh").read_text()))
    keys = {key: value for key, value in flags.items() if key.endswith("_key")}
    data = SimpleNamespace(output_key=None, tokenizer_chat_template=None, apply_chat_template=True)
    vars(data).update(keys)
    strategy = SimpleNamespace(
        args=SimpleNamespace(data=data, use_ms=False), print=lambda *_: None, is_rank_0=lambda: False
    )
    raw = blending_datasets(str(export / flags["dataset"]), strategy=strategy)
    words, length = tiny.tokenizer(template), int(flags["max_len"])
    if method == "sft":
        made = SFTDataset(raw, words, length, strategy, num_processors=1, multiturn="multiturn" in flags)
        return [sft(words, *made[number]) for number in range(len(made))]
    made = RewardDataset(raw, words, length, strategy, is_dpo=method == "dpo", num_processors=1)
    return [pair(words, made[number], method) for number in range(len(made))]


def sft(words: Any, ids: Any, _: Any, mask: Any) -> tiny.Row:
    # Position i predicts token i + 1.
    learned = [False, *(weight > 0 for weight in mask[0].tolist()[:-1])]
    return {"": tiny.side(words, ids[0].tolist(), learned)}


def pair(words: Any, made: Any, method: str) -> tiny.Row:
    chosen, _, rejected, _, prompt = made
    length = prompt if method == "dpo" else 0
    row = {}
    for side, ids in (("chosen", chosen[0].tolist()), ("rejected", rejected[0].tolist())):
        row[side] = tiny.side(words, ids, [index >= length for index in range(len(ids))])
    return row


tiny.main(load)
