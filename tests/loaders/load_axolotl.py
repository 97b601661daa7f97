"""Axolotl 0.19: its chat_template strategy, set up from the export's own YAML."""

from __future__ import annotations

from pathlib import Path

import tiny
import yaml


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    from axolotl.prompt_strategies.chat_template import load as strategy
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    settings = yaml.safe_load((export / f"{method}.yaml").read_text())
    words, rows = tiny.tokenizer(template), []
    for entry in settings["datasets"]:
        raw = load_dataset(entry["ds_type"], data_files=str(export / entry["path"]), split=entry["split"])
        if {"input_ids", "attention_mask", "labels"} <= set(raw.column_names):
            # Taken as they are: `_is_dataset_already_tokenized` in axolotl/utils/data/wrappers.py, which cannot be
            # imported without the GPU dependencies.
            rows += [
                {"": tiny.side(words, row["input_ids"], [label != -100 for label in row["labels"]])} for row in raw
            ]
            continue
        prepare = strategy(words, DictDefault(settings), DictDefault(entry))
        made = raw.map(prepare.tokenize_prompt, remove_columns=raw.column_names)
        for row in made:
            rows.append({"": tiny.side(words, row["input_ids"], [label != -100 for label in row["labels"]])})
    return rows


tiny.main(load)
