"""Axolotl 0.19: its chat_template strategy, set up from the export's own YAML; its TRL (1.9) for preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import yaml


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    from axolotl.prompt_strategies.chat_template import load as strategy
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    settings = yaml.safe_load((export / f"{method}.yaml").read_text())
    words, rows = tiny.tokenizer(template), []
    if method == "dpo":
        return preferences(words, settings, export, tiny.model(template, work / "model"))
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


def preferences(words: Any, settings: dict[str, Any], export: Path, model: Path) -> list[tiny.Row]:
    from axolotl.prompt_strategies.dpo import load as strategy
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    assert settings["skip_prepare_dataset"] and settings["rl"] == "dpo"
    rows: list[tiny.Row] = []
    for entry in settings["datasets"]:
        raw = load_dataset(entry["ds_type"], data_files=str(export / entry["path"]), split=entry["split"])
        made = raw.map(strategy(entry["type"], settings, dataset_idx=0))
        config = DPOConfig(
            str(export.parent / "output"),
            max_length=settings["sequence_len"],
            remove_unused_columns=settings["remove_unused_columns"],
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = DPOTrainer(str(model), args=config, train_dataset=made, processing_class=words)
        for row in trainer.train_dataset:
            sides = {}
            for side in ("chosen", "rejected"):
                prompt, answer = row["prompt_ids"], row[f"{side}_ids"]
                sides[side] = tiny.side(words, prompt + answer, [False] * len(prompt) + [True] * len(answer))
            rows.append(sides)
    return rows


tiny.main(load)
