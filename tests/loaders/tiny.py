"""A tokenizer and a model small enough to load exports with on a CPU, and the frame of the loader programs.

A loader program runs in its framework's own environment, without Gristmill: `python load_x.py JOBS.json OUT.json`. A
job names an export, its method and a chat template; the answer has, for each row and side, the text that carries loss
and the whole text that the framework made of the row. The tokenizer is byte-level, so that both can be read back.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
_SPECIAL += ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

Row = dict[str, dict[str, Any]]
"""Side ("" if there is one) → {"learned": text, "whole": text, "ids": tokens, "mask": which of them carry loss}."""


def tokenizer(template: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(_SPECIAL)
    llama = "llama" in template.name
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|eot_id|>" if llama else "<|im_end|>",
        bos_token="<|begin_of_text|>" if llama else None,
        pad_token="<|endoftext|>",
    )
    made.chat_template = template.read_text(encoding="utf-8")
    return made


def model(template: Path, folder: Path) -> Path:
    """A random two-layer Qwen2 with that tokenizer, as a folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = tokenizer(template)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def side(words: Any, ids: list[int], mask: list[bool]) -> dict[str, Any]:
    kept = [token for token, keep in zip(ids, mask, strict=True) if keep]
    return {"learned": words.decode(kept), "whole": words.decode(ids), "ids": ids, "mask": mask}


def main(load: Callable[[Path, str, Path, Path], list[Row]]) -> None:
    """Answer each job with its rows, or with the error that it ended in."""
    asked, answered = map(Path, sys.argv[1:])
    jobs, answers = json.loads(asked.read_text()), []
    work = answered.parent / "work"
    for number, job in enumerate(jobs):
        folder = work / str(number)
        folder.mkdir(parents=True)
        try:
            answers.append({"rows": load(Path(job["export"]), job["method"], Path(job["template"]), folder)})
        except Exception:
            answers.append({"error": traceback.format_exc()})
    answered.write_text(json.dumps(answers))
