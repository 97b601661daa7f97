"""verl 0.9.1: create_sft_dataset with the settings and the dataset class of the export."""

from __future__ import annotations

import re
from pathlib import Path

import tiny


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    from omegaconf import OmegaConf
    from verl.trainer.sft_trainer import create_sft_dataset

    script = (export / "train.sh").read_text()
    settings = dict(re.findall(r"data\.(custom_cls\.\w+|max_length|truncation)=(\S+)", script))
    config = OmegaConf.create({"pad_mode": "no_padding", "ignore_input_ids_mismatch": False})
    for key, value in settings.items():
        OmegaConf.update(config, key, int(value) if value.isdigit() else value)
    config.custom_cls.path = str(export / config.custom_cls.path)
    words = tiny.tokenizer(template)
    files = [str(path) for path in sorted(export.glob("train-*.parquet"))]
    made = create_sft_dataset(files, config, words, None)
    rows = []
    for number in range(len(made)):
        row = made[number]
        rows.append({"": tiny.side(words, row["input_ids"].tolist(), row["loss_mask"].bool().tolist())})
    return rows


tiny.main(load)
