"""Axolotl: `axolotl train`, then `axolotl merge-lora`.

Resumes by itself (`auto_resume_from_checkpoints`, in the export's config). Losses and steps come from the log: it
writes no file of them as it goes. Tried with 0.19.0.
"""

from __future__ import annotations

from typing import Any

import yaml

from gristmill.example import Method
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import WHOLE_CHECKPOINTS, Framework, Plan, on_cpu, overlay, rendezvous
from gristmill.trainers.progress import LogLines
from gristmill.trl.rows import Share


class Axolotl(Framework):
    """SFT and DPO by Axolotl."""

    name = "axolotl"
    methods: frozenset[Method] = frozenset(("sft", "dpo"))
    targets = frozenset(("axolotl",))
    command = "axolotl"
    install = "install axolotl (0.19.0 was tried) into an environment of its own"
    package = "axolotl"

    def plan(self, job: TrainJob, share: Share, options: dict[str, Any]) -> Plan:
        settings = job.settings
        config = job.work / "launch" / f"{job.method}.yaml"
        rendered = yaml.safe_load(config.read_text(encoding="utf-8"))
        made = (job.work / "run" / "output").resolve()
        values: dict[str, Any] = {
            "output_dir": str(made),
            "dataset_prepared_path": str((job.work / "run" / "prepared").resolve()),
            "saves_per_epoch": None,
            "save_steps": settings.save_steps,
            "save_total_limit": 2,
            "logging_steps": 1,
            "warmup_ratio": settings.warmup,
            "micro_batch_size": share.device,
            "gradient_accumulation_steps": share.accumulation,
        }
        if job.method == "dpo" and settings.nll_weight:
            values |= {"dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1.0, settings.nll_weight]}
        if "test_datasets" in rendered:
            if settings.eval_steps is not None or settings.early_stop is not None:
                values |= {"evals_per_epoch": None, "eval_steps": settings.eval_steps or settings.save_steps}
            if settings.early_stop is not None:
                # It stops by the best checkpoint, so that saving and evaluating go together.
                values |= {"early_stopping_patience": settings.early_stop, "save_steps": values["eval_steps"]}
        if on_cpu(settings):
            values["bf16"] = False
        overlay(config, values | options)

        words = [self.command, "train", config.name]
        train: tuple[str, ...] = (WHOLE_CHECKPOINTS, self._prefixed(settings, words))
        if share.processes > 1:
            train = (
                WHOLE_CHECKPOINTS,
                f"{self._prefixed(settings, [*words, '--launcher', 'torchrun'])} -- {rendezvous(settings, share)}",
            )
        reader = LogLines(
            r"^\s*\d+%\|.*?\| (?P<step>\d+)/(?P<of>\d+) \[",
            r"\{'loss': '?(?P<loss>-?[\d.]+(e[-+]?\d+)?)",
        )
        env = {"AXOLOTL_DO_NOT_TRACK": "1"}
        if yaml.safe_load(config.read_text(encoding="utf-8")).get("adapter") is None:
            return Plan(train, reader, model="run/output", env=env)
        merge = self._prefixed(settings, [self.command, "merge-lora", config.name])
        return Plan(train, reader, (merge,), model="run/output/merged", adapter="run/output", env=env)


AXOLOTL = Axolotl()
