"""OpenRLHF: `deepspeed --module openrlhf.cli.train_sft` and its like, then lora_combiner for adapters.

Resumes from its DeepSpeed checkpoints (`--ckpt.load_enable`). Its progress bar counts micro-batches of an epoch; steps
are made of it. From the sources of 0.11.2: it needs a GPU (flash-attn, deepspeed), so that it was not run here.
"""

from __future__ import annotations

import shlex
from typing import Any

from gristmill.errors import RecipeError
from gristmill.example import Method
from gristmill.recipe import TrainRecipe
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import Framework, Plan, dotted, rendezvous
from gristmill.trainers.progress import EpochLines
from gristmill.trl.rows import Share


class OpenRlhf(Framework):
    """SFT, DPO and reward models by OpenRLHF."""

    name = "openrlhf"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "reward"))
    targets = frozenset(("openrlhf",))
    command = "deepspeed"
    install = "install openrlhf (0.11.2) into an environment of its own"
    package = "openrlhf"
    whole_epochs = True
    other_reference = True
    lacks = frozenset(("early_stop",))

    def check(self, method: Method, settings: TrainRecipe) -> None:
        """As `Framework.check`; its flags cannot be switched off."""
        super().check(method, settings)
        if off := [name for name, value in dotted(settings.options).items() if value is False]:
            raise RecipeError(f"train.options.{off[0]}: OpenRLHF's flags cannot be set to false; leave it out")

    def plan(self, job: TrainJob, share: Share, options: dict[str, Any]) -> Plan:
        settings = job.settings
        options = {key: value for key, value in options.items() if key != "micro_batch_size"}
        flags: dict[str, Any] = {
            "train.micro_batch_size": share.device,
            "lr_warmup_ratio": settings.warmup,
            "ckpt.output_dir": "../run/output",
            "ckpt.path": "../run/checkpoints",
            "ckpt.save_steps": settings.save_steps,
        }
        if settings.eval_steps is not None:
            flags["eval.steps"] = settings.eval_steps
        if job.method == "dpo" and settings.nll_weight:
            flags["model.nll_loss_coef"] = settings.nll_weight
        if job.reference is not None:
            flags["ref.model_name_or_path"] = str(job.reference.resolve())
        words = ["bash", "train.sh"]
        for name, value in (flags | dotted(options)).items():
            shown = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, shown)]
        train = [self._prefixed(settings, words)]
        if share.processes > 1:
            train.insert(0, f'export LAUNCHER="torchrun {rendezvous(settings, share)} -m"')
        reader = EpochLines(
            r"Train step of epoch (?P<epoch>\d+):.*?(?P<step>\d+)/(?P<of>\d+) \[.*?loss=(?P<loss>-?[\d.]+(e[-+]?\d+)?)",
            epochs=int(settings.epochs),
            first=0,
            each=share.accumulation,
        )
        if not settings.lora_rank:
            return Plan(tuple(train), reader, model="run/output")
        combine = ["python", "-m", "openrlhf.cli.lora_combiner", "--model_path", str(job.base.resolve())]
        combine += ["--lora_path", "../run/output", "--output_path", "../run/model"]
        combine += ["--is_rm"] if job.method == "reward" else []
        return Plan(tuple(train), reader, (shlex.join([*settings.launch.prefix, *combine]),), adapter="run/output")


OPENRLHF = OpenRlhf()
