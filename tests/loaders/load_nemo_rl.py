"""NeMo RL, mirrored: it cannot be installed from a package index, so its checks and its rendering are repeated here.

Sources, repository NVIDIA-NeMo/RL: `OpenAIFormatDataset.format_data` and `PreservingDataset` in
nemo_rl/data/datasets/response_datasets/oai_format_dataset.py (13de9e4c), `sft_processor` and
`preference_preprocessor` in nemo_rl/data/processors.py (006a7dad), `get_formatted_message_log` in
nemo_rl/data/llm_message_utils.py as of 2026 (each message is the difference of two renderings, with the generation
prompt after user and tool messages), `PreferenceDataset` in preference_datasets/ (07cd9a1b; read by `datasets`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import yaml


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    settings = yaml.safe_load((export / f"{method}.yaml").read_text())["data"]
    words = tiny.tokenizer(template)
    path = export / settings["train"]["data_path"].removeprefix("${oc.env:GRISTMILL_EXPORT}/")
    if method == "sft":
        assert settings["train"]["use_preserving_dataset"] is True
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{"": sft(words, row, settings["add_generation_prompt"])} for row in rows]
    from datasets import load_dataset

    return [pair(words, row) for row in load_dataset("json", data_files=str(path))["train"]]


def sft(words: Any, row: dict[str, Any], prompted: bool) -> dict[str, Any]:
    assert row["messages"][-1]["role"] == "assistant"
    log = rendered(words, row["messages"], prompted, tools=row.get("tools"))
    return learned(words, log, [message["role"] == "assistant" for message in row["messages"]])


def pair(words: Any, row: dict[str, Any]) -> tiny.Row:
    completions = row["completions"]
    assert len(completions) == 2, "RM/DPO training supports only two completions"
    assert completions[0]["rank"] < completions[1]["rank"]
    made = {}
    for side, completion in zip(("chosen", "rejected"), completions, strict=True):
        messages = row["context"] + completion["completion"]
        log = rendered(words, messages, prompted=False)
        last = [False] * (len(messages) - 1) + [True]  # loss on the last message only
        made[side] = learned(words, log, last)
    return made


def rendered(words: Any, messages: list[dict[str, Any]], prompted: bool, tools: Any = None) -> list[str]:
    log, before = [], ""
    for index, message in enumerate(messages):
        more = {"tools": tools} if tools is not None else {}
        after = prompted and message["role"] in ("user", "tool")
        text = words.apply_chat_template(messages[: index + 1], add_generation_prompt=after, tokenize=False, **more)
        same = next((at for at, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(before))
        log.append(text[min(same, len(text)) :])
        before = text
    return log


def learned(words: Any, log: list[str], mask: list[bool]) -> dict[str, Any]:
    ids: list[int] = []
    keep: list[bool] = []
    for text, learns in zip(log, mask, strict=True):
        tokens = words(text, add_special_tokens=False)["input_ids"]
        ids += tokens
        keep += [learns] * len(tokens)
    return tiny.side(words, ids, keep)


tiny.main(load)
