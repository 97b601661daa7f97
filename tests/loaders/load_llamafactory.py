"""LLaMA-Factory 0.9.5: get_dataset with the export's own YAML; the job's template is the framework's, by name."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import yaml

os.environ["DISABLE_VERSION_CHECK"] = "1"
# Imported by the framework, not used for text.
_torchaudio = types.ModuleType("torchaudio")
_torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules.setdefault("torchaudio", _torchaudio)


def load(export: Path, method: str, template: Path, work: Path) -> list[tiny.Row]:
    from llamafactory.data.loader import get_dataset
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    settings = yaml.safe_load((export / f"{method}.yaml").read_text())
    words = tiny.tokenizer(template)
    data = DataArguments(
        dataset=settings["dataset"],
        dataset_dir=str(export / settings["dataset_dir"]),
        template=settings["template"],
        cutoff_len=settings["cutoff_len"],
        preprocessing_num_workers=1,
    )
    training = SimpleNamespace(
        local_process_index=0,
        should_save=False,
        should_log=False,
        seed=1,
        do_predict=False,
        predict_with_generate=False,
        main_process_first=lambda desc=None, local=True: contextlib.nullcontext(),
    )
    model = SimpleNamespace(cache_dir=None, hf_hub_token=None, trust_remote_code=False, use_kt=False)
    stage = "rm" if settings["stage"] == "dpo" else settings["stage"]  # both read pairs
    made = get_dataset(get_template_and_fix_tokenizer(words, data), model, data, training, stage, words)
    return [prepared(words, row) for row in made["train_dataset"]]


def prepared(words: Any, row: dict[str, Any]) -> tiny.Row:
    sides = {"": ""} if "input_ids" in row else {"chosen": "chosen_", "rejected": "rejected_"}
    return {
        side: tiny.side(words, row[f"{at}input_ids"], [label != -100 for label in row[f"{at}labels"]])
        for side, at in sides.items()
    }


tiny.main(load)
