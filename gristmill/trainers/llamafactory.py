"""LLaMA-Factory: `llamafactory-cli train`, then `llamafactory-cli export`, which merges adapters.

Resumes by itself from the latest checkpoint in its output folder, except reward models with all weights. Steps come
from its trainer_log.jsonl. Tried with 0.9.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from gristmill.example import Method
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import WHOLE_CHECKPOINTS, Framework, Plan, on_cpu, overlay
from gristmill.trainers.progress import JsonLines
from gristmill.trl.rows import Share

# Where several machines or processes train together, its own launcher starts torchrun from these.
_TOGETHER = (
    "export FORCE_TORCHRUN=1 NNODES={nodes} NPROC_PER_NODE={each} NODE_RANK=${{SLURM_NODEID:-0}}",
    "export MASTER_ADDR=${{GRISTMILL_HEAD:-127.0.0.1}} MASTER_PORT=${{GRISTMILL_PORT:-29400}}",
)

# By the model's kind, and a word in its chat template: the framework's template, which renders tools too.
_TEMPLATES = (
    ("qwen3_5", "", "qwen3_5"),
    ("qwen3", "", "qwen3"),
    ("qwen2", "", "qwen"),
    ("llama", "<|start_header_id|>", "llama3"),
    ("gemma3", "", "gemma3"),
    ("gpt_oss", "", "gpt_oss"),
)


class LlamaFactory(Framework):
    """SFT, DPO, KTO and reward models by LLaMA-Factory."""

    name = "llamafactory"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "kto", "reward"))
    targets = frozenset(("llamafactory",))
    command = "llamafactory-cli"
    install = "install llamafactory (0.9.5 was tried) into an environment of its own"
    package = "llamafactory"
    other_reference = True

    def plan(self, job: TrainJob, share: Share, options: dict[str, Any]) -> Plan:
        settings, folder = job.settings, job.work / "launch"
        config = folder / f"{job.method}.yaml"
        rendered = yaml.safe_load(config.read_text(encoding="utf-8"))
        made = (job.work / "run" / "output").resolve()
        values: dict[str, Any] = {
            "template": _template(job.base, thinks=not rendered["template"].endswith("_nothink")),
            "output_dir": str(made),
            "overwrite_output_dir": False,  # it resumes
            "save_strategy": "steps",
            "save_steps": settings.save_steps,
            "save_total_limit": 2,
            "logging_steps": 1,
            "warmup_steps": settings.warmup,  # transformers 5: below 1, a share of the steps
            "per_device_train_batch_size": share.device,
            "gradient_accumulation_steps": share.accumulation,
        }
        if job.method == "dpo" and settings.nll_weight:
            values["pref_ftx"] = settings.nll_weight
        if job.reference is not None:
            values["ref_model"] = str(job.reference.resolve())
        if "eval_dataset" in rendered:
            if settings.eval_steps is not None:
                values |= {"eval_strategy": "steps", "eval_steps": settings.eval_steps}
            if settings.early_stop is not None:
                # The best checkpoint is loaded at the end, so that saving and evaluating go together.
                each = settings.eval_steps or settings.save_steps
                values |= {"early_stopping_steps": settings.early_stop, "load_best_model_at_end": True}
                values |= {"eval_strategy": "steps", "eval_steps": each, "save_steps": each}
        if on_cpu(settings):
            values["bf16"] = False
        overlay(config, values | options)

        merged = yaml.safe_load(config.read_text(encoding="utf-8"))
        lora = merged["finetuning_type"] == "lora"
        train = [WHOLE_CHECKPOINTS, self._prefixed(settings, [self.command, "train", config.name])]
        if share.processes > 1:
            nodes = settings.launch.nodes
            train = [line.format(nodes=nodes, each=share.processes // nodes) for line in _TOGETHER] + train
        if not lora:
            return Plan(tuple(train), _steps(), model="run/output", steps="run/output/trainer_log.jsonl")
        export = {
            "model_name_or_path": merged["model_name_or_path"],
            "adapter_name_or_path": str(made),
            **({"template": merged["template"]} if "template" in merged else {}),
            "finetuning_type": "lora",
            "stage": merged["stage"],
            "export_dir": str((job.work / "run" / "model").resolve()),
            "export_size": 5,
            "export_device": "cpu",  # all of it fits there
            "export_legacy_format": False,
        }
        (folder / "export.yaml").write_text(yaml.safe_dump(export, sort_keys=False), encoding="utf-8")
        return Plan(
            tuple(train),
            _steps(),
            finish=(self._prefixed(settings, [self.command, "export", "export.yaml"]),),
            adapter="run/output",
            steps="run/output/trainer_log.jsonl",
        )


def _template(base: Path, *, thinks: bool) -> str | None:
    """The framework's template for the model; None lets it read the model's own, which it can where no tools are.

    The export chose one by the model's name, which a folder does not have.
    """
    kind = json.loads((base / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    own = base / "chat_template.jinja"
    text = (own if own.is_file() else base / "tokenizer_config.json").read_text(encoding="utf-8")
    name = next((name for start, word, name in _TEMPLATES if kind.startswith(start) and word in text), None)
    # Qwen 3's adds an empty thought to every answer, where there are none in the data.
    return f"{name}_nothink" if name in ("qwen3", "qwen3_5") and not thinks else name


def _steps() -> JsonLines:
    return JsonLines("current_steps", "total_steps", "loss")


LLAMAFACTORY = LlamaFactory()
